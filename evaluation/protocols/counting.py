"""What the published evaluators make of their answers: I and U of each, and the figures of all.

I and U are the pixels of the intersection and the union of a mask and its truth. The evaluators
differ in what a refusal does to them, in what is added to U, and in the kind of their numbers;
every formula keeps its evaluator's order of operations, because that decides about exact ratios.
Answers are in the order in which the evaluator asks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from ris.evaluation.metrics import Figures

Metrics: TypeAlias = dict[str, float]
"""Figure -> value, under the names of the evaluator's own output."""

LIMITS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""The X of precision at X."""


@dataclass(frozen=True)
class Counted:
    """Answers as an evaluator adds them up."""

    intersection: NDArray[np.int64]
    """What is added to the sum of intersections, int64 [N]."""

    union: NDArray[np.int64]
    """What is added to the sum of unions, int64 [N]."""

    iou: NDArray[np.floating]
    """What is added to the sum of IoUs, float64 [N]; float32 for the released code."""

    @property
    def sums(self) -> tuple[int, int]:
        """The sum of intersections, and that of unions."""
        return int(self.intersection.sum()), int(self.union.sum())


Count = Callable[[Figures], Counted]
"""What each answer adds."""

Sum = Callable[[Figures], Metrics]
"""The figures of all answers."""


def plain(figures: Figures) -> Counted:
    """LAVT and DMMI: the mask itself, IoU 0 where the union is empty."""
    return Counted(figures.intersection, figures.union, figures.iou)


def softened(figures: Figures) -> Counted:
    """CGFormer: 1e-6 is added to the union."""
    iou = figures.intersection / (figures.union + 1e-6)
    return Counted(figures.intersection, figures.union, iou)


def generalised(figures: Figures) -> Counted:
    """ReLA: a refusal is 1 where it is right, else 0; a wrong one leaves the mask in the union."""
    right = figures.refused & ~figures.targeted
    counts = figures.targeted & ~figures.refused
    iou = np.where(counts, figures.iou, right.astype(np.float64))
    return Counted(figures.intersection * counts, figures.union * ~right, iou)


def emptied(figures: Figures) -> Counted:
    """The released code: the mask of a refused expression is empty before anything is counted."""
    kept = figures.emptied()
    union = kept.union
    iou = kept.intersection.astype(np.float32) / (union.astype(np.float32) + np.float32(1e-6))
    return Counted(kept.intersection, union, iou)


def nothing_is_right(figures: Figures) -> Counted:
    """LISA: 1e-5 is added to the union, and IoU is 1 where there is no pixel at all."""
    union = figures.union
    iou = np.where(union == 0, 1.0, figures.intersection / (union + 1e-5))
    return Counted(figures.intersection, union, iou)


def _overall(counted: Counted) -> float:
    """The sum of intersections over that of unions, in percent."""
    intersection, union = counted.sums
    return intersection * 100 / union if union else float("nan")


def _percent(hits: NDArray[np.bool_]) -> float:
    return int(hits.sum()) * 100 / len(hits) if len(hits) else float("nan")


def _mean(values: NDArray[np.floating] | NDArray[np.bool_]) -> float:
    return float(np.mean(values)) if len(values) else float("nan")


def _counts(counted: Counted) -> Metrics:
    intersection, union = counted.sums
    return {"cum_I": intersection, "cum_U": union, "count": len(counted.iou)}


def lavt_metrics(figures: Figures) -> Metrics:
    """oIoU, mIoU and Pr@X over all sentences, float64, percent."""
    counted = plain(figures)
    found = {"oIoU": _overall(counted), "mIoU": 100 * _mean(counted.iou)}
    found |= {f"Pr@{limit}": _percent(counted.iou >= limit) for limit in LIMITS}
    return found | _counts(counted)


def dmmi_zom_metrics(figures: Figures) -> Metrics:
    """LAVT's figures over the targeted sentences; Acc, the share of the others with no pixel."""
    empty = figures.predicted[~figures.targeted] == 0
    found = lavt_metrics(figures.part(figures.targeted))
    return found | {"acc": 100 * _mean(empty), "zero_count": len(empty)}


