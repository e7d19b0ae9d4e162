"""What a calibration is asked to do, and how it runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from ris.calibration.int8.histogram import Calibrator

Track = Callable[[Iterable[int], int, str], Iterator[int]]
"""`ris.runtime.commands.console.track`, or anything that yields the same items."""


@dataclass(frozen=True)
class Int8Options:
    """What to do. Everything here is written to the report."""

    graphs: tuple[str, ...] | None = None
    """The stages to quantise. None: those that the bundle says (`int8_by_default`)."""

    calibrator: Calibrator | Literal["auto"] = "auto"
    """How thresholds are chosen; "auto": the calibrator that loses least."""

    percentile: float = 99.99
    """The share of magnitudes that the percentile calibrator keeps, in percent."""

    alpha: float | None = 0.5
    """Smoothing: from 0 to 1, how much of the difficulty moves into the weights. None: none."""

    attention: bool = False
    """Whether products of two activations are quantised too."""

    max_iou_drop: float = 0.005
    """The mean mask IoU that may be lost."""

    against: Literal["fp32", "truth"] = "fp32"
    """What the loss is measured against: FP32's masks, or the true ones."""

    sensitivity: bool = True
    """Whether every layer is measured alone, even where the target holds with all of them."""


def _untracked(items: Iterable[int], total: int, title: str) -> Iterator[int]:
    return iter(items)


def _silent(line: str) -> None:
    pass


@dataclass(frozen=True)
class Execution:
    """How a calibration runs and reports. A stopped one may go on with another."""

    threads: int | None = None
    """CPU threads of ONNX Runtime. None: all cores."""

    track: Track = _untracked
    """Yields the items of each long loop, and may show how far it is."""

    say: Callable[[str], None] = _silent
    """Called with each remark, a line of text."""
