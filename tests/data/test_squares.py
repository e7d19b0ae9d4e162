"""Targets are rasterised in the model's square: the released code's masks, to the bit."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from conftest import GOLDEN
from ris.data.datasets import ReferData, Reference, ReferImage
from ris.data.datasets.outlines import reference_mask
from ris.data.datasets.squares import object_squares
from ris.engines.errors import RisError
from ris.runtime.image import Picture
from ris.runtime.orientation import TURNS, turned_mask, turned_size


def made(outlines, height, width, **options):
    """A data set of one image with these outlines, all meant by one sentence."""
    numbers = tuple(range(len(outlines)))
    reference = Reference("x", numbers, None, 0, 0)
    image = ReferImage("a.jpg", __file__, height, width, (reference,))
    data = ReferData("refcoco", "train", (image,), dict(enumerate(outlines)), **options)
    return data, image, reference


def squares(outlines, height, width, side, orientation=1, **options):
    data, image, reference = made(outlines, height, width, **options)
    shown = turned_size(height, width, orientation)
    picture = Picture(np.empty(0, np.uint8), *shown, orientation)
    return object_squares(data, image, reference, picture, side)


@pytest.mark.parametrize("case", ["landscape", "portrait", "tiny", "none"])
def test_target_masks_are_the_released_ones(case):
    golden = np.load(GOLDEN / "training" / "target_masks.npz")
    height, width = (int(side) for side in golden[f"{case}.size"])
    outlines = json.loads(str(golden[f"{case}.polygons"]))
    found = squares(outlines, height, width, 1024)
    shape = tuple(golden[f"{case}.shape"])
    bits = np.unpackbits(golden[f"{case}.masks"])[: int(np.prod(shape))]
    np.testing.assert_array_equal(found, bits.reshape(shape).astype(bool))
    union = np.unpackbits(golden[f"{case}.union"]).reshape(1024, 1024).astype(bool)
    np.testing.assert_array_equal(np.logical_or.reduce(found), union)


BOX = [[10.0, 5.0, 31.0, 5.0, 31.0, 22.0, 10.0, 22.0]]


@pytest.mark.parametrize("orientation", [1, *TURNS])
def test_polygons_of_a_turned_picture_are_turned_with_it(orientation):
    (upright,) = squares([BOX], 40, 60, 64)
    (found,) = squares([BOX], 40, 60, 64, orientation)
    np.testing.assert_array_equal(found, turned_mask(upright, orientation))


def test_a_code_is_resized_and_a_polygon_of_two_points_left_out():
    runs = {"size": [2, 2], "counts": [0, 1, 3]}
    (found,) = squares([runs], 2, 2, 8)
    assert found[:4, :4].all()
    assert found.sum() == 16
    two_points = [1.0, 1.0, 50.0, 30.0]
    both = squares([[two_points, *BOX]], 40, 60, 64)
    np.testing.assert_array_equal(both, squares([BOX], 40, 60, 64))


def test_what_cannot_be_rasterised_is_one_sentence():
    with pytest.raises(RisError, match="annotation 0: a coordinate of it is not a finite number"):
        squares([[[0.0, 0.0, float("nan"), 1.0, 2.0, 2.0]]], 40, 60, 64)
    with pytest.raises(RisError, match=r"annotation 0: .* a mask of it"):
        squares([{"size": [3, 3], "counts": [9]}], 40, 60, 64)


def test_it_is_not_the_mask_of_the_pictures_size_resized():
    outline = [[3.3, 7.1, 17.7, 9.2, 12.4, 28.6, 4.9, 21.0]]
    data, image, reference = made([outline], 40, 60)
    own = Image.fromarray(reference_mask(data, image, reference))
    resized = np.asarray(own.resize((256, 256), Image.Resampling.NEAREST))
    (found,) = squares([outline], 40, 60, 256)
    assert 0.9 < (found & resized).sum() / (found | resized).sum() < 0.99
