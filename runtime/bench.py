"""Times a bundle: the first mask of an image, the next expression on it, and the host's own share.

Everything that is compared runs in one process, in turn, and is reported as a median with its spread.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ris.runtime.bundle import STAGES
from ris.runtime.model import Model, Scene, Segmentation, Timings

Alternative = Callable[[], tuple[float, float]]
"""Times something else on the same image and expressions: seconds of its first mask and of its next expression."""


@dataclass(frozen=True)
class Spread:
    """Seconds over the runs."""

    median: float
    smallest: float
    largest: float


@dataclass(frozen=True)
class BenchReport:
    """first_mask: image to mask; next_expression: another one on the encoded image; host: the runtime's own work in
    a first mask (everything outside the engines); stages: seconds by stage of a first mask; alternatives: first mask
    and next expression of what was timed beside it.
    """

    runs: int
    first_mask: Spread
    next_expression: Spread
    host: Spread
    stages: dict[str, Spread]
    alternatives: dict[str, tuple[Spread, Spread]]


def bench(
    model: Model,
    rgb: NDArray[np.uint8],
    expressions: tuple[str, str],
    categories: tuple[str, str] | None,
    runs: int,
    alternatives: dict[str, Alternative],
    report: Callable[[str], None],
) -> BenchReport:
    """One warm-up of each, then `runs` rounds in which the model and the alternatives take turns."""
    first, following, host = [], [], []
    stages: dict[str, list[float]] = {}
    others: dict[str, list[tuple[float, float]]] = {name: [] for name in alternatives}
    for run in range(runs + 1):
        report("warm-up" if run == 0 else f"run {run} of {runs}")
        start = time.perf_counter()
        scene = model.encode_image(rgb)
        result = _ask(scene, expressions[0], categories[0] if categories else None)
        middle = time.perf_counter()
        _ask(scene, expressions[1], categories[1] if categories else None)
        end = time.perf_counter()
        timed = {name: alternative() for name, alternative in alternatives.items()}
        if run == 0:
            continue
        first.append(middle - start)
        following.append(end - middle)
        host.append(middle - start - _engine_seconds(result.timings))
        for name, seconds in result.timings.items():
            stages.setdefault(name, []).append(seconds)
        for name, pair in timed.items():
            others[name].append(pair)
    return BenchReport(
        runs,
        _spread(first),
        _spread(following),
        _spread(host),
        {name: _spread(seconds) for name, seconds in stages.items()},
        {name: (_spread([p[0] for p in pairs]), _spread([p[1] for p in pairs])) for name, pairs in others.items()},
    )


def _ask(scene: Scene, expression: str, category: str | None) -> Segmentation:
    """Without the no-target decision: a "no target" answer would skip the mask."""
    return scene.segment(expression, category=category, no_target_threshold=None)


def _engine_seconds(timings: Timings) -> float:
    return sum(seconds for name, seconds in timings.items() if name.removeprefix("image.") in STAGES)


def _spread(seconds: list[float]) -> Spread:
    return Spread(statistics.median(seconds), min(seconds), max(seconds))