def cgformer_metrics(figures: Figures) -> Metrics:
    """oIoU and mIoU in float64; Pr@X with IoU above X, the limits and the mean in float32."""
    counted = softened(figures)
    intersection, union = counted.sums
    found = {
        "oIoU": 100 * (intersection / union) if union else float("nan"),
        "mIoU": 100 * _mean(counted.iou),
    }
    for limit in LIMITS:
        hits = (counted.iou > float(np.float32(limit))).astype(np.float32)
        found[f"Pr@{round(limit * 100)}"] = 100 * _mean(hits)
    return found | _counts(counted)


def lisa_metrics(figures: Figures) -> Metrics:
    """cIoU and gIoU in percent, each with something added to what it is divided by."""
    counted = nothing_is_right(figures)
    intersection, union = counted.sums
    found = {
        "gIoU": 100 * float(counted.iou.sum()) / (len(counted.iou) + 1e-5),
        "cIoU": 100 * intersection / (union + 1e-10),
    }
    return found | _counts(counted)


def rela_metrics(figures: Figures) -> Metrics:
    """gIoU, cIoU and Pr@X in percent; T_acc and N_acc as shares, 0 without an untargeted one."""
    counted, targeted = generalised(figures), figures.targeted
    found = {"gIoU": 100 * _mean(counted.iou), "cIoU": _overall(counted)}
    found |= {"T_acc": 0.0, "N_acc": 0.0}
    if not targeted.all():
        found["T_acc"] = _mean(~figures.refused[targeted])
        found["N_acc"] = _mean(figures.refused[~targeted])
    for limit in (0.7, 0.8, 0.9):
        found[f"Pr@{limit}"] = _percent(counted.iou[targeted] >= limit)
    return found | {"count": len(targeted)}


def released_metrics(figures: Figures) -> Metrics:
    """mIoU, gIoU, cIoU and precision@X over all sentences in float32, sums in order, percent."""
    counted = emptied(figures)
    hundred, number = np.float32(100), np.float32(len(counted.iou))
    intersection, union = map(np.float32, counted.sums)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = {
            f"precision@{limit}": np.float32((counted.iou >= np.float32(limit)).sum())
            * hundred
            / number
            for limit in LIMITS
        }
        found["cIoU"] = intersection * hundred / union
        found["mIoU"] = _in_order(counted.iou) * hundred / number
        found["gIoU"] = _in_order(_gains(counted)) * hundred / number
    shares = {name: float(value) for name, value in found.items()}
    return shares | {"gres_acc": 0.0} | _counts(counted)


def _gains(counted: Counted) -> NDArray[np.float32]:
    """What each answer adds to gIoU, float32 [N]: 1 where there is no pixel at all."""
    union = counted.union.astype(np.float32)
    gains = counted.intersection.astype(np.float32) / (union + np.float32(1e-5))
    found: NDArray[np.float32] = np.where(counted.union == 0, np.float32(1), gains)
    return found


def _in_order(values: NDArray[np.floating]) -> np.float32:
    """The sum in float32, one value after the other; numpy's own sum adds in pairs."""
    if not len(values):
        return np.float32(0)
    return np.float32(np.add.accumulate(values, dtype=np.float32)[-1])


def released_zom_metrics(figures: Figures) -> Metrics:
    """The released code's branch for Ref-ZOM: targeted ones alone, and gres_acc of the others."""
    empty = figures.emptied().predicted[~figures.targeted] == 0
    found = released_metrics(figures.part(figures.targeted))
    found |= {f"precision@{limit}": 0.0 for limit in LIMITS} | {"gIoU": 0.0}
    found["gres_acc"] = int(empty.sum()) * 100 / (len(empty) + 1e-4)
    return found | {"zero_count": len(empty)}
