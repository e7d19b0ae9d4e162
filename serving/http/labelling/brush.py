"""Masks as Label Studio's brush has them: the run lengths of an RGBA picture, bit by bit.

The format is that of the package rle-pack, which Label Studio's page reads. What is written here
is, byte for byte, what `label_studio_sdk.converter.brush.mask2rle` writes, but made by numpy: that
one builds a text of zeros and ones in Python, and brings pandas and OpenCV.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CHANNELS = 4
_SIZES = (3, 4, 8, 16)  # bits of a run's length, by the two bits that say which
_VALUE_BITS = 8
_LONGEST = 1 << _SIZES[-1]


def brush_rle(mask: NDArray[np.bool_]) -> list[int]:
    """A mask, bool [H, W], as the numbers 0 to 255 of a brush region's `rle`.

    All four channels are 255 where the mask is True, and 0 elsewhere.
    """
    flat = mask.reshape(-1)
    header = _bits(_header(flat.size * _CHANNELS))
    if not flat.size:
        return _bytes(header)
    lengths, values = _runs(flat)
    pieces, widths = _pieces(lengths, values)
    return _bytes(np.concatenate([header, _packed(pieces, widths)]))


def _header(count: int) -> str:
    """How many values there are, the bits of each, and the bits of each size of a run."""
    sizes = "".join(f"{size - 1:04b}" for size in _SIZES)
    return f"{count:032b}{_VALUE_BITS - 1:05b}{sizes}"


def _bits(text: str) -> NDArray[np.uint8]:
    return np.frombuffer(text.encode(), np.uint8) - np.uint8(ord("0"))


def _bytes(bits: NDArray[np.uint8]) -> list[int]:
    # a whole byte of zeros follows where nothing is left over, as the package has it
    packed: list[int] = np.packbits(bits).tolist()
    return packed if bits.size % 8 else [*packed, 0]


def _runs(flat: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Lengths in channel values, none longer than a length can be written, and values."""
    ends = np.append(np.flatnonzero(flat[1:] != flat[:-1]) + 1, flat.size)
    values = flat[ends - 1].astype(np.int64) * 255
    lengths = np.diff(ends, prepend=0).astype(np.int64) * _CHANNELS

    parts = -(-lengths // _LONGEST)
    last = np.cumsum(parts) - 1
    cut = np.full(int(parts.sum()), _LONGEST, np.int64)
    cut[last] = lengths - (parts - 1) * _LONGEST
    return cut, np.repeat(values, parts)


def _pieces(
    lengths: NDArray[np.int64], values: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Each run as a number and its bits: 1, the size, the length less one, and the value."""
    kind = np.searchsorted([1 << size for size in _SIZES], lengths)
    # a rest of a cut run keeps the longest size: the package has it so
    rest = np.zeros(lengths.shape, np.bool_)
    rest[1:] = (lengths[:-1] == _LONGEST) & (values[1:] == values[:-1])
    kind[rest] = len(_SIZES) - 1

    bits = np.array(_SIZES)[kind]
    numbers = ((4 + kind) << bits | (lengths - 1)) << _VALUE_BITS | values
    return numbers, bits + 3 + _VALUE_BITS


def _packed(numbers: NDArray[np.int64], widths: NDArray[np.int64]) -> NDArray[np.uint8]:
    """The lowest `widths` bits of each number, one after the other."""
    spread = np.unpackbits(numbers.astype(">u4").view(np.uint8)).reshape(-1, 32)
    kept: NDArray[np.uint8] = spread[np.arange(32) >= 32 - widths[:, None]]
    return kept
