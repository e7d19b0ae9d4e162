"""The field's metrics for referring segmentation, by the protocol of each benchmark.

An expression is targeted where something is referred to. A model with a no-target head may refuse
it: then its mask counts as empty, except where a protocol says otherwise. The formulas are in
docs/reference/evaluation.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
"""bool [H, W]."""

# what a metric is, for tables; {} is a limit of IoU, or what the union of a refused mask is
_MEANINGS = {
    "miou": "mean IoU of the targeted expressions, of the mask itself, refused or not",
    "oiou": (
        "sum of intersections over sum of unions of the targeted expressions, of the mask itself"
    ),
    "precision": "share of the targeted expressions with an IoU of at least {}, of the mask itself",
    "precision_refused": (
        "share of the targeted expressions with an IoU of at least {}, 0 where refused"
    ),
    "giou": (
        "mean IoU of all expressions, 0 where a targeted one is refused; "
        "an untargeted one scores 1 where refused, else 0"
    ),
    "ciou": (
        "sum of intersections over sum of unions of all expressions; "
        "refused: no intersection, and the union is {}"
    ),
    "n_acc": "share of the untargeted expressions that were refused",
    "t_acc": "share of the targeted expressions that were not",
    "acc": "share of the untargeted expressions that were refused or got an empty mask",
}


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
        """Of the masks themselves, [N]; 0 where the union is empty, as in the published scripts."""
        return self.intersection / np.maximum(self.union, 1)

    def part(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Figures:
        """The expressions of these indices, or those where a bool [N] is true."""
        return Figures(**{name: values[chosen] for name, values in vars(self).items()})

    def emptied(self) -> Figures:
        """The same with the masks of refused expressions made empty."""
        kept = ~self.refused
        return replace(self, intersection=self.intersection * kept, predicted=self.predicted * kept)

    def score(self, protocol: str) -> dict[str, float]:
        """The metrics of one of `PROTOCOLS` by name.

        Metrics without any expression to be computed from are left out.
        """
        scores = {"samples": float(len(self.truth))}
        for name, value in PROTOCOLS[protocol].score(self).items():
            if value is not None:
                scores[name] = float(value)
        return scores


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
class Protocol:
    """How one benchmark counts."""

    metrics: dict[str, str]
    """Metric -> what it means, in the order of the table."""

    source: str
    """Where the way of counting is from."""

    score: Callable[[Figures], dict[str, float | None]]
    """Computes the metrics; None for one without any expression to be computed from."""


# None, not 0, where nothing is there to be averaged: such a metric is left out of the scores


def _share(chosen: NDArray[np.bool_]) -> float | None:
    return float(chosen.mean()) if len(chosen) else None


def _ratio(intersection: NDArray[np.int64], union: NDArray[np.int64]) -> float | None:
    total = int(union.sum())
    return int(intersection.sum()) / total if total else None


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _precision_names(limits: tuple[float, ...]) -> list[str]:
    return [f"precision_{limit}" for limit in limits]


def _precisions(ious: NDArray[np.float64], limits: tuple[float, ...]) -> dict[str, float | None]:
    """The share of the IoUs from each limit on, as Pr@X."""
    names = _precision_names(limits)
    return {name: _share(ious >= limit) for name, limit in zip(names, limits, strict=True)}


def _refcoco(figures: Figures) -> dict[str, float | None]:
    targeted = figures.part(figures.targeted)
    return {
        "miou": _mean(targeted.iou),
        "oiou": _ratio(targeted.intersection, targeted.union),
        **_precisions(targeted.iou, REFCOCO_LIMITS),
    }


def _no_target(figures: Figures) -> dict[str, float | None]:
    return {
        "n_acc": _share(figures.refused[~figures.targeted]),
        "t_acc": _share(~figures.refused[figures.targeted]),
    }


def _grefcoco(figures: Figures) -> dict[str, float | None]:
    """As in ReLA.

    A refused mask has no intersection, but its pixels stay in the union; a rightly refused one has
    no union. The precisions are over the targeted expressions.
    """
    refused, targeted = figures.refused, figures.targeted
    hit = figures.intersection * (~refused & targeted)
    union = figures.union * ~(refused & ~targeted)
    ious = np.where(targeted, hit / np.maximum(figures.union, 1), refused)
    return {
        "giou": _mean(ious),
        "ciou": _ratio(hit, union),
        **_no_target(figures),
        **_precisions(ious[targeted], GREFCOCO_LIMITS),
    }


def _released(figures: Figures) -> dict[str, float | None]:
    """The mask of a refused expression is empty before anything is counted."""
    emptied = figures.emptied()
    ious = np.where(figures.targeted, emptied.iou, figures.refused)
    return {
        "giou": _mean(ious),
        "ciou": _ratio(emptied.intersection, emptied.union),
        **_no_target(figures),
        **_precisions(ious[figures.targeted], GREFCOCO_LIMITS),
    }


def _ref_zom(figures: Figures) -> dict[str, float | None]:
    emptied = figures.emptied()
    targeted = emptied.part(figures.targeted)
    empty = emptied.predicted[~figures.targeted] == 0
    return {
        "oiou": _ratio(targeted.intersection, targeted.union),
        "miou": _mean(targeted.iou),
        "acc": _share(empty),
    }


def _scenes(figures: Figures) -> dict[str, float | None]:
    own, released = _refcoco(figures), _released(figures)
    return {name: (own if name in own else released)[name] for name in _SCENES}


def _means(
    *names: str, union: str = "the truth's pixels", refusable: bool = False
) -> dict[str, str]:
    """Metric -> what it means, for these metrics and the number of expressions.

    Args:
        names: The metrics, in order.
        union: What the union of a refused mask is, for "ciou".
        refusable: Whether the precisions are 0 where an expression is refused.
    """
    found = {"samples": "expressions"}
    for name in names:
        key, _, limit = name.partition("_0.")
        if key == "precision" and refusable:
            key = "precision_refused"
        found[name] = _MEANINGS[key].format(f"0.{limit}" if limit else union)
    return found


REFCOCO_LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""The X of RefCOCO's Pr@X."""

