"""How far an array is from another one, and a mask from the reference's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.runtime.interpolate import Float
from ris.runtime.manifest import StageParity
from ris.runtime.masks import MaskRule, mask_from_logits
from ris.runtime.segmentation import Segmentation

STEP_IOU = 0.995
"""The mask IoU that is accepted where all pixels that flip are within reach of a step.

That is of the logits, where they lie behind a threshold (`GraphEntry.thresholded`).
"""


def compare(got: NDArray[Any], want: NDArray[Any]) -> StageParity:
    """How far `got` is from `want`, in float64.

    Arrays of different sizes, and values that are not finite, are infinitely far apart.
    """
    a, b = got.astype(np.float64).ravel(), want.astype(np.float64).ravel()
    if a.shape != b.shape or not np.isfinite(a).all():
        return StageParity(np.inf, np.inf, np.inf, 0.0)

    difference = np.abs(a - b)
    scale = np.sqrt((b * b).mean())
    error = np.sqrt((difference * difference).mean())
    norms = np.linalg.norm(a) * np.linalg.norm(b)
    # two arrays of zeros agree; one of them has no angle and no unit
    relative = error / scale if scale else (0.0 if error == 0 else np.inf)
    cosine = 1.0 if not norms and error == 0 else float(a @ b / norms) if norms else 0.0
    return StageParity(
        max_abs=float(difference.max()),
        mean_abs=float(difference.mean()),
        relative=float(relative),
        cosine=min(cosine, 1.0),
    )


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """Intersection over union; two empty masks agree."""
    union = int((a | b).sum())
    return float((a & b).sum() / union) if union else 1.0


@dataclass(frozen=True)
class MaskParity:
    """A mask beside the reference's."""

    relative: float
    """The error of its logits."""

    iou: float
    """The IoU of the two."""

    flipped: float
    """The share of pixels that differ."""

    beyond: float
    """The share of pixels that differ and that no step of the logits reaches."""

    def failures(self, iou: float, flipped: float, step: float) -> list[str]:
        """A sentence for what is out of tolerance.

        Args:
            iou: The IoU that is accepted.
            flipped: The share of pixels that may differ where it is not reached.
            step: As of `compare_mask`.
        """
        found = []
        if step and not self.relative <= step:  # beside a loud expression a quiet one weighs little
            found.append(
                f"the mask logits of an expression: relative error {self.relative:.2e}, accepted"
                f" {step:.0e}"
            )
        least = STEP_IOU if step and self.beyond <= flipped else iou
        if self.iou < least and self.flipped > flipped:
            found.append(f"mask IoU {self.iou:.5f}, accepted from {least:.5g}")
        return found


def compare_mask(result: Segmentation, want: Float, rule: MaskRule, step: float) -> MaskParity:
    """A mask beside that of the reference's logits.

    Args:
        result: The answer.
        want: The reference's logits, float32 [m, m].
        rule: The way from logits to a mask.
        step: The relative error of logits that may flip pixels; 0: none may.
    """
    height, width = result.mask.shape
    near = step * float(np.sqrt(np.square(want).mean()))
    wanted, surely, perhaps = (
        mask_from_logits(want + np.float32(by), height, width, rule) for by in (0.0, -near, near)
    )
    differs = result.mask != wanted
    return MaskParity(
        relative=compare(result.logits, want).relative,
        iou=mask_iou(result.mask, wanted),
        flipped=float(differs.mean()),
        beyond=float((differs & (surely == perhaps)).mean()),
    )
