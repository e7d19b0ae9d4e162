"""GPTQ's levels: those of the paper's own steps, and products that change less."""

from __future__ import annotations

import numpy as np
import pytest
from narrow_weights import matrix

from ris.calibration.weights.gptq import DAMPING, output_error, round_for_inputs
from ris.calibration.weights.groups import FORMATS, largest_level, round_in_groups

K, N, ROWS = 256, 24, 600


@pytest.fixture(scope="module")
def inputs():
    """Rows of channels that go together and are of different sizes, as a layer's inputs are."""
    random = np.random.default_rng(0)
    mixed = random.standard_normal((2 * ROWS, K)) @ random.standard_normal((K, K)) / 16
    return (mixed * np.exp(random.standard_normal(K))).astype(np.float32)


def gram_of(inputs):
    return inputs.T @ inputs


def papers_levels(weights, gram, format, group):
    """The algorithm in the paper's own form, on W' [N, K]: the weights behind a column that was
    rounded are changed, by the inverse of X'X."""
    left, damped = weights.T.astype(np.float64), gram.astype(np.float64)
    damped += np.eye(len(gram)) * DAMPING * np.diag(gram).mean()
    inverse = np.linalg.cholesky(np.linalg.inv(damped)).T
    levels, most = np.zeros_like(left), largest_level(format)
    for first in range(0, len(gram), group):
        scale = np.abs(left[:, first : first + group]).max(1) / most
        for j in range(first, first + group):
            levels[:, j] = np.clip(np.rint(left[:, j] / scale), -most, most)
            error = (left[:, j] - levels[:, j] * scale) / inverse[j, j]
            left[:, j:] -= np.outer(error, inverse[j, j:])
    return levels.T


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("group", [64, 128])
def test_levels_are_those_of_the_papers_steps(inputs, format, group):
    weights, gram = matrix(K, N), gram_of(inputs)
    found = round_for_inputs(weights, gram, format, group)
    wanted = papers_levels(weights, gram, format, group)
    # float32 beside float64: one weight half-way between two levels may fall to either, and then
    # the weights behind it in its column answer to another one
    same = found.levels == wanted
    assert same.all(0).mean() > 0.8
    assert np.abs(found.levels - wanted).max() <= 2
    assert found.scales.shape == (K // group, N)
    assert np.abs(found.levels).max() == largest_level(format)


@pytest.mark.parametrize("format", FORMATS)
def test_products_with_other_inputs_change_less_than_with_the_nearest_levels(inputs, format):
    weights, other = matrix(K, N), inputs[ROWS:]
    found = round_for_inputs(weights, gram_of(inputs[:ROWS]), format, 128)
    nearest = round_in_groups(weights, format, 128)
    errors = [output_error(weights, one, gram_of(other)) for one in (nearest, found)]
    assert errors[1] < 0.9 * errors[0]
    change = other @ (weights - found.values())
    assert errors[1] == pytest.approx(
        np.linalg.norm(change) / np.linalg.norm(other @ weights), 1e-3
    )


def test_inputs_that_are_never_there_and_groups_of_zeros_are_no_matter(inputs):
    weights, quiet = matrix(K, N), inputs.copy()
    weights[:128, 5] = 0.0
    quiet[:, 200:] = 0.0
    found = round_for_inputs(weights, gram_of(quiet), "int4", 128)
    assert not found.values()[:128, 5].any()
    assert np.isfinite(found.scales).all()
    # what is multiplied with zeros is left at the nearest level
    steps = np.abs(found.values() - weights)[200:] / found.scales[1]
    assert steps.max() <= 0.5 + 1e-4


def test_independent_inputs_of_one_size_give_the_nearest_levels():
    weights = matrix(K, N)
    found = round_for_inputs(weights, np.eye(K, dtype=np.float32), "int4", 128)
    np.testing.assert_array_equal(found.levels, round_in_groups(weights, "int4", 128).levels)


@pytest.mark.parametrize("odd", [np.nan, np.inf, 0.0])
def test_inputs_that_say_nothing_are_refused(odd):
    with pytest.raises(ValueError, match="the inputs are not finite, or all zero"):
        round_for_inputs(matrix(K, N), np.full((K, K), odd, np.float32), "int4", 128)
