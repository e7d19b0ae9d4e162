"""The figures of a report as text, and tables of them in Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from ris.runtime.bench.report import Spread


def seconds(value: float | None) -> str:
    """Seconds for people, milliseconds below a second; "" for None."""
    if value is None:
        return ""
    if value >= 1:
        return f"{value:.2f} s"
    milliseconds = value * 1000
    return f"{milliseconds:.3g} ms" if value < 0.1 else f"{milliseconds:.0f} ms"


def spread(found: Spread | None) -> str:
    """The median, and the middle half where there were several runs; "" for None."""
    if found is None:
        return ""
    if found.runs == 1:
        return seconds(found.median)
    return f"{seconds(found.median)} ({seconds(found.lower)} to {seconds(found.upper)})"


def ratio(a: float | None, b: float | None) -> str:
    """a / b; "" where one of them is 0 or unknown."""
    return f"{a / b:.2f}" if a and b else ""


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a Markdown table after an empty one, numbers to the right; none without rows."""
    if not rows:
        return []
    lines = [headings, ["---", *["---:"] * (len(headings) - 1)], *rows]
    return ["", *("| " + " | ".join(cells) + " |" for cells in lines)]
