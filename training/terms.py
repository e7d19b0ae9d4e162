"""Terms that the losses and the matching share."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def dice(logits: Tensor, target: Tensor, smooth: float = 1.0) -> Tensor:
    """1 - Dice of sigmoid(logits) with target over the last axis: both [..., P] -> [...]."""
    probability = logits.sigmoid()
    overlap = (probability * target).sum(-1)
    return 1 - (2 * overlap + smooth) / (probability.sum(-1) + target.sum(-1) + smooth)


def no_target_loss(logits: Tensor, targeted: Tensor, classes: tuple[float, float]) -> Tensor:
    """Weighted cross entropy; class 1 means "no target".

    Args:
        logits: [N, 2].
        targeted: Whether the expression refers to anything, bool [N].
        classes: Weights of the two classes.
    """
    weight = torch.tensor(classes, dtype=torch.float32, device=logits.device)
    return F.cross_entropy(logits.float(), (~targeted).long(), weight=weight)
