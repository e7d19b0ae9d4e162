"""What a benchmark found, as data and as JSON.

`ris-bench --out` writes the JSON file and `ris-bench compare` reads it.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ris.engines.errors import RisError

FORMAT_VERSION = 1
"""The version of the JSON file; files of other versions are refused."""


@dataclass(frozen=True)
class Spread:
    """Several measurements of the same thing."""

    runs: int
    """How many there are."""

    median: float
    """Their median."""

    lower: float
    """Their lower quartile."""

    upper: float
    """Their upper quartile."""

    smallest: float
    """The smallest of them."""

    largest: float
    """The largest of them."""

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """The spread of at least one value."""
        if len(values) > 1:
            lower, _, upper = statistics.quantiles(values, n=4, method="inclusive")
        else:
            lower = upper = values[0]
        return cls(
            runs=len(values),
            median=statistics.median(values),
            lower=lower,
            upper=upper,
            smallest=min(values),
            largest=max(values),
        )

    def overlaps(self, other: Spread) -> bool:
        """Whether the middle halves have values in common.

        Then the whole difference may be noise.
        """
        return self.lower <= other.upper and other.lower <= self.upper


@dataclass(frozen=True)
class Measured:
    """One way of running the model: seconds and bytes.

    What was not measured is None or empty.
    """

    name: str
    """Its name, as it was asked for."""

    engine: str
    """What ran it, with its version and device."""

    bundle: str | None
    """The path of the bundle. None: PyTorch."""

    bundle_precision: str | None
    """The precision of the bundle. None: PyTorch."""

    precision: dict[str, str]
    """By graph, what its products really computed in."""

    operations: dict[str, int]
    """By graph, the operations of one call for one image and one expression."""

    first_mask: Spread
    """Seconds from pixels in memory to a mask."""

    next_expression: Spread
    """Seconds of another expression on the encoded image."""

    host: Spread | None = None
    """Seconds of a first mask outside the engine: the runtime's own work."""

    stages: dict[str, Spread] = field(default_factory=dict)
    """Seconds of each stage of a first mask, the runtime's own among them."""

    cold_start: Spread | None = None
    """Seconds from starting a process to its first mask; the system has the files in its cache."""

    imports: Spread | None = None
    """Seconds of a cold start until all is imported, the interpreter's own start included."""

    load: Spread | None = None
    """Seconds of a cold start in which the bundle loads."""

    compile: float | None = None
    """Seconds of the load that compiled, before all else. None: the engine's cache had all."""

    images: dict[int, Spread] = field(default_factory=dict)
    """Seconds for each image, by how many were encoded together."""

    expressions: dict[int, Spread] = field(default_factory=dict)
    """Seconds for each expression, by how many were asked together."""

    peak_memory: int | None = None
    """Peak memory in bytes of a process that loads, makes a mask and asks once more."""

    peak_memory_batches: int | None = None
    """Peak memory in bytes after several images and expressions together, too."""


@dataclass(frozen=True)
class Inputs:
    """What was asked. Reports of different inputs are not compared."""

    image: str
    """The SHA-256 of the image's pixels."""

    height: int
    """The image's height in pixels."""

    width: int
    """The image's width in pixels."""

    expressions: tuple[str, ...]
    """The expression of the first mask, and the next one."""

    categories: tuple[str, ...]
    """One for each expression; empty for a model that does not ask by category."""

    model: str
    """The SHA-256 of the manifest's `model`, the architecture."""

    threads: int | None
    """CPU threads. None: all cores."""


@dataclass(frozen=True)
class BenchReport:
    """Everything that a run of `ris-bench` found."""

    format_version: int
    """`FORMAT_VERSION`."""

    inputs: Inputs
    """What was asked."""

    machine: dict[str, Any]
    """What it ran on, and the load average before and after.

    The benchmark itself is in the latter.
    """

    rounds: int
    """Measured rounds."""

    rates: dict[str, dict[str, Spread]]
    """Operations a second of large matrix products, by precision and library.

    They took turns with the alternatives.
    """

    alternatives: tuple[Measured, ...]
    """The ways of running the model that were measured."""

    failed: dict[str, str]
    """Why others, or "photo", could not be measured, by name."""

    photo: dict[str, Spread]
    """Seconds from a JPEG of 12 megapixels to what the graphs take, by "exact" and "draft"."""

    anew: bool = False
    """Whether every round was in new processes."""

    per_expression: tuple[str, ...] = ()
    """The stages that run anew for each expression about an image; empty in old files."""

    once_an_image: tuple[str, ...] = ()
    """The stages that run once an image; empty in old files, and where there are none."""

    def rate(self, precision: str) -> float | None:
        """The median of the fastest library. None: nothing here multiplies in this precision."""
        found = self.rates.get(precision)
        return max(spread.median for spread in found.values()) if found else None

    @property
    def stages(self) -> tuple[str, ...]:
        """All stages."""
        return self.once_an_image + self.per_expression

    def floor(self, measured: Measured, stages: Sequence[str] | None = None) -> float | None:
        """Seconds that the operations of `stages` take at the rate of large matrix products.

        Each graph's rate is that of the precision it ran in. None where operations or a rate are
        unknown.

        stages: None: all.
        """
        seconds = 0.0
        for stage in self.stages if stages is None else stages:
            rate = self.rate(measured.precision.get(stage, ""))
            if rate is None or stage not in measured.operations:
                return None
            seconds += measured.operations[stage] / rate
        return seconds

    def to_json(self) -> str:
        """The text that `read_report` reads."""
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"


def read_report(path: Path) -> BenchReport:
    """The report that `BenchReport.to_json` wrote to a file.

    Raises RisError where the file cannot be read, is none, or is of another format version.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format_version"] != FORMAT_VERSION:
            raise RisError(
                f"{path} has format version {data['format_version']}, this ris-bench reads"
                f" {FORMAT_VERSION}; measure again"
            )
        return _report(data)
    except OSError as error:
        raise RisError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        kind = type(error).__name__
        raise RisError(f"{path} is not a report of ris-bench ({kind}: {error})") from None


def _report(data: dict[str, Any]) -> BenchReport:
    return BenchReport(
        format_version=FORMAT_VERSION,
        inputs=_inputs(data["inputs"]),
        machine=data["machine"],
        rounds=data["rounds"],
        rates={name: _spreads(rates) for name, rates in data["rates"].items()},
        alternatives=tuple(_measured(one) for one in data["alternatives"]),
        failed=data["failed"],
        photo=_spreads(data["photo"]),
        anew=data.get("anew", False),
        per_expression=tuple(data.get("per_expression", ())),
        once_an_image=tuple(data.get("once_an_image", ())),
    )


def _inputs(data: dict[str, Any]) -> Inputs:
    tuples = {name: tuple(value) for name, value in data.items() if isinstance(value, list)}
    return Inputs(**(data | tuples))


def _measured(data: dict[str, Any]) -> Measured:
    values = dict(data)
    for name in ("first_mask", "next_expression", "host", "cold_start", "imports", "load"):
        values[name] = Spread(**data[name]) if data[name] else None
    values["stages"] = _spreads(data["stages"])
    for name in ("images", "expressions"):
        values[name] = {int(size): spread for size, spread in _spreads(data[name]).items()}
    return Measured(**values)


def _spreads(data: dict[str, Any]) -> dict[str, Spread]:
    return {name: Spread(**value) for name, value in data.items()}
