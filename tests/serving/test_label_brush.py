"""Brush regions: the same bytes as Label Studio's own package writes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from conftest import GOLDEN
from label_helper import brush_mask
from ris.serving.http.labelling.brush import brush_rle

MASKS = json.loads((GOLDEN / "labelling" / "brush.json").read_text())["masks"]


def mask_of(entry):
    values = np.arange(len(entry["runs"])) % 2 != (not entry["first"])
    return np.repeat(~values, entry["runs"]).reshape(entry["size"])


@pytest.mark.parametrize("entry", MASKS, ids=[entry["name"] for entry in MASKS])
def test_the_bytes_are_those_of_label_studio_sdk(entry):
    """The golden file was written by label_studio_sdk 2.1.2 itself."""
    assert brush_rle(mask_of(entry)) == entry["rle"]


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99, 1.0])
def test_a_mask_comes_back(share):
    mask = np.random.default_rng(3).random((37, 53)) < share
    assert np.array_equal(brush_mask(brush_rle(mask), 37, 53), mask)


def test_a_mask_that_is_no_whole_array_comes_back():
    mask = np.random.default_rng(4).random((40, 60)) < 0.3
    part = mask[::2, 3::3]
    assert np.array_equal(brush_mask(brush_rle(part), *part.shape), part)


def test_the_package_reads_and_writes_the_same():
    """Where label-studio-sdk is installed, as in `make label-studio`."""
    brush = pytest.importorskip("label_studio_sdk.converter.brush", reason="no label-studio-sdk")
    rng = np.random.default_rng(5)
    for number in range(60):
        mask = rng.random(rng.integers(1, 90, 2)) < (0.02, 0.5, 0.98)[number % 3]
        written = brush_rle(mask)
        assert written == brush.mask2rle(mask.astype(np.uint8) * 255)
        read = brush.decode_rle(written).reshape(*mask.shape, 4)[..., 3]
        assert np.array_equal(read > 127, mask)
