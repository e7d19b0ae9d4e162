"""Several models over the same samples: their figures, and how they differ.

A bootstrap tells how sure each difference is; `Comparison.worst` finds the samples on which they
differ most.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import RisError
from ris.evaluation.metrics import Figures
from ris.evaluation.results import Answered, figures_of, read_results, read_setup

RESAMPLES = 1000
"""Draws of the bootstrap."""


@dataclass(frozen=True)
class Run:
    """One model's answers."""

    name: str
    """The model's name for people."""

    samples: dict[str, Any]
    """What was asked: `SampleSource.to_dict`."""

    at: str
    """Where masks were compared, one of `run.AT`."""

    images: tuple[str, ...]
    """The name of the image of each answer."""

    answers: tuple[Answered, ...]
    """The answers; those about one image stand together."""

    left_out: tuple[str, ...] = ()
    """A sentence for each expression that could not be asked."""

    @classmethod
    def read(cls, folder: Path) -> Run:
        """The results of `ris-eval --out`, in the order of the images' names.

        Raises:
            RisError: Where there are none.
        """
        setup = read_setup(folder)
        found = sorted(read_results(folder), key=lambda result: result.image)
        if not found:
            raise RisError(f"{folder} has no results yet")
        return cls(
            name=str(setup["name"]),
            samples=setup["samples"],
            at=str(setup["at"]),
            images=tuple(result.image for result in found for _ in result.answers),
            answers=tuple(answer for result in found for answer in result.answers),
            left_out=tuple(sentence for result in found for sentence in result.left_out),
        )

    def asked(self) -> list[tuple[object, ...]]:
        """What must be the same in runs that are compared, for each answer."""
        return [
            (image, a.expression, a.targeted, a.height, a.width, a.truth)
            for image, a in zip(self.images, self.answers, strict=True)
        ]


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

    protocol: str
    """The way of counting, one of `metrics.PROTOCOLS`."""

    threshold: float
    """From this no-target probability on an expression counts as refused."""

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


def compare_runs(
    runs: Sequence[Run], protocol: str, threshold: float, resamples: int = RESAMPLES
) -> Comparison:
    """Compares runs over the same samples.

    The bootstrap draws images, not expressions: those of one image are not independent. Every draw
    is the same for all runs, so that what a hard image costs all of them cancels.

    Args:
        runs: What is compared; the first is what the others are measured against.
        protocol: How to count, one of `metrics.PROTOCOLS`.
        threshold: From this no-target probability on an expression counts as refused.
        resamples: Draws of the bootstrap.

    Raises:
        RisError: For runs over different samples.
    """
    _require_same_samples(runs)
    figures = [figures_of(run.answers, threshold) for run in runs]
    kinds = np.array([answer.kind for answer in runs[0].answers])
    return Comparison(
        runs=tuple(runs),
        protocol=protocol,
        threshold=threshold,
        scores=tuple(_by_kind(own, kinds, protocol) for own in figures),
        differences=_bootstrap(runs[0].images, figures, protocol, resamples),
        ious=np.stack([_ious(own) for own in figures]),
    )


def _by_kind(
    figures: Figures, kinds: NDArray[np.str_], protocol: str
) -> dict[str, dict[str, float]]:
    """The metrics of all expressions and of those of each kind."""
    scores = {"all": figures.score(protocol)}
    for kind in np.unique(kinds):
        scores[str(kind)] = figures.part(kinds == kind).score(protocol)
    return scores


def _ious(figures: Figures) -> NDArray[np.float64]:
    """Refused masks are empty; an empty mask of nothing is right."""
    kept = figures.emptied()
    return np.where(kept.union == 0, 1.0, kept.iou)


def _require_same_samples(runs: Sequence[Run]) -> None:
    first = runs[0].asked()
    for run in runs[1:]:
        other = run.asked()
        if other != first:
            missing = len(set(first) ^ set(other))
            raise RisError(
                f"{runs[0].name!r} and {run.name!r} were not asked the same: {len(first)} and "
                f"{len(other)} expressions, {missing} of them in one only; evaluate both with the "
                "same --data, --split, --samples and --at"
            )


def _bootstrap(
    images: Sequence[str], figures: Sequence[Figures], protocol: str, resamples: int
) -> tuple[dict[str, Difference], ...]:
    """The differences of all figures except the first, with their intervals.

    Args:
        images: The image of each expression; those of one image stand together.
        figures: Those of each run.
        protocol: How to count, one of `metrics.PROTOCOLS`.
        resamples: How many draws.
    """
    whole = [own.score(protocol) for own in figures]
    drawn = [
        [own.part(rows).score(protocol) for own in figures] for rows in _draws(images, resamples)
    ]

    found = []
    for i in range(1, len(figures)):
        draws = [(scores[0], scores[i]) for scores in drawn]
        differences: dict[str, Difference] = {}
        for metric, first in whole[0].items():
            if metric != "samples" and metric in whole[i]:
                low, high = _interval(metric, draws)
                differences[metric] = Difference(whole[i][metric] - first, low, high)
        found.append(differences)
    return tuple(found)


def _interval(
    metric: str, draws: Sequence[tuple[dict[str, float], dict[str, float]]]
) -> tuple[float, float]:
    """What holds 95 % of the differences between the first and the second scores of each draw.

    A draw that has no expressions for the metric is left out; NaN where all are.
    """
    both = [(first, own) for first, own in draws if metric in first and metric in own]
    values = [own[metric] - first[metric] for first, own in both]
    if not values:
        return float("nan"), float("nan")
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _draws(images: Sequence[str], resamples: int) -> Iterator[NDArray[np.int64]]:
    """Indices of the expressions of images drawn with replacement, the same every time."""
    names, starts, counts = np.unique(np.array(images), return_index=True, return_counts=True)
    rng = np.random.default_rng(0)
    for _ in range(resamples):
        chosen = rng.integers(0, len(names), len(names))
        sizes = counts[chosen]
        # row of an expression: where its image starts, and its place among those of the image
        before = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        yield np.repeat(starts[chosen] - before, sizes) + np.arange(sizes.sum())
