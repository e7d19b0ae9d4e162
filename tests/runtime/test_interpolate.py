"""The host's resizing equals torch's `interpolate`: align_corners=False, no antialiasing."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from ris.runtime.interpolate import MODES, matrix, resize_maps, resize_rows, taps

SIZES = [
    (48, 64),
    (24, 64),
    (12, 16),
    (6, 16),
    (1024, 336),
    (256, 84),
    (256, 1024),
    (64, 37),
    (7, 7),
    (5, 1),
    (1, 9),
]


def torchs(maps, size, mode):
    maps = torch.from_numpy(maps)
    return F.interpolate(maps, size=size, mode=mode, align_corners=False).numpy()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("source", "target"), SIZES)
def test_equal_to_torch(source, target, mode):
    maps = np.random.default_rng(source).standard_normal((2, 3, source, source), dtype=np.float32)
    want = torchs(maps, (target, target), mode)
    np.testing.assert_allclose(resize_maps(maps, target, target, mode), want, atol=1e-5)
    by_rows = resize_rows(np.ascontiguousarray(maps[0].transpose(1, 2, 0)), target, mode)
    by_rows = resize_rows(np.ascontiguousarray(by_rows.transpose(1, 0, 2)), target, mode)
    np.testing.assert_allclose(by_rows.transpose(2, 1, 0), want[0], atol=1e-5)


@pytest.mark.parametrize("mode", MODES)
def test_height_and_width_differ(mode):
    maps = np.random.default_rng(0).standard_normal((1, 2, 10, 14), dtype=np.float32)
    want = torchs(maps, (23, 9), mode)
    np.testing.assert_allclose(resize_maps(maps, 23, 9, mode), want, atol=1e-5)


def test_a_stripe_of_rows_is_that_part_of_the_whole():
    rows = np.random.default_rng(0).standard_normal((20, 6), dtype=np.float32)
    whole = resize_rows(rows, 33, "bilinear")
    np.testing.assert_array_equal(resize_rows(rows, 33, "bilinear", 5, 12), whole[5:12])


@pytest.mark.parametrize("mode", MODES)
def test_weights_sum_to_one(mode):
    np.testing.assert_allclose(matrix(48, 64, mode).sum(1), 1, atol=1e-6)


def test_an_unknown_mode_is_named():
    with pytest.raises(ValueError, match="'nearest'; there are bilinear, bicubic"):
        taps(4, 8, "nearest")
