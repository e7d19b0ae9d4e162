"""Masks out: logits to a mask of the image's size, COCO's run-length encoding, the overlay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypedDict

import numpy as np
from numpy.typing import NDArray

from ris.runtime.interpolate import Float, Mode, resize_rows
from ris.runtime.letterbox import letterbox_size

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


@dataclass(frozen=True)
class MaskRule:
    """The way from mask logits to a mask; a manifest has it (`Manifest.mask_rule`).

    Logits of a letterbox are resized to its side and cut to the picture's part. Then logits, or
    their probabilities, are resized to the mask's size and compared with a threshold.
    """

    of: Literal["logits", "probabilities"] = "logits"
    """What is resized and compared. Probabilities are the sigmoids of the logits."""

    interpolation: Mode = "bilinear"
    """How it is resized."""

    align_corners: bool = False
    """Whether corners lie on corners, as torch's interpolate says it."""

    threshold: float = 0.0
    """What a pixel of the mask is above: a logit, or a probability from 0 to 1."""

    letterbox: int | None = None
    """The side of the letterbox that the logits are of; None: they are of the picture alone."""


PLAIN = MaskRule()
"""Logits, bilinear, above 0."""

Size = tuple[int, int]
"""A height and a width in pixels."""


def logits_of_picture(logits: Float, rule: MaskRule, picture: Size) -> Float:
    """The logits [m, m] of the picture alone: those of a letterbox at its side, cut.

    What else the rule says holds for the result as for the logits.

    Args:
        logits: float32 [m, m].
        rule: Their rule.
        picture: The picture's size.
    """
    side = rule.letterbox
    if side is None:
        return logits
    height, width = letterbox_size(*picture, side)
    wide = np.ascontiguousarray(_widen(logits, side, rule)[:, :width])
    return resize_rows(wide, side, rule.interpolation, 0, height, rule.align_corners)


def resize_logits(
    logits: Float, height: int, width: int, rule: MaskRule = PLAIN, picture: Size | None = None
) -> Float:
    """Mask logits [m, m] -> [height, width], float32, resized as the rule says.

    Args:
        logits: float32 [m, m].
        height: The new height.
        width: The new width.
        rule: How to resize; what it is of is not heeded.
        picture: The picture's size, for logits of a letterbox. None: (height, width).
    """
    part = logits_of_picture(logits, rule, picture or (height, width))
    return _resized(part, height, width, rule)


def resize_values(
    logits: Float, height: int, width: int, rule: MaskRule = PLAIN, picture: Size | None = None
) -> Float:
    """What is compared with the rule's threshold, float32 [height, width]: logits or probabilities.

    Bicubic probabilities may lie a little outside 0 and 1.

    Args:
        logits: float32 [m, m].
        height: The new height.
        width: The new width.
        rule: What is resized, and how.
        picture: The picture's size, for logits of a letterbox. None: (height, width).
    """
    part = logits_of_picture(logits, rule, picture or (height, width))
    return _resized(_values(part, rule), height, width, rule)


def mask_from_logits(
    logits: Float, height: int, width: int, rule: MaskRule = PLAIN, picture: Size | None = None
) -> NDArray[np.bool_]:
    """Mask logits as a mask of the image's size.

    Works in stripes of rows, so a 100-megapixel mask never needs its logits in memory at once.

    Args:
        logits: float32 [m, m].
        height: The mask's height.
        width: The mask's width.
        rule: The way from logits to a mask.
        picture: The picture's size, for logits of a letterbox. None: (height, width).

    Returns:
        bool [height, width].
    """
    part = logits_of_picture(logits, rule, picture or (height, width))
    wide = _widen(_values(part, rule), width, rule)
    mask = np.empty((height, width), np.bool_)
    step = max(1, _STRIPE // width)
    for start in range(0, height, step):
        stop = min(start + step, height)
        rows = resize_rows(
            wide, height, rule.interpolation, start, stop, align_corners=rule.align_corners
        )
        np.greater(rows, np.float32(rule.threshold), out=mask[start:stop])
    return mask


def _values(logits: Float, rule: MaskRule) -> Float:
    """The logits, or their probabilities, float32; computed in double, so that libris's agree."""
    return logits if rule.of == "logits" else _sigmoid(logits).astype(np.float32)


def _sigmoid(logits: Float) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):  # the infinity below gives a probability of 0
        return 1 / (1 + np.exp(-logits.astype(np.float64)))


def _resized(values: Float, height: int, width: int, rule: MaskRule) -> Float:
    wide = _widen(values, width, rule)
    return resize_rows(wide, height, rule.interpolation, align_corners=rule.align_corners)


def _widen(values: Float, width: int, rule: MaskRule) -> Float:
    """[h, w] -> [h, width]."""
    turned = np.ascontiguousarray(values.T)
    wide = resize_rows(turned, width, rule.interpolation, align_corners=rule.align_corners)
    return np.ascontiguousarray(wide.T)


def mask_score(logits: Float, rule: MaskRule = PLAIN, picture: Size = (1, 1)) -> float:
    """Mean foreground probability over the low-resolution mask; 0 where it is empty.

    Args:
        logits: float32 [m, m].
        rule: The way from logits to a mask.
        picture: The picture's size. Of a letterbox's logits those count that see some of it.
    """
    if (side := rule.letterbox) is not None:
        height, width = letterbox_size(*picture, side)
        rows, columns = logits.shape
        logits = logits[: -(-height * rows // side), : -(-width * columns // side)]
    inside = logits[_values(logits, rule) > np.float32(rule.threshold)]
    return float(_sigmoid(inside).mean()) if inside.size else 0.0


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