GREFCOCO_LIMITS = (0.7, 0.8, 0.9)
"""The X of gRefCOCO's Pr@X."""

_SCENES = ("miou", "precision_0.5", "oiou", "giou", "ciou", "n_acc", "t_acc")
_GREFCOCO = ("giou", "ciou", "n_acc", "t_acc", *_precision_names(GREFCOCO_LIMITS))

PROTOCOLS: dict[str, Protocol] = {
    "scenes": Protocol(
        metrics=_means(*_SCENES),
        source="ours: RefCOCO's figures beside grefcoco-released's",
        score=_scenes,
    ),
    "refcoco": Protocol(
        metrics=_means("miou", "oiou", *_precision_names(REFCOCO_LIMITS)),
        source="RefCOCO, RefCOCO+ and RefCOCOg, as LAVT's test script counts",
        score=_refcoco,
    ),
    "grefcoco": Protocol(
        metrics=_means(*_GREFCOCO, union="that of the mask before it was refused", refusable=True),
        source="gRefCOCO, as ReLA's evaluator counts",
        score=_grefcoco,
    ),
    "grefcoco-released": Protocol(
        metrics=_means(*_GREFCOCO, refusable=True),
        source=(
            "gRefCOCO with the masks of refused expressions emptied first, "
            "as the model's released code does"
        ),
        score=_released,
    ),
    "ref-zom": Protocol(
        metrics=_means("oiou", "miou", "acc")
        | {"miou": "mean IoU of the targeted expressions, 0 where refused"},
        source="Ref-ZOM, as its paper describes it",
        score=_ref_zom,
    ),
}
"""Name, as `--protocol` takes it -> how that benchmark counts."""
