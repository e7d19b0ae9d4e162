"""The field's metrics for referring segmentation, summed over expressions.

Of a targeted expression (something is referred to) the mask counts; of an untargeted one only whether it was refused.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

Mask = NDArray[np.bool_]
METRICS: dict[str, str] = {
    "samples": "expressions",
    "miou": "mean IoU over targeted expressions, of the mask itself, refused or not",
    "precision_0.5": "share of targeted expressions with IoU above 0.5, of the mask itself",
    "oiou": "sum of intersections over sum of unions, targeted expressions, of the mask itself",
    "giou": "mean IoU over all expressions; refused: an empty mask; an untargeted one scores 1 where refused, else 0",
    "ciou": "sum of intersections over sum of unions over all expressions; refused: an empty mask",
    "n_acc": "share of untargeted expressions that were refused",
    "t_acc": "share of targeted expressions that were not",
}


def iou(mask: Mask, truth: Mask) -> float:
    """Intersection over union; 1 where both are empty."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 1.0


@dataclass
class Figures:
    """Grows by one expression at a time; `summary` gives the metrics by name."""

    ious: list[float] = field(default_factory=list)
    areas: list[tuple[int, int, int]] = field(default_factory=list)  # intersection, union, area of the mask
    refused: list[bool] = field(default_factory=list)
    targeted: list[bool] = field(default_factory=list)

    def add(self, mask: Mask, truth: Mask, refused: bool, targeted: bool) -> None:
        """mask and truth bool [H, W]; refused: the model says "no target"; targeted: there is one."""
        intersection, union = int((mask & truth).sum()), int((mask | truth).sum())
        self.ious.append(intersection / union if union else 1.0)
        self.areas.append((intersection, union, int(mask.sum())))
        self.refused.append(refused)
        self.targeted.append(targeted)

    def summary(self) -> dict[str, float]:
        """The metrics of `METRICS`, shares between 0 and 1; those without samples are left out."""
        targeted, refused = np.asarray(self.targeted, bool), np.asarray(self.refused, bool)
        ious, areas = np.asarray(self.ious), np.asarray(self.areas, np.int64).reshape(-1, 3)
        found: dict[str, float] = {"samples": float(len(targeted))}
        if targeted.any():
            found["miou"] = float(ious[targeted].mean())
            found["precision_0.5"] = float((ious[targeted] > 0.5).mean())
            found["oiou"] = _ratio(areas[targeted, 0].sum(), areas[targeted, 1].sum())
            found["t_acc"] = float(1 - refused[targeted].mean())
        if (~targeted).any():
            found["n_acc"] = float(refused[~targeted].mean())
        if len(targeted):
            found["giou"] = float(np.where(targeted, np.where(refused, 0.0, ious), refused.astype(float)).mean())
            truth_area = areas[:, 1] - areas[:, 2] + areas[:, 0]
            intersections = np.where(refused, 0, areas[:, 0])
            unions = np.where(refused, truth_area, areas[:, 1])
            found["ciou"] = _ratio(intersections.sum(), unions.sum())
        return {name: found[name] for name in METRICS if name in found}


def _ratio(intersection: int, union: int) -> float:
    return float(intersection / union) if union else 1.0
