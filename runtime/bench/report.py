"""What a benchmark found, as data, and as the JSON file that `ris-bench --out` writes and
`ris-bench compare` reads.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ris.engines.errors import RisError
from ris.runtime.bundle import STAGES, Operations

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Spread:
    """Several measurements of the same thing: how many, their median, quartiles, and ends."""

    runs: int
    median: float
    lower: float
    upper: float
    smallest: float
    largest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """At least one value."""
        quartiles = (
            statistics.quantiles(values, n=4, method="inclusive")
            if len(values) > 1
            else [values[0]] * 3
        )
        return cls(
            len(values),
            statistics.median(values),
            quartiles[0],
            quartiles[2],
            min(values),
            max(values),
        )

    def overlaps(self, other: Spread) -> bool:
        """Whether the middle halves of the two have values in common, so that noise may be all of
        the difference.
        """
        return self.lower <= other.upper and other.lower <= self.upper


@dataclass(frozen=True)
class Measured:
    """One way of running the model. Seconds and bytes; what was not measured is None or empty.

    engine: what ran it; bundle: its path and precision, None for PyTorch; precision: by graph, what
    its products really computed in; operations: by graph, of one call for one image and one
    expression; first_mask: pixels in memory to a mask; next_expression: another one on the encoded
    image; host: the runtime's own work in a first mask, outside the engine; stages: of a first
    mask; cold_start: from starting a process to its first mask, the files being in the system's
    cache; imports, load: parts of it, the interpreter's own start among the imports; compile: the
    load that compiled, before everything else, None where all was in the engine's cache; images,
    expressions: seconds for one of them, by how many went through together; peak_memory: of a
    process that loads, makes a mask and asks once more; peak_memory_batches: after the batches too.
    """

    name: str
    engine: str
    bundle: str | None
    bundle_precision: str | None
    precision: dict[str, str]
    operations: dict[str, int]
    first_mask: Spread
    next_expression: Spread
    host: Spread | None = None
    stages: dict[str, Spread] = field(default_factory=dict)
    cold_start: Spread | None = None
    imports: Spread | None = None
    load: Spread | None = None
    compile: float | None = None
    images: dict[int, Spread] = field(default_factory=dict)
    expressions: dict[int, Spread] = field(default_factory=dict)
    peak_memory: int | None = None
    peak_memory_batches: int | None = None


@dataclass(frozen=True)
class Inputs:
    """What was asked. Reports of different inputs are not compared."""

    image: str
    height: int
    width: int
    expressions: tuple[str, ...]
    categories: tuple[str, ...]
    model: str
    threads: int | None


@dataclass(frozen=True)
class BenchReport:
    """Everything a run of `ris-bench` found.

    machine: what it ran on, with the load average before and after (which includes the benchmark
    itself); rates: by precision and library, operations a second of large matrix products, measured
    in turn with the rest; failed: what could not be measured, and why; anew: every round was in new
    processes.
    """

    format_version: int
    inputs: Inputs
    machine: dict[str, Any]
    rounds: int
    rates: dict[str, dict[str, Spread]]
    alternatives: tuple[Measured, ...]
    failed: dict[str, str]
    photo: dict[str, Spread]
    anew: bool = False

    def rate(self, precision: str) -> float | None:
        """The fastest library's median; FP16's is FP32's where nothing here multiplies in FP16."""
        found = self.rates.get(precision)
        return max(spread.median for spread in found.values()) if found else None

    def floor(self, measured: Measured, stages: Sequence[str] = STAGES) -> float | None:
        """Seconds that the operations of `stages` take at the rate of large matrix products in the
        precision that each graph ran in; None where operations or a rate are unknown.
        """
        seconds = 0.0
        for stage in stages:
            rate = self.rate(measured.precision.get(stage, ""))
            if rate is None or stage not in measured.operations:
                return None
            seconds += measured.operations[stage] / rate
        return seconds

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True) + "\n"


PER_EXPRESSION = ("text_encoder", "fusion", "mask_decoder")


def operations_of(counted: Mapping[str, Operations | None]) -> dict[str, int]:
    """Of one image and one expression, by graph; empty where the bundle has not counted one of
    them.
    """
    return (
        {}
        if None in counted.values()
        else {stage: c.of(1, 1) for stage, c in counted.items() if c is not None}
    )


def read_report(path: Path) -> BenchReport:
    """A report that `BenchReport.to_json` wrote. Raises RisError."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["format_version"] != FORMAT_VERSION:
            raise RisError(
                f"{path} has format version {data['format_version']}, this ris-bench reads"
                f" {FORMAT_VERSION}; measure again"
            )
        return BenchReport(
            FORMAT_VERSION,
            _inputs(data["inputs"]),
            data["machine"],
            data["rounds"],
            {name: _spreads(rates) for name, rates in data["rates"].items()},
            tuple(_measured(one) for one in data["alternatives"]),
            data["failed"],
            _spreads(data["photo"]),
            data.get("anew", False),
        )
    except OSError as error:
        raise RisError(f"{path} cannot be read ({error.strerror})") from None
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise RisError(
            f"{path} is not a report of ris-bench ({type(error).__name__}: {error})"
        ) from None


def _inputs(data: dict[str, Any]) -> Inputs:
    values: dict[str, Any] = {
        name: tuple(v) if isinstance(v, list) else v for name, v in data.items()
    }
    return Inputs(**values)


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
