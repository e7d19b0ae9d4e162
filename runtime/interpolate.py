"""Bilinear and bicubic resizing as torch.nn.functional.interpolate does it.

That is without antialiasing, with or without `align_corners`, and with a = -0.75 where it is
bicubic. Source coordinates are computed in float32, as torch does, so the weights agree to the last
bits.

Resizing is a separable linear map. For a feature map it is two small matrix products. For an image
or a mask it gathers a few rows for each output row, which is cheaper where the matrix would be
almost empty.
"""

from __future__ import annotations

import functools
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Mode = Literal["bilinear", "bicubic"]
"""How an array is resized."""

MODES: tuple[Mode, ...] = ("bilinear", "bicubic")
"""Every `Mode`."""

Float = NDArray[np.float32]
"""An array of float32."""


@functools.lru_cache(maxsize=64)
def taps(
    source: int, target: int, mode: Mode, align_corners: bool = False
) -> tuple[NDArray[np.intp], Float]:
    """What each of `target` outputs is made of.

    Args:
        source: The number of inputs.
        target: The number of outputs.
        mode: How to resize.
        align_corners: The first and the last output are the first and the last input.

    Returns:
        Source indices and their weights, both [target, 2 or 4]. Indices past the border are clamped
        to it.

    Raises:
        ValueError: For an unknown mode.
    """
    place = np.arange(target, dtype=np.float32)
    if align_corners:
        gaps = np.float32(target - 1)
        position = (np.float32(source - 1) / gaps if gaps else np.float32(0)) * place
    else:
        scale = np.float32(source) / np.float32(target)
        position = scale * (place + np.float32(0.5)) - np.float32(0.5)
    if mode == "bilinear":
        position = np.maximum(position, np.float32(0))
        first = np.floor(position)
        t = position - first
        weights = np.stack([1 - t, t], -1)
        offsets = np.arange(0, 2)
    elif mode == "bicubic":
        first = np.floor(position)
        t = position - first
        weights = np.stack([_outer(t + 1), _inner(t), _inner(1 - t), _outer(2 - t)], -1)
        offsets = np.arange(-1, 3)
    else:
        raise ValueError(f"unknown interpolation {mode!r}; there are {', '.join(MODES)}")

    indices = np.clip(first.astype(np.intp)[:, None] + offsets, 0, source - 1)
    weights = weights.astype(np.float32)
    indices.setflags(write=False)  # the cache hands out the arrays themselves
    weights.setflags(write=False)
    return indices, weights


def _inner(x: Float) -> Float:
    """Keys' cubic kernel with a = -0.75 for |x| <= 1."""
    return ((np.float32(1.25) * x - np.float32(2.25)) * x) * x + np.float32(1)


def _outer(x: Float) -> Float:
    """Keys' cubic kernel with a = -0.75 for 1 < |x| < 2."""
    a = np.float32(-0.75)
    return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a


@functools.lru_cache(maxsize=64)
def matrix(source: int, target: int, mode: Mode) -> Float:
    """The same map as a dense [target, source] matrix; rows sum to one."""
    indices, weights = taps(source, target, mode)
    dense = np.zeros((target, source), np.float32)
    np.add.at(dense, (np.arange(target)[:, None], indices), weights)
    dense.setflags(write=False)
    return dense


def resize_maps(maps: Float, height: int, width: int, mode: Mode) -> Float:
    """Resizes feature maps by two matrix products a map.

    A map's products are small enough (below 2**18 multiplications at full size) for numpy's
    OpenBLAS to use the calling thread alone. Its other threads would go on waiting busily for some
    25 ms, on the cores that the mask decoder needs.

    Args:
        maps: float32 [..., h, w].
        height: The new height.
        width: The new width.
        mode: How to resize.

    Returns:
        float32 [..., height, width]; `maps` itself where it has that size.
    """
    h, w = maps.shape[-2:]
    if (h, w) == (height, width):
        return maps
    wide = np.ascontiguousarray(maps, np.float32) @ matrix(w, width, mode).T
    return matrix(h, height, mode) @ wide


def resize_rows(
    array: Float | NDArray[np.uint8],
    target: int,
    mode: Mode,
    start: int = 0,
    stop: int | None = None,
    align_corners: bool = False,
) -> Float:
    """Resizes axis 0 of an array, or a part of that.

    Args:
        array: [h, ...].
        target: The new number of rows.
        mode: How to resize.
        start: The first row of the result to compute.
        stop: The row of the result before which to stop; None for all that are left.
        align_corners: The first and the last row of the result are those of the array.

    Returns:
        The rows from `start` to `stop`, float32.
    """
    indices, weights = taps(array.shape[0], target, mode, align_corners)
    indices, weights = indices[start:stop], weights[start:stop]
    shape = (len(indices),) + (1,) * (array.ndim - 1)

    out = array[indices[:, 0]].astype(np.float32, copy=False)
    out *= weights[:, 0].reshape(shape)
    term = np.empty_like(out)
    for tap in range(1, indices.shape[1]):
        term[...] = array[indices[:, tap]]
        term *= weights[:, tap].reshape(shape)
        out += term
    return out
