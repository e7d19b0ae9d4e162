"""Masks out: logits to a mask of the image's size, COCO's run-length encoding, the overlay."""

from __future__ import annotations

from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from ris.runtime.interpolate import Float, resize_rows

COLOURS = (
    (230, 57, 70),
    (29, 132, 226),
    (42, 157, 92),
    (244, 162, 39),
    (142, 68, 200),
    (0, 180, 190),
)
"""Overlay colours, taken in turn when an image has several expressions."""

_STRIPE = 1 << 16  # pixels of full-size logits that are held at a time: they stay in the cache


class Rle(TypedDict):
    """COCO's compressed run-length encoding of a mask."""

    size: list[int]
    """[height, width]."""

    counts: str
    """The run lengths, as COCO's ASCII string."""


def resize_logits(logits: Float, height: int, width: int) -> Float:
    """Mask logits [m, m] -> [height, width], bilinear without antialiasing, float32."""
    return resize_rows(_widen(logits, width), height, "bilinear")


def mask_from_logits(
    logits: Float, height: int, width: int, threshold: float = 0.0
) -> NDArray[np.bool_]:
    """Mask logits as a mask of the image's size: bilinear, then above the threshold.

    Works in stripes of rows, so a 100-megapixel mask never needs its logits in memory at once.

    Args:
        logits: float32 [m, m].
        height: The mask's height.
        width: The mask's width.
        threshold: The logit above which a pixel belongs to the mask.

    Returns:
        bool [height, width].
    """
    wide = _widen(logits, width)
    mask = np.empty((height, width), np.bool_)
    step = max(1, _STRIPE // width)
    for start in range(0, height, step):
        rows = resize_rows(wide, height, "bilinear", start, min(start + step, height))
        np.greater(rows, np.float32(threshold), out=mask[start : start + step])
    return mask


def _widen(logits: Float, width: int) -> Float:
    """[m, m] -> [m, width]."""
    return np.ascontiguousarray(resize_rows(np.ascontiguousarray(logits.T), width, "bilinear").T)


def mask_score(logits: Float, threshold: float = 0.0) -> float:
    """Mean foreground probability over the low-resolution mask; 0 where it is empty."""
    inside = logits[logits > threshold]
    if not inside.size:
        return 0.0
    probabilities = 1 / (1 + np.exp(-inside.astype(np.float64)))
    return float(probabilities.mean())


def encode_rle(mask: NDArray[np.bool_]) -> Rle:
    """A mask, bool [H, W], as the string that pycocotools writes."""
    height, width = mask.shape
    flat = np.asarray(mask, np.bool_).ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0], changes, [flat.size]])
    runs = np.diff(edges).tolist()
    if flat.size and flat[0]:
        runs.insert(0, 0)  # counts begin with background
    return Rle(size=[height, width], counts=pack_counts(runs))


def decode_rle(rle: Rle) -> NDArray[np.bool_]:
    """The mask, bool [H, W], of what `encode_rle` or pycocotools wrote.

    Raises:
        ValueError: Where the counts do not fill the size.
    """
    height, width = rle["size"]
    runs = _unpack_counts(rle["counts"])
    if sum(runs) != height * width:
        raise ValueError(f"run lengths add up to {sum(runs)}, the mask has {height * width} pixels")
    values = np.arange(len(runs)) % 2 == 1
    return np.repeat(values, runs).reshape((height, width), order="F")


def pack_counts(runs: list[int]) -> str:
    """Run lengths, background first, as COCO's compressed string.

    The fourth run and all after it are written as the difference to the run two before. A number is
    signed and written in groups of 5 bits, the low ones first, as characters from '0' up; the bit
    0x20 says that more groups follow.
    """
    out = bytearray()
    for i, run in enumerate(runs):
        value = run - runs[i - 2] if i > 2 else run
        more = True
        while more:
            group = value & 0x1F
            value >>= 5
            more = value != (-1 if group & 0x10 else 0)
            out.append(group + (0x20 if more else 0) + 48)
    return out.decode("ascii")


def _unpack_counts(counts: str) -> list[int]:
    runs: list[int] = []
    position = 0
    while position < len(counts):
        value, shift, more = 0, 0, True
        while more:
            group = ord(counts[position]) - 48
            value |= (group & 0x1F) << shift
            more = bool(group & 0x20)
            position += 1
            shift += 5
        if group & 0x10:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
    return runs


def overlay(
    rgb: NDArray[np.uint8], mask: NDArray[np.bool_], colour: tuple[int, int, int]
) -> NDArray[np.uint8]:
    """The image with the mask tinted and its outline drawn, uint8 [H, W, 3]."""
    out = rgb.copy()
    tint = np.asarray(colour, np.uint16)
    out[mask] = (rgb[mask].astype(np.uint16) + tint) // 2
    radius = max(1, round(min(mask.shape) / 400))
    out[mask & ~_eroded(mask, radius)] = colour
    return out


def _eroded(mask: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    """The mask without its outermost pixels; the image's border does not count as an edge."""
    inner = mask.copy()
    for shift in range(1, radius + 1):
        inner[shift:] &= mask[:-shift]
        inner[:-shift] &= mask[shift:]
        inner[:, shift:] &= mask[:, :-shift]
        inner[:, :-shift] &= mask[:, shift:]
    return inner
