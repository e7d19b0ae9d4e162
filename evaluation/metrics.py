"""The field's metrics for referring segmentation, by the protocol of each benchmark
(docs/guide/evaluate.md).

An expression is targeted where something is referred to. A model with a no-target head may refuse
it: then its mask counts as empty, except where a protocol says otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
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
        "mean IoU of all expressions, 0 where a targeted one is refused; an untargeted one scores 1"
        " where refused, else 0"
    ),
    "ciou": (
        "sum of intersections over sum of unions of all expressions; refused: no intersection, and"
        " the union is {}"
    ),
    "n_acc": "share of the untargeted expressions that were refused",
    "t_acc": "share of the targeted expressions that were not",
    "acc": "share of the untargeted expressions that were refused or got an empty mask",
}


@dataclass(frozen=True)
class Figures:
    """What is known of N answered expressions, int64 or bool [N] each; every metric follows from
    it.

    intersection: pixels of both mask and truth; predicted: of the mask, whatever the no-target head
    says; truth: of the truth; refused: the head says "no target"; targeted: something is referred
    to.
    """

    intersection: NDArray[np.int64]
    predicted: NDArray[np.int64]
    truth: NDArray[np.int64]
    refused: NDArray[np.bool_]
    targeted: NDArray[np.bool_]

    @property
    def union(self) -> NDArray[np.int64]:
        return self.predicted + self.truth - self.intersection

    @property
    def iou(self) -> NDArray[np.float64]:
        """Of the masks themselves; 0 where the union is empty, as the published scripts have it."""
        return self.intersection / np.maximum(self.union, 1)

    def part(self, chosen: NDArray[np.int64] | NDArray[np.bool_]) -> Figures:
        """The expressions of these indices, or where this mask says so."""
        return Figures(**{name: values[chosen] for name, values in vars(self).items()})

    def emptied(self) -> Figures:
        """The same with the masks of refused expressions made empty."""
        kept = ~self.refused
        return replace(self, intersection=self.intersection * kept, predicted=self.predicted * kept)

    def score(self, protocol: str) -> dict[str, float]:
        """The metrics of one of `PROTOCOLS` by name; those that have no expressions to stand on are
        left out.
        """
        found = PROTOCOLS[protocol].score(self)
        return {"samples": float(len(self.truth))} | {
            k: float(v) for k, v in found.items() if v is not None
        }


@dataclass
class Tally:
    """Figures that grow by one expression at a time."""

    rows: list[tuple[int, int, int, bool, bool]] = field(default_factory=list)

    def add(self, mask: Mask, truth: Mask, refused: bool, targeted: bool) -> None:
        """mask and truth bool [H, W]."""
        self.rows.append(
            (int((mask & truth).sum()), int(mask.sum()), int(truth.sum()), refused, targeted)
        )

    def figures(self) -> Figures:
        rows = np.array(self.rows, np.int64).reshape(-1, 5)
        return Figures(rows[:, 0], rows[:, 1], rows[:, 2], rows[:, 3] > 0, rows[:, 4] > 0)


@dataclass(frozen=True)
class Protocol:
    """How one benchmark counts. metrics: what each name means, in the order of the table; source:
    where it is from.
    """

    metrics: dict[str, str]
    source: str
    score: Callable[[Figures], dict[str, float | None]]


def _share(chosen: NDArray[np.bool_]) -> float | None:
    return float(chosen.mean()) if len(chosen) else None


def _ratio(intersection: NDArray[np.int64], union: NDArray[np.int64]) -> float | None:
    total = int(union.sum())
    return int(intersection.sum()) / total if total else None


def _mean(values: NDArray[np.float64]) -> float | None:
    return float(values.mean()) if len(values) else None


def _precisions(ious: NDArray[np.float64], limits: tuple[float, ...]) -> dict[str, float | None]:
    return {f"precision_{limit}": _share(ious >= limit) for limit in limits}


def _refcoco(all_: Figures) -> dict[str, float | None]:
    t = all_.part(all_.targeted)
    return {
        "miou": _mean(t.iou),
        "oiou": _ratio(t.intersection, t.union),
        **_precisions(t.iou, REFCOCO_LIMITS),
    }


def _no_target(a: Figures) -> dict[str, float | None]:
    return {"n_acc": _share(a.refused[~a.targeted]), "t_acc": _share(~a.refused[a.targeted])}


def _grefcoco(a: Figures) -> dict[str, float | None]:
    """As in ReLA: a refused mask has no intersection, but its pixels stay in the union; a rightly
    refused one has no union. The precisions are over the targeted expressions."""
    hit = a.intersection * (~a.refused & a.targeted)
    union = a.union * ~(a.refused & ~a.targeted)
    ious = np.where(a.targeted, hit / np.maximum(a.union, 1), a.refused)
    precisions = _precisions(ious[a.targeted], GREFCOCO_LIMITS)
    return {"giou": _mean(ious), "ciou": _ratio(hit, union), **_no_target(a), **precisions}


def _released(a: Figures) -> dict[str, float | None]:
    """The mask of a refused expression is empty before anything is counted."""
    e = a.emptied()
    ious = np.where(a.targeted, e.iou, a.refused)
    precisions = _precisions(ious[a.targeted], GREFCOCO_LIMITS)
    return {
        "giou": _mean(ious),
        "ciou": _ratio(e.intersection, e.union),
        **_no_target(a),
        **precisions,
    }


def _ref_zom(a: Figures) -> dict[str, float | None]:
    e = a.emptied()
    t = e.part(a.targeted)
    empty = e.predicted[~a.targeted] == 0
    return {"oiou": _ratio(t.intersection, t.union), "miou": _mean(t.iou), "acc": _share(empty)}


def _scenes(a: Figures) -> dict[str, float | None]:
    own, released = _refcoco(a), _released(a)
    return {name: (own if name in own else released)[name] for name in _SCENES}


def _means(
    *names: str, union: str = "the truth's pixels", refusable: bool = False
) -> dict[str, str]:
    found = {"samples": "expressions"}
    for name in names:
        key, _, limit = name.partition("_0.")
        key = "precision_refused" if refusable and key == "precision" else key
        found[name] = _MEANINGS[key].format(f"0.{limit}" if limit else union)
    return found


REFCOCO_LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9)
GREFCOCO_LIMITS = (0.7, 0.8, 0.9)
_SCENES = ("miou", "precision_0.5", "oiou", "giou", "ciou", "n_acc", "t_acc")
_GREFCOCO = ("giou", "ciou", "n_acc", "t_acc", *(f"precision_{limit}" for limit in GREFCOCO_LIMITS))
PROTOCOLS: dict[str, Protocol] = {
    "scenes": Protocol(
        _means(*_SCENES), "ours: RefCOCO's figures beside grefcoco-released's", _scenes
    ),
    "refcoco": Protocol(
        _means("miou", "oiou", *(f"precision_{limit}" for limit in REFCOCO_LIMITS)),
        "RefCOCO, RefCOCO+ and RefCOCOg, as LAVT's test script counts",
        _refcoco,
    ),
    "grefcoco": Protocol(
        _means(*_GREFCOCO, union="that of the mask before it was refused", refusable=True),
        "gRefCOCO, as ReLA's evaluator counts",
        _grefcoco,
    ),
    "grefcoco-released": Protocol(
        _means(*_GREFCOCO, refusable=True),
        "gRefCOCO with the masks of refused expressions emptied first, as the model's released code"
        " does",
        _released,
    ),
    "ref-zom": Protocol(
        _means("oiou", "miou", "acc")
        | {"miou": "mean IoU of the targeted expressions, 0 where refused"},
        "Ref-ZOM, as its paper describes it",
        _ref_zom,
    ),
}
