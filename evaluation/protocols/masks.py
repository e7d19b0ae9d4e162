"""Answers as masks of the size at which an evaluator compares them.

A model's own logits are resized as the model's released code does, bilinearly without aligned
corners. CGFormer's evaluator resizes probabilities bicubically with aligned corners.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.evaluation.protocols.truths import Mask, nearest
from ris.runtime.masks import mask_from_logits, resize_logits

Floats = NDArray[np.float32]
"""float32 [H, W]."""

CGFORMER_SIDE = 480
"""The side of the logits that CGFormer's evaluator is given."""

INSIDE, OUTSIDE = 4.0, -6.0
"""The logits that a mask stands for where CGFormer's evaluator wants logits."""


def from_logits(
    logits: Floats, side: int | None, size: tuple[int, int], threshold: float = 0.0
) -> Mask:
    """A model's mask at the size of an evaluator.

    Args:
        logits: float32 [m, m].
        side: The side of the evaluator's square; None for CGFormer's, the image's own size.
        size: The image's (height, width).
        threshold: The logit above which a pixel belongs to the mask.
    """
    if side is not None:
        return mask_from_logits(logits, side, side, threshold)
    square = resize_logits(logits, CGFORMER_SIDE, CGFORMER_SIDE)
    return above_half(square - np.float32(threshold), size)


def from_mask(mask: Mask, side: int | None, size: tuple[int, int]) -> Mask:
    """A mask of some size at the size of an evaluator.

    One that has that size already stays as it is. For a square it is resized by nearest neighbour;
    for the image's own size it stands for logits, which are resized as CGFormer does.

    Args:
        mask: bool [h, w].
        side: As in `from_logits`.
        size: The image's (height, width).
    """
    wanted = size if side is None else (side, side)
    if mask.shape == wanted:
        return mask
    if side is not None:
        return nearest(mask, side)
    return _resized_above_half(np.where(mask, _probability(INSIDE), _probability(OUTSIDE)), size)


def above_half(logits: Floats, size: tuple[int, int]) -> Mask:
    """Where CGFormer's evaluator sees an object: probabilities, resized, above a half.

    Args:
        logits: float32 [h, w].
        size: The (height, width) of the mask.
    """
    return _resized_above_half(_probability(logits), size)


def _probability(logits: Any) -> Any:
    return 1 / (1 + np.exp(-np.asarray(logits, np.float32)))


def _resized_above_half(probabilities: Floats, size: tuple[int, int]) -> Mask:
    found: Mask = _resized(_resized(probabilities, size[0]).T, size[1]).T > 0.5
    return found


def _resized(values: Floats, target: int) -> Floats:
    """The rows of [h, w] resized to [target, w].

    The four taps are added up one by one: a product of matrices would wait for BLAS's threads, of
    which every worker has its own.
    """
    at, weights = _taps(values.shape[0], target)
    found = weights[0][:, None] * values[at[0]]
    for tap in (1, 2, 3):
        found += weights[tap][:, None] * values[at[tap]]
    return found


@functools.lru_cache(maxsize=64)
def _taps(source: int, target: int) -> tuple[NDArray[np.int64], Floats]:
    """Of a bicubic resize with aligned corners: which rows, int64 [4, target], how much of each."""
    at = np.arange(target) * ((source - 1) / (target - 1) if target > 1 else 0.0)
    first = np.floor(at).astype(np.int64)
    t = at - first
    weights = np.stack([_far(t + 1), _near(t), _near(1 - t), _far(2 - t)])
    rows = np.stack([first - 1, first, first + 1, first + 2])
    return np.clip(rows, 0, source - 1), weights.astype(np.float32)


_A = -0.75


def _far(d: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((_A * d - 5 * _A) * d + 8 * _A) * d - 4 * _A


def _near(d: NDArray[np.float64]) -> NDArray[np.float64]:
    return ((_A + 2) * d - (_A + 3)) * d * d + 1
