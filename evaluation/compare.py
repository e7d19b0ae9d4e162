"""Several models over the same samples: their figures, how sure the differences are, and where they
disagree most.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import RisError
from ris.evaluation.metrics import Figures
from ris.evaluation.results import Answered, figures_of, read_results, read_setup

RESAMPLES = 1000


@dataclass(frozen=True)
class Run:
    """One model's answers. name: for people; samples: what was asked (`SampleSource.to_dict`); at:
    the comparison's size; images: the image of each answer."""

    name: str
    samples: dict[str, Any]
    at: str
    images: tuple[str, ...]
    answers: tuple[Answered, ...]

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The results of `ris-eval --out`. Raises RisError where there are none."""
        setup = read_setup(folder)
        found = sorted(read_results(folder), key=lambda result: result.image)
        if not found:
            raise RisError(f"{folder} has no results yet")
        images = tuple(result.image for result in found for _ in result.answers)
        answers = tuple(answer for result in found for answer in result.answers)
        return cls(str(setup["name"]), setup["samples"], str(setup["at"]), images, answers)

    def asked(self) -> list[tuple[object, ...]]:
        """What must be the same in runs that are compared."""
        return [
            (image, a.expression, a.targeted, a.height, a.width, a.truth)
            for image, a in zip(self.images, self.answers, strict=True)
        ]


@dataclass(frozen=True)
class Difference:
    """A run's figure minus the first run's, with the interval that holds 95 % of the bootstrap's
    differences.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """scores: by run, kind of expression and metric ("all" first). differences: by run but the
    first, and metric, over all expressions. ious: [runs, N], of the masks, refused ones empty."""

    runs: tuple[Run, ...]
    protocol: str
    threshold: float
    scores: tuple[dict[str, dict[str, float]], ...]
    differences: tuple[dict[str, Difference], ...]
    ious: NDArray[np.float64]

    def worst(self, count: int) -> list[int]:
        """The expressions about which the runs differ most, in IoU, largest difference first; equal
        ones in order.
        """
        spread = np.ptp(self.ious, axis=0)
        return [int(i) for i in np.argsort(-spread, kind="stable")[:count] if spread[i] > 0]


def compare_runs(
    runs: Sequence[Run], protocol: str, threshold: float, resamples: int = RESAMPLES
) -> Comparison:
    """Raises RisError for runs over different samples.

    The bootstrap draws images, not expressions: those of one image are not independent. Every draw
    is the same for all runs, so that what a hard image costs all of them cancels.
    """
    _same_samples(runs)
    figures = [figures_of(run.answers, threshold) for run in runs]
    kinds = np.array([answer.kind for answer in runs[0].answers])
    scores = []
    for one in figures:
        by_kind = {"all": one.score(protocol)}
        by_kind |= {str(kind): one.part(kinds == kind).score(protocol) for kind in np.unique(kinds)}
        scores.append(by_kind)
    differences = _bootstrap(runs[0].images, figures, protocol, resamples)
    ious = np.stack([_ious(one) for one in figures])
    return Comparison(tuple(runs), protocol, threshold, tuple(scores), differences, ious)


def _ious(figures: Figures) -> NDArray[np.float64]:
    """Refused masks are empty; an empty mask of nothing is right."""
    kept = figures.emptied()
    return np.where(kept.union == 0, 1.0, kept.iou)


def _same_samples(runs: Sequence[Run]) -> None:
    first = runs[0].asked()
    for run in runs[1:]:
        other = run.asked()
        if other != first:
            missing = len(set(first) ^ set(other))
            raise RisError(
                f"{runs[0].name!r} and {run.name!r} were not asked the same: {len(first)} and"
                f" {len(other)} expressions, {missing} of them in one only; evaluate both with the"
                " same --data, --split, --samples and --at"
            )


def _bootstrap(
    images: Sequence[str], figures: Sequence[Figures], protocol: str, resamples: int
) -> tuple[dict[str, Difference], ...]:
    names, starts, counts = np.unique(np.array(images), return_index=True, return_counts=True)
    rng = np.random.default_rng(0)
    plain = [one.score(protocol) for one in figures]
    drawn: list[list[dict[str, float]]] = []
    for _ in range(resamples):
        chosen = rng.integers(0, len(names), len(names))
        sizes = counts[chosen]
        first = np.repeat(starts[chosen] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
        rows = first + np.arange(sizes.sum())
        drawn.append([one.part(rows).score(protocol) for one in figures])
    found = []
    for i in range(1, len(figures)):
        own: dict[str, Difference] = {}
        for metric in plain[0]:
            if metric == "samples" or metric not in plain[i]:
                continue
            values = [
                d[i][metric] - d[0][metric] for d in drawn if metric in d[i] and metric in d[0]
            ]
            low, high = np.percentile(values, [2.5, 97.5]) if values else (float("nan"),) * 2
            own[metric] = Difference(plain[i][metric] - plain[0][metric], float(low), float(high))
        found.append(own)
    return tuple(found)
