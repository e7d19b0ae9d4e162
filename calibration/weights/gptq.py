"""GPTQ: levels for a matrix that keep its products, where the nearest ones keep its weights.

Of Frantar et al., "GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
Transformers" (2023), with symmetric groups of rows, a scale fixed before its group is rounded, and
rows in their own order. What rounding one row changed, later rows make up for as far as they can.

Own code, because no library that we found gives these levels for these matrices
(docs/reference/precision.md, Levels for the products).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from ris.calibration.weights.groups import Rounded, WeightFormat, largest_level, scales_of

DAMPING = 0.01
"""Added to the diagonal of X'X, as a share of its mean: no input is taken to be certain."""

Floats = NDArray[np.float32]


def round_for_inputs(matrix: Floats, gram: Floats, format: WeightFormat, group: int) -> Rounded:
    """The matrix W [K, N] at levels Q for which |X(W - Q)| is small.

    With X'X = M M', M upper triangular, that is the norm of M'(W - Q). Row i of it depends on the
    rows of W - Q up to i, so that each row can be rounded to what is best behind the rows before
    it. The rows that follow in the paper's own words are updated instead; the levels are the same.

    Args:
        matrix: The weights.
        gram: X'X of the inputs X, [K, K].
        format: What to store them in.
        group: How many rows share a scale, a divisor of K.

    Raises:
        ValueError: Where the inputs are not finite, or all zero.
    """
    upper = _factor(gram)
    rows, columns = matrix.shape
    levels = np.empty((rows, columns), np.int8)
    scales = np.empty((rows // group, columns), np.float32)
    change = np.empty((rows, columns), np.float32)
    largest = np.float32(largest_level(format))

    for index in range(rows // group):
        first, last = index * group, (index + 1) * group
        block = upper[first:last, first:last]
        # what the rows before left over, at each row of this group
        left = upper[:first, first:last].T @ change[:first]
        # the scale is for the weights that would leave nothing over
        wanted = matrix[first:last] + np.linalg.solve(block.T, left)
        scales[index] = scale = scales_of(wanted, format)
        for i in range(group):
            row = matrix[first + i]
            level = np.rint((row + left[i] / block[i, i]) / scale)
            np.clip(level, -largest, largest, out=level)
            levels[first + i] = level
            change[first + i] = row - level * scale
            left[i + 1 :] += np.outer(block[i, i + 1 :], change[first + i])
    return Rounded(format, levels, scales)


def _factor(gram: Floats) -> Floats:
    """The upper triangular M [K, K] with M M' = X'X, damped."""
    diagonal = np.einsum("ii->i", gram)
    mean = float(diagonal.mean(dtype=np.float64))
    if not np.isfinite(gram).all() or mean <= 0:
        raise ValueError("the inputs are not finite, or all zero")
    # Cholesky's factor is lower; of the rows and columns in reverse, it is upper in their order
    turned = gram[::-1, ::-1].astype(np.float64)
    np.einsum("ii->i", turned)[:] += DAMPING * mean
    return np.ascontiguousarray(np.linalg.cholesky(turned)[::-1, ::-1], np.float32)


def output_error(matrix: Floats, rounded: Rounded, gram: Floats) -> float:
    """The root mean square of what rounding changed in X W, divided by that of X W.

    gram: X'X, as of `round_for_inputs`.
    """
    whole = _energy(matrix, gram)
    return (_energy(matrix - rounded.values(), gram) / whole) ** 0.5 if whole else 0.0


def _energy(matrix: Floats, gram: Floats) -> float:
    """The sum of the squares of X matrix."""
    return max(float(np.vdot(matrix, gram @ matrix)), 0.0)
