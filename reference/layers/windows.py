"""Where the places of a grid lie in the windows of a Swin block, as constants of NumPy.

A grid is padded at the right and at the bottom until windows fit, perhaps rolled, and cut into
windows. All of that moves places only, so it is one list of indices, and its inverse brings the
places back and drops the padding.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np

OTHER_AREA = -100.0
"""Added to the logit of a key that the roll brought beside the query from another side.

FP16 can hold it, and the softmax gives it no weight.
"""


class WindowPlaces(NamedTuple):
    """How the places of a grid and of its windows belong together."""

    number: int
    """Number of windows."""

    gather: np.ndarray
    """int64 [number*w*w]: the place of the grid at each place of the windows, row by row.

    The number of the grid's places stands for padding.
    """

    scatter: np.ndarray
    """int64 [side*side]: the place of the windows where each place of the grid is."""

    mask: np.ndarray | None
    """float32 [number, 1, w*w, w*w]: 0, or `OTHER_AREA` for keys of another area than the query's.

    None without a shift.
    """


@functools.lru_cache(maxsize=32)
def window_places(side: int, window: int, shift: int) -> WindowPlaces:
    """The windows of a square grid.

    side: places along a side of the grid. window: along a side of a window. shift: how far the
    padded grid is rolled to the left and up, before it is cut.
    """
    padded = -(-side // window) * window
    grid = np.full((padded, padded), side * side, np.int64)
    grid[:side, :side] = np.arange(side * side).reshape(side, side)
    gather = _cut(np.roll(grid, (-shift, -shift), (0, 1)), window)

    flat = gather.reshape(-1)
    scatter = np.empty(side * side, np.int64)
    real = np.flatnonzero(flat < side * side)
    scatter[flat[real]] = real
    mask = _shift_mask(padded, window, shift) if shift else None
    return WindowPlaces(len(gather), flat, scatter, mask)


def _cut(grid: np.ndarray, window: int) -> np.ndarray:
    """grid [n*w, n*w] -> its windows, row by row, [n*n, w*w]."""
    number = len(grid) // window
    cells = grid.reshape(number, window, number, window).swapaxes(1, 2)
    return np.ascontiguousarray(cells).reshape(number * number, window * window)


def _shift_mask(padded: int, window: int, shift: int) -> np.ndarray:
    """The mask of `WindowPlaces`: three bands of rows and of columns make nine areas."""
    bands = np.digitize(np.arange(padded), (padded - window, padded - shift))
    areas = _cut(bands[:, None] * 3 + bands[None], window)
    apart = areas[:, :, None] != areas[:, None, :]
    return np.where(apart, np.float32(OTHER_AREA), np.float32(0))[:, None]


@functools.lru_cache(maxsize=8)
def relative_positions(window: int) -> np.ndarray:
    """Which row of a table of relative positions each pair of a window's places reads.

    int64 [w*w, w*w], by query and key; the table has a row for each of the (2w-1)**2 offsets.
    """
    row, column = np.divmod(np.arange(window * window, dtype=np.int64), window)
    down = row[:, None] - row[None] + window - 1
    right = column[:, None] - column[None] + window - 1
    return down * (2 * window - 1) + right
