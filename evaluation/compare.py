"""Several models over the same samples: their figures, and how they differ.

A bootstrap tells how sure each difference is; `Comparison.worst` finds the samples on which they
differ most.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import RisError
from ris.evaluation.metrics import Counting, Figures, Mask

RESAMPLES = 1000
"""Draws of the bootstrap."""


@dataclass(frozen=True)
class Expression:
    """What was asked."""

    image: str
    """The image's name."""

    text: str
    """The expression."""

    kind: str
    """What sort of expression it is, for tables."""

    targeted: bool
    """Whether something is referred to."""


@dataclass(frozen=True)
class Run:
    """One model's answers to N expressions."""

    name: str
    """The model's name for people."""

    samples: dict[str, Any]
    """What was asked: `SampleSource.to_dict`."""

    where: str
    """Where masks were compared, for people."""

    expressions: tuple[Expression, ...]
    """What was asked, in order."""

    figures: Figures
    """The answers against their truths."""

    no_target: tuple[float | None, ...]
    """The no-target head's probabilities; None for a model without that head."""

    masks: Callable[[int], tuple[Mask, Mask]]
    """The mask and the truth of an expression, by its number."""

    left_out: tuple[str, ...] = ()
    """A sentence for each expression that could not be asked."""


@dataclass(frozen=True)
class Difference:
    """A metric of one run minus that of the first run."""

    value: float
    """The difference over all expressions."""

    low: float
    """Start of the interval that holds 95 % of the bootstrap's differences."""

    high: float
    """End of that interval."""


@dataclass(frozen=True)
class Comparison:
    """Runs over the same N expressions, and how they differ from the first."""

    runs: tuple[Run, ...]
    """What is compared."""

    counting: Counting
    """The way of counting."""

    scores: tuple[dict[str, dict[str, float]], ...]
    """For each run: kind of expression, "all" first -> metric -> value."""

    differences: tuple[dict[str, Difference], ...]
    """For each run except the first: metric -> difference, over all expressions."""

    ious: NDArray[np.float64]
    """float64 [runs, N], of the masks; refused ones are empty."""

    left_out: tuple[str, ...] = ()
    """A sentence for each line, image and expression that could not be used."""

    def worst(self, count: int) -> list[int]:
        """The expressions on which the runs differ most, at most `count`.

        The largest difference in IoU is first; equal ones are in order.
        """
        spread = np.ptp(self.ious, axis=0)
        return [int(i) for i in np.argsort(-spread, kind="stable")[:count] if spread[i] > 0]


def compare_runs(runs: Sequence[Run], counting: Counting, resamples: int = RESAMPLES) -> Comparison:
    """Compares runs over the same samples.

    Args:
        runs: What is compared; the first is what the others are measured against.
        counting: How to count.
        resamples: Draws of the bootstrap.

    Raises:
        RisError: For runs over different samples.
    """
    require_same_samples(runs)
    figures = [run.figures for run in runs]
    expressions = runs[0].expressions
    kinds = np.array([expression.kind for expression in expressions])
    images = [expression.image for expression in expressions]
    return Comparison(
        runs=tuple(runs),
        counting=counting,
        scores=tuple(_by_kind(own, kinds, counting) for own in figures),
        differences=bootstrap(images, figures, counting, resamples),
        ious=np.stack([ious_of(own) for own in figures]),
    )


def _by_kind(
    figures: Figures, kinds: NDArray[np.str_], counting: Counting
) -> dict[str, dict[str, float]]:
    """The metrics of all expressions and of those of each kind, and how many they are."""
    parts = {"all": figures}
    names = np.unique(kinds)
    if len(names) > 1:
        parts |= {str(kind): figures.part(kinds == kind) for kind in names}
    scores = {}
    for name, part in parts.items():
        found = counting.score(part)
        own = {metric: found[metric] for metric in counting.metrics if metric in found}
        scores[name] = {"samples": float(len(part.truth))} | own
    return scores


def ious_of(figures: Figures) -> NDArray[np.float64]:
    """Of each expression, [N]: refused masks are empty; an empty mask of nothing is right."""
    kept = figures.emptied()
    return np.where(kept.union == 0, 1.0, kept.iou)


def require_same_samples(runs: Sequence[Run]) -> None:
    """Raises RisError where one of the runs is over other samples than the first."""
    for other in runs[1:]:
        _require_same(runs[0], other)


def _require_same(first: Run, other: Run) -> None:
    asked = [
        [(own, int(truth)) for own, truth in zip(run.expressions, run.figures.truth, strict=True)]
        for run in (first, other)
    ]
    if asked[0] != asked[1] or first.where != other.where:
        missing = len(set(asked[0]) ^ set(asked[1]))
        raise RisError(
            f"{first.name!r} and {other.name!r} were not asked the same: {len(asked[0])} and "
            f"{len(asked[1])} expressions, {missing} of them in one only, masks compared at "
            f"{first.where} and {other.where}; evaluate both with the same --data, --split, "
            "--samples and --at"
        )


def bootstrap(
    images: Sequence[str], figures: Sequence[Figures], counting: Counting, resamples: int
) -> tuple[dict[str, Difference], ...]:
    """The differences of all figures except the first to the first, with their intervals.

    The bootstrap draws images, not expressions: those of one image are not independent. Every draw
    is the same for all runs, so that what a hard image costs all of them cancels.

    Args:
        images: The image of each expression.
        figures: Those of each run, in the order of `images`.
        counting: How to count.
        resamples: How many draws.
    """
    whole = [counting.score(own) for own in figures]
    drawn = [
        [counting.score(own.part(rows)) for own in figures] for rows in _draws(images, resamples)
    ]

    found = []
    for i in range(1, len(figures)):
        draws = [(scores[0], scores[i]) for scores in drawn]
        differences: dict[str, Difference] = {}
        for metric in counting.metrics:
            if metric in whole[0] and metric in whole[i]:
                low, high = _interval(metric, draws)
                value = whole[i][metric] - whole[0][metric]
                differences[metric] = Difference(value, low, high)
        found.append(differences)
    return tuple(found)


def _interval(
    metric: str, draws: Sequence[tuple[dict[str, float], dict[str, float]]]
) -> tuple[float, float]:
    """What holds 95 % of the differences between the first and the second scores of each draw.

    A draw that has no expressions for the metric is left out; NaN where all are.
    """
    both = [(first, own) for first, own in draws if metric in first and metric in own]
    values = np.array([own[metric] - first[metric] for first, own in both])
    values = values[~np.isnan(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _draws(images: Sequence[str], resamples: int) -> Iterator[NDArray[np.int64]]:
    """Indices of the expressions of images drawn with replacement, the same every time."""
    order = np.argsort(np.array(images), kind="stable")
    _, starts, counts = np.unique(np.array(images)[order], return_index=True, return_counts=True)
    rng = np.random.default_rng(0)
    for _ in range(resamples):
        chosen = rng.integers(0, len(starts), len(starts))
        sizes = counts[chosen]
        # row of an expression: where its image starts, and its place among those of the image
        before = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        yield order[np.repeat(starts[chosen] - before, sizes) + np.arange(sizes.sum())]
