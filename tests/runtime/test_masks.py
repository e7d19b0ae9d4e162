"""Masks: the resize against torch, run-length encoding against pycocotools, the overlay."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from mask_goldens import (
    LETTERBOX,
    PICTURES,
    PROBABILITIES,
    letterbox,
    logits_of,
    mask_of,
    of_letterboxes,
    of_probabilities,
)
from pycocotools import mask as coco

from golden import inputs
from ris.runtime.masks import (
    MaskRule,
    decode_rle,
    encode_rle,
    mask_from_logits,
    mask_score,
    overlay,
    resize_logits,
    resize_values,
)

LOGITS = np.random.default_rng(0).standard_normal((64, 64), dtype=np.float32)


@pytest.mark.parametrize("size", [(64, 64), (480, 640), (1, 1), (3, 2000), (31, 17)])
def test_the_mask_is_torchs(size):
    maps = torch.from_numpy(LOGITS)[None, None]
    want = F.interpolate(maps, size=size, mode="bilinear")[0, 0].numpy()
    np.testing.assert_allclose(resize_logits(LOGITS, *size), want, atol=1e-5)
    got = mask_from_logits(LOGITS, *size)
    assert got.dtype == np.bool_
    clear = np.abs(want) > 1e-5
    np.testing.assert_array_equal(got[clear], (want > 0)[clear])


def test_stripes_do_not_show():
    """More rows than fit one stripe."""
    np.testing.assert_array_equal(
        mask_from_logits(LOGITS, 3000, 1200), resize_logits(LOGITS, 3000, 1200) > 0
    )


def test_a_threshold_shrinks_the_mask():
    above_1 = mask_from_logits(LOGITS, 64, 64, MaskRule(threshold=1.0))
    assert above_1.sum() < mask_from_logits(LOGITS, 64, 64).sum()


@pytest.mark.parametrize("mode", ["bilinear", "bicubic"])
@pytest.mark.parametrize("align", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (100, 75), (1, 1), (3, 700)])
def test_every_way_of_resizing_is_torchs(mode, align, size):
    maps = torch.from_numpy(LOGITS)[None, None].sigmoid()
    want = F.interpolate(maps, size=size, mode=mode, align_corners=align)[0, 0].numpy()
    rule = MaskRule("probabilities", mode, align, 0.5)
    np.testing.assert_allclose(resize_values(LOGITS, *size, rule), want, atol=1e-5)
    clear = np.abs(want - 0.5) > 1e-5
    np.testing.assert_array_equal(mask_from_logits(LOGITS, *size, rule)[clear], (want > 0.5)[clear])


@pytest.mark.parametrize("name", PICTURES)
def test_a_mask_of_probabilities_is_the_authors(name):
    golden, size, logits = of_probabilities(), PICTURES[name], logits_of(name)
    assert inputs.compare(golden, f"{name}_mask_logits", logits[None, None])["max"] < 1e-4
    found = resize_values(logits, *size, PROBABILITIES)
    off = inputs.compare(golden, f"{name}_probability", found[None, None])
    assert off["max"] * off["scale"] < 1e-4
    mask = mask_from_logits(logits, *size, PROBABILITIES)
    assert (mask != mask_of(name)).sum() <= 20
    np.testing.assert_array_equal(mask, found > 0.5)


@pytest.mark.parametrize("number", range(4))
def test_a_letterboxs_mask_is_the_authors(number):
    low, size, pixels = letterbox(number)
    found = resize_logits(low, *size, LETTERBOX)
    assert inputs.compare(of_letterboxes(), f"logits_{number}", found[None, None])["max"] < 5e-4
    assert abs(int(mask_from_logits(low, *size, LETTERBOX).sum()) - pixels) <= 10


def test_a_letterboxs_mask_of_another_size_is_of_the_same_part():
    """As where masks are compared in a square: the picture's size says what is cut."""
    low = np.where(np.arange(64) < 32, 4, -9).astype(np.float32) * np.ones((64, 1), np.float32)
    rule = MaskRule(letterbox=64)
    mask = mask_from_logits(low, 40, 40, rule, picture=(100, 50))  # the left half of the letterbox
    assert mask.all(axis=0)[:39].all()
    assert not mask_from_logits(low.T, 40, 40, rule, picture=(100, 50))[20:].any()


def test_a_score_is_of_what_the_mask_is_of():
    logits = np.array([[0.4, -1], [2, 3]], np.float32)
    rule = MaskRule("probabilities", threshold=0.6)
    assert mask_score(logits, rule) == pytest.approx(
        np.mean([1 / (1 + np.exp(-x)) for x in (2, 3)])
    )
    assert mask_score(logits, MaskRule(letterbox=8), (4, 8)) == pytest.approx(
        1 / (1 + np.exp(-0.4))
    )
    assert mask_score(np.full((2, 2), -2000, np.float32), rule) == 0


def pycocotools_counts(mask):
    return coco.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


@pytest.mark.parametrize("size", [(1, 1), (7, 5), (480, 640), (1, 300)])
@pytest.mark.parametrize("share", [0.0, 0.03, 0.5, 1.0])
def test_rle_is_pycocotools(size, share):
    mask = np.random.default_rng(3).random(size) < share
    got = encode_rle(mask)
    assert got == {"size": list(size), "counts": pycocotools_counts(mask)}
    theirs = coco.decode({"size": got["size"], "counts": got["counts"].encode()})
    np.testing.assert_array_equal(theirs, mask)
    np.testing.assert_array_equal(decode_rle(got), mask)


def test_long_runs():
    """Run lengths and differences that need several groups of five bits, both signs."""
    mask = np.zeros((2000, 1500), bool)
    mask[700:1900, 100:1400] = True
    mask[5:9, 3] = True
    assert encode_rle(mask)["counts"] == pycocotools_counts(mask)
    np.testing.assert_array_equal(decode_rle(encode_rle(mask)), mask)


def test_counts_that_do_not_fill_the_mask():
    with pytest.raises(ValueError, match="add up to"):
        decode_rle({"size": [3, 3], "counts": encode_rle(np.ones((2, 2), bool))["counts"]})


def test_score_is_the_mean_probability_inside():
    logits = np.array([[2.0, -5.0], [0.5, -0.1]], np.float32)
    assert mask_score(logits) == pytest.approx((1 / (1 + np.exp(-2)) + 1 / (1 + np.exp(-0.5))) / 2)
    assert mask_score(-np.ones((2, 2), np.float32)) == 0.0


def test_the_overlay_tints_the_mask_and_nothing_else():
    rgb = np.full((60, 80, 3), 100, np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[20:40, 30:50] = True
    picture = overlay(rgb, mask, (200, 0, 0))
    assert (picture[~mask] == 100).all()
    assert (picture[30, 40] == [150, 50, 50]).all()
    assert (picture[20, 30] == [200, 0, 0]).all()
    assert (rgb == 100).all()
