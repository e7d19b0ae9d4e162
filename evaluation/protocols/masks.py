"""Answers as masks of the size at which an evaluator compares them.

A model's own logits are resized as the model's released code does (`MaskRule`). CGFormer's
evaluator resizes probabilities bicubically with aligned corners.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from ris.evaluation.protocols.truths import OWN, Mask, Side, nearest
from ris.runtime.masks import PLAIN, MaskRule, mask_from_logits, resize_logits

Floats = NDArray[np.float32]
"""float32 [H, W]."""

CGFORMER_SIDE = 480
"""The side of the logits that CGFormer's evaluator is given."""

CGFORMER_RULE = MaskRule("probabilities", "bicubic", align_corners=True, threshold=0.5)
"""How CGFormer's evaluator makes a mask of them."""

INSIDE, OUTSIDE = 4.0, -6.0
"""The logits that a mask stands for where CGFormer's evaluator wants logits."""


def from_logits(logits: Floats, side: Side, size: tuple[int, int], rule: MaskRule = PLAIN) -> Mask:
    """A model's mask at the size of an evaluator.

    Args:
        logits: float32 [m, n], of the picture alone.
        side: Where the evaluator compares.
        size: The image's (height, width).
        rule: The model's own way from logits to a mask, without a letterbox.
    """
    if side == OWN:
        return mask_from_logits(logits, *size, rule)
    if side is not None:
        return mask_from_logits(logits, side, side, rule)
    square = resize_logits(logits, CGFORMER_SIDE, CGFORMER_SIDE, rule)
    return mask_from_logits(square - np.float32(_logit(rule)), *size, CGFORMER_RULE)


def _logit(rule: MaskRule) -> float:
    """The logit above which a place of the logits is inside, by a rule's threshold."""
    share = rule.threshold
    if rule.of == "logits":
        return share
    if share in (0, 1):  # above 0 is everything, above 1 nothing
        return -math.inf if share == 0 else math.inf
    return math.log(share / (1 - share))


def from_mask(mask: Mask, side: Side, size: tuple[int, int]) -> Mask:
    """A mask of some size at the size of an evaluator.

    One that has that size already stays as it is. It is resized by nearest neighbour; for CGFormer
    it stands for logits, which are resized as that does.

    Args:
        mask: bool [h, w].
        side: As in `from_logits`.
        size: The image's (height, width).
    """
    wanted = (side, side) if isinstance(side, int) else size
    if mask.shape == wanted:
        return mask
    if side is not None:
        return nearest(mask, wanted)
    logits = np.where(mask, np.float32(INSIDE), np.float32(OUTSIDE))
    return mask_from_logits(logits, *size, CGFORMER_RULE)
