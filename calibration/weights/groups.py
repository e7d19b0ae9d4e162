"""Matrices in 8 or 4 bits, with a scale for each group of rows of a column.

It is the form that ONNX Runtime, OpenVINO and TensorRT all take: symmetric, so that there are no
zero points, in groups of 128 along the axis that a product sums over.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

WeightFormat = Literal["int8", "int4"]
"""What a matrix is stored in."""

FORMATS: tuple[WeightFormat, ...] = get_args(WeightFormat)
"""All of them."""

GROUP = 128
"""How many weights share a scale; TensorRT takes 64 and 128 in 4 bits."""

BITS: dict[WeightFormat, int] = {"int8": 8, "int4": 4}
"""The bits of a weight, its share of a scale aside."""

_SMALLER_GROUP = 64
_LARGEST = {"int8": 127, "int4": 7}  # the least level is not used, so that scales are symmetric
_COLUMNS = 1024  # of a block that is rounded at once


@dataclass(frozen=True)
class Rounded:
    """A matrix [K, N] in groups of g rows."""

    format: WeightFormat
    """What it is stored in."""

    levels: NDArray[Any]
    """Whole numbers int8 [K, N], in 4 bits from -7 to 7."""

    scales: NDArray[np.float32]
    """What a level is worth [K / g, N]."""

    @property
    def group(self) -> int:
        """The number of rows that share a scale."""
        return len(self.levels) // len(self.scales)

    def values(self) -> NDArray[np.float32]:
        """The matrix that the levels and scales stand for, float32 [K, N]."""
        found = np.empty(self.levels.shape, np.float32)
        for block, scales in _blocks(self.levels.shape, self.group):
            found[block] = self._values(block, scales)
        return found

    def _values(self, block: _Place, scales: _Place) -> NDArray[np.float32]:
        levels: NDArray[np.float32] = self.levels[block].astype(np.float32)
        levels *= self.scales[scales]
        return levels

    def packed(self) -> NDArray[np.uint8]:
        """The bytes of ONNX's tensor: row by row, two numbers of 4 bits a byte, the first low."""
        flat = self.levels.reshape(-1).view(np.uint8)
        if self.format == "int8":
            return flat
        low, high = flat[0::2] & 15, flat[1::2] << 4
        return np.bitwise_or(low, high, dtype=np.uint8)


Rounder = Callable[[NDArray[np.float32], WeightFormat, int, str], Rounded]
"""Rounds a matrix; takes what `nearest_levels` takes."""


def largest_level(format: WeightFormat) -> int:
    """The largest level; the least is its negative."""
    return _LARGEST[format]


def scales_of(weights: NDArray[np.float32], format: WeightFormat) -> NDArray[np.float32]:
    """What a level of each column is worth where the weights [g, N] are a group."""
    scale = np.maximum(weights.max(0), -weights.min(0)) / np.float32(_LARGEST[format])
    scale[scale == 0] = 1.0  # a group of zeros
    return np.asarray(scale, np.float32)


def group_of(rows: int) -> int | None:
    """The rows of a matrix that share a scale; None where a matrix of so many is left as it is."""
    return next((size for size in (GROUP, _SMALLER_GROUP) if rows and rows % size == 0), None)


def round_in_groups(matrix: NDArray[np.float32], format: WeightFormat, group: int) -> Rounded:
    """The matrix [K, N], each weight at the nearest level.

    Args:
        matrix: The weights.
        format: What to store them in.
        group: How many rows share a scale, a divisor of K.
    """
    rows, columns = matrix.shape
    levels = np.empty((rows, columns), np.int8)
    scales = np.empty((rows // group, columns), np.float32)
    largest = np.float32(_LARGEST[format])
    for block, place in _blocks(matrix.shape, group):
        weights = matrix[block]
        scale = scales_of(weights, format)
        found = weights / scale
        np.rint(found, out=found)
        # division may round the largest of a group up
        np.clip(found, -largest, largest, out=found)
        levels[block] = found
        scales[place] = scale
    return Rounded(format, levels, scales)


def nearest_levels(
    matrix: NDArray[np.float32], format: WeightFormat, group: int, place: str
) -> Rounded:
    """The same as a `Rounder`.

    Args:
        matrix: As of `round_in_groups`.
        format: As of `round_in_groups`.
        group: As of `round_in_groups`.
        place: The matrix's name in the model, "" where that is not known. Levels of a file are of
            one place; the nearest ones are the same everywhere.
    """
    return round_in_groups(matrix, format, group)


def relative_error(matrix: NDArray[np.float32], rounded: Rounded) -> float:
    """The root mean square of what rounding changed, divided by that of the matrix."""
    changed = whole = 0.0
    for block, scales in _blocks(matrix.shape, rounded.group):
        weights = np.ascontiguousarray(matrix[block])
        difference = weights - rounded._values(block, scales)
        changed += float(np.vdot(difference, difference))
        whole += float(np.vdot(weights, weights))
    return (changed / whole) ** 0.5 if whole else 0.0


_Place = tuple[Any, slice]


def _blocks(shape: tuple[int, ...], group: int) -> Iterator[tuple[_Place, _Place]]:
    """Blocks of a matrix, a group of rows of some columns each, and the places of their scales.

    A block is small enough for a processor's cache, where all steps of rounding find it.
    """
    rows, columns = shape
    for index in range(rows // group):
        for first in range(0, columns, _COLUMNS):
            across = slice(first, first + _COLUMNS)
            yield (slice(index * group, (index + 1) * group), across), (index, across)
