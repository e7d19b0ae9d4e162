"""Magnitudes of one value as a histogram of fixed size, and the thresholds that it gives.

A calibrator chooses the threshold. min-max: the largest magnitude. percentile: the magnitude below
which that share lies. entropy: the one that loses least information (Migacz, "8-bit inference with
TensorRT", GTC 2017).
"""

from __future__ import annotations

from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import RisError

Calibrator = Literal["minmax", "percentile", "entropy"]
"""How a threshold is chosen."""

CALIBRATORS: tuple[Calibrator, ...] = get_args(Calibrator)
"""All of them."""

BINS = 2048
"""Bins of a histogram, even."""

_LEVELS = 128
_STEP = 16  # bins between the thresholds that entropy tries
_AT_ONCE = 1 << 20  # values that are binned together, which bounds the temporary arrays


class Histogram:
    """Counts of magnitudes from 0 to `top`. Its size does not depend on how many were added."""

    counts: NDArray[np.int64]
    """Magnitudes per bin, int64 [BINS]; the bins are equally wide."""

    top: float
    """The upper end of the last bin; it doubles when something larger comes. 0 before that."""

    largest: float
    """The largest magnitude so far."""

    def __init__(
        self, counts: NDArray[np.int64] | None = None, top: float = 0.0, largest: float = 0.0
    ) -> None:
        self.counts = np.zeros(BINS, np.int64) if counts is None else counts
        self.top, self.largest = top, largest

    def add(self, values: NDArray[np.float32]) -> None:
        """Counts all elements. Raises RisError where one is not finite."""
        flat = values.reshape(-1)
        for start in range(0, flat.size, _AT_ONCE):
            self._add(np.abs(flat[start : start + _AT_ONCE]))

    def _add(self, magnitudes: NDArray[np.float32]) -> None:
        largest = float(magnitudes.max())
        if not np.isfinite(largest):
            raise RisError("a value is not finite; such a graph cannot be quantised")
        self.largest = max(self.largest, largest)
        if self.top == 0 and largest == 0:  # zeros alone so far: the bins have no width yet
            self.counts[0] += len(magnitudes)
            return

        self._widen(largest)
        bins = np.minimum((magnitudes * (BINS / self.top)).astype(np.int32), BINS - 1)
        self.counts += np.bincount(bins, minlength=BINS)

    def _widen(self, largest: float) -> None:
        """Doubles `top` until it is at least `largest`; two old bins become one new bin."""
        self.top = self.top or largest
        while largest > self.top:
            halved = self.counts.reshape(-1, 2).sum(1)
            self.counts = np.concatenate([halved, np.zeros_like(halved)])
            self.top *= 2

    def threshold(self, calibrator: Calibrator, percentile: float = 99.99) -> float:
        """The magnitude that becomes the last level; 0 where everything is 0."""
        if self.top == 0 or calibrator == "minmax":
            return self.largest
        if calibrator == "percentile":
            share = np.cumsum(self.counts) / self.counts.sum()
            last = int(np.searchsorted(share, percentile / 100))
        else:
            counts = self.counts.copy()
            # padding is exactly 0: it costs nothing, and would hide all other counts
            counts[0] = counts[1]
            last = _least_information_lost(counts) - 1
        return min((last + 1) * self.top / BINS, self.largest)


def _least_information_lost(counts: NDArray[np.int64]) -> int:
    """How many of the first bins to keep for the least loss of information.

    The loss is the Kullback-Leibler divergence between the kept magnitudes, with those beyond
    clipped to the last bin, and what 128 levels make of them.
    """
    best, least = len(counts), np.inf
    for kept in range(_LEVELS, len(counts) + 1, _STEP):
        lost = _information_lost(counts, kept)
        if lost < least:
            best, least = kept, lost
    return best


def _information_lost(counts: NDArray[np.int64], kept: int) -> float:
    """The divergence where the first `kept` bins are cut into 128 levels."""
    inside = counts[:kept].astype(np.float64)
    true = inside.copy()
    true[-1] += counts[kept:].sum()

    # each level spreads its count evenly over those of its bins that are not empty
    level = np.arange(kept) * _LEVELS // kept
    filled = inside > 0
    sums = np.bincount(level, inside, _LEVELS)
    share = sums / np.maximum(np.bincount(level, filled, _LEVELS), 1)
    coarse = np.where(filled, share[level], 0.0)

    p = true / true.sum()
    q = np.maximum(coarse / max(coarse.sum(), 1.0), 1e-12)
    there = p > 0
    return float((p[there] * np.log(p[there] / q[there])).sum())
