"""What a load test found: the figures, a check of them, and a table for people."""

from __future__ import annotations

from dataclasses import dataclass

from ris.engines.errors import RisError

KINDS = ("an image each", "repeated images")
"""What the requests of the two halves have."""


@dataclass(frozen=True)
class Half:
    """The figures of the requests of one kind."""

    requests: int
    """Requests."""

    images: int
    """Different images among them."""

    loop_per_second: float
    """Requests a second of the plain runtime's loop."""

    server_per_second: float
    """Requests a second of the server."""

    server_p50_ms: float
    """Median of the milliseconds from a client's sending to its answer."""

    server_p99_ms: float
    """99th percentile of the same."""

    errors: int
    """Requests that failed at the server."""

    different_masks: int
    """Requests whose masks are not the loop's; failed requests are not counted here."""

    cache_hits: int
    """Requests whose image the server had encoded already."""

    @property
    def lost(self) -> float:
        """The share of the loop's throughput that the server loses; negative where it gains."""
        return 1 - self.server_per_second / self.loop_per_second


@dataclass(frozen=True)
class LoadReport:
    """What a load test found."""

    clients: int
    """Clients that asked at once."""

    distinct: Half
    """The requests with an image of their own."""

    repeated: Half
    """The requests about a few images, each asked about many times."""

    first_error: str | None
    """What the first failed request was told; None where none failed."""

    def check(self) -> None:
        """Raises RisError where a request failed or a mask is not the loop's."""
        errors = self.distinct.errors + self.repeated.errors
        different = self.distinct.different_masks + self.repeated.different_masks
        if errors or different:
            first = f" ({self.first_error})" if self.first_error else ""
            raise RisError(
                f"{errors} requests failed{first}, {different} answers differ from the plain"
                " runtime's"
            )


def table(report: LoadReport) -> str:
    """The report for people."""
    halves = zip(KINDS, (report.distinct, report.repeated), strict=True)
    lines = [f"{kind}: {half_line(half)}" for kind, half in halves]
    return "\n".join([f"{report.clients} clients", *lines])


def half_line(half: Half) -> str:
    """The figures of a half for people."""
    gain = f"{1 - half.lost:.2f} times the loop"
    change = f"{half.lost:.1%} lost" if half.lost >= 0 else gain
    return (
        f"{half.requests} requests, {half.images} images: "
        f"plain loop {half.loop_per_second:.1f} requests/s, "
        f"server {half.server_per_second:.1f} ({change}); "
        f"p50 {half.server_p50_ms:.0f} ms, p99 {half.server_p99_ms:.0f} ms; "
        f"{half.cache_hits} found in the cache; "
        f"{half.errors} errors, {half.different_masks} different"
    )
