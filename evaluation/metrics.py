"""What is known of answered expressions, and how those are counted that no benchmark counts.

Drawn scenes and people's own pictures have figures of their own (`SCENES`); the published
evaluators are in `protocols`. An expression is targeted where something is referred to. A model
with a no-target head may refuse it. The formulas are in docs/reference/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
"""bool [H, W]."""


@dataclass(frozen=True)
class Figures:
    """What is known of N answered expressions; every metric follows from it."""

    intersection: NDArray[np.int64]
    """Pixels in both mask and truth, int64 [N]."""

    predicted: NDArray[np.int64]
    """Pixels of the mask, whatever the no-target head says, int64 [N]."""

    truth: NDArray[np.int64]
    """Pixels of the truth, int64 [N]."""

    refused: NDArray[np.bool_]
    """Whether the head says "no target", bool [N]."""

    targeted: NDArray[np.bool_]
    """Whether something is referred to, bool [N]."""

    @property
    def union(self) -> NDArray[np.int64]:
        """Pixels in mask or truth, int64 [N]."""
        return self.predicted + self.truth - self.intersection

    @property
    def iou(self) -> NDArray[np.float64]:
        """Of the masks themselves, [N]; 0 where the union is empty."""
        return self.intersection / np.maximum(self.union, 1)

    def part(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Figures:
        """The expressions of these indices, or those where a bool [N] is true."""
        return Figures(**{name: values[chosen] for name, values in vars(self).items()})

    def emptied(self) -> Figures:
        """The same with the masks of refused expressions made empty."""
        kept = ~self.refused
        return replace(self, intersection=self.intersection * kept, predicted=self.predicted * kept)


@dataclass
class Tally:
    """Figures that grow by one expression at a time."""

    rows: list[tuple[int, int, int, bool, bool]] = field(default_factory=list)
    """The fields of `Figures`, a tuple for each expression."""

    def add(self, mask: Mask, truth: Mask, refused: bool, targeted: bool) -> None:
        """Adds one expression.

        Args:
            mask: The answer, bool [H, W], whatever the no-target head says.
            truth: bool [H, W].
            refused: Whether the head says "no target".
            targeted: Whether something is referred to.
        """
        intersection = int(np.count_nonzero(mask & truth))
        predicted, meant = int(np.count_nonzero(mask)), int(np.count_nonzero(truth))
        self.rows.append((intersection, predicted, meant, refused, targeted))

    def figures(self) -> Figures:
        """The figures of all that was added."""
        rows = np.array(self.rows, np.int64).reshape(-1, 5)
        return Figures(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3] > 0, rows[:, 4] > 0)


@dataclass(frozen=True)
class Counting:
    """A way of counting, as tables and comparisons need it."""

    name: str
    """For people and files."""

    source: str
    """Whose way it is."""

    metrics: dict[str, str]
    """Metric -> what it means, in the order of the table; the number of expressions is not one."""

    score: Callable[[Figures], dict[str, float]]
    """Computes them. One without any expression to be computed from is absent or NaN."""


def _scenes(figures: Figures) -> dict[str, float]:
    """Shares of 1; a metric without any expression to be computed from is left out."""
    targeted, kept = figures.part(figures.targeted), figures.emptied()
    right = np.where(figures.targeted, kept.iou, figures.refused)
    found = {
        "samples": float(len(figures.truth)),
        "miou": _mean(targeted.iou),
        "precision_0.5": _mean(targeted.iou >= 0.5),
        "oiou": _ratio(targeted),
        "giou": _mean(right),
        "ciou": _ratio(kept),
        "n_acc": _mean(figures.refused[~figures.targeted]),
        "t_acc": _mean(~figures.refused[figures.targeted]),
    }
    return {name: value for name, value in found.items() if value is not None}


def _ratio(figures: Figures) -> float | None:
    total = int(figures.union.sum())
    return int(figures.intersection.sum()) / total if total else None


def _mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> float | None:
    return float(values.mean()) if len(values) else None


SCENES = Counting(
    name="scenes",
    source="ours, for drawn scenes and your own pictures",
    metrics={
        "miou": "mean IoU of the targeted expressions, of the mask itself, refused or not",
        "precision_0.5": (
            "share of the targeted expressions with an IoU of at least 0.5, of the mask itself"
        ),
        "oiou": (
            "sum of intersections over sum of unions of the targeted expressions, of the mask "
            "itself"
        ),
        "giou": (
            "mean IoU of all expressions, 0 where a targeted one is refused; "
            "an untargeted one scores 1 where refused, else 0"
        ),
        "ciou": (
            "sum of intersections over sum of unions of all expressions; "
            "refused: no intersection, and the union is the truth's pixels"
        ),
        "n_acc": "share of the untargeted expressions that were refused",
        "t_acc": "share of the targeted expressions that were not",
    },
    score=_scenes,
)
"""Drawn scenes and your own pictures."""
