"""A truth lies on the picture that the model sees, whichever way up the file has the pixels.

COCO's outlines are of the stored pixels; masks of one's own are of the picture as it is shown,
where their size allows it.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from refer_files import folders, write_files
from ris.data.datasets import read_lines, read_refer
from ris.data.samples import refer_images
from ris.engines.errors import RisError
from ris.runtime.masks import encode_rle
from ris.runtime.orientation import TURNS, turned, turned_size

SHOWN = np.zeros((40, 60), bool)
SHOWN[5:20, 10:30] = True
BACK = {**{which: which for which in TURNS}, 6: 8, 8: 6, 1: 1}
"""Orientation -> the one that undoes it."""


def stored(shown, orientation):
    """An array of the picture that is shown, as the file stores it."""
    return np.asarray(turned(Image.fromarray(shown), BACK[orientation]))


def save_picture(path, shown, orientation):
    """The object white on black, stored so that it is shown upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = np.where(shown[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)
    Image.fromarray(stored(rgb, orientation)).save(path, exif=exif, quality=95)


def one_truth(data):
    """The only truth; asserted to lie on the object in the picture."""
    (image,) = refer_images(data)
    (truth,) = image.truths
    assert truth.mask.shape == image.rgb.shape[:2]
    np.testing.assert_array_equal(truth.mask, image.rgb[..., 0] > 127)
    return truth


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("square", [False, True])
@pytest.mark.parametrize("kind", ["code", "file"])
def test_ones_own_masks_are_of_the_picture_that_is_shown(tmp_path, orientation, square, kind):
    shown = SHOWN[:, :40] if square else SHOWN
    save_picture(tmp_path / "a.png", shown, orientation)
    Image.fromarray(shown).save(tmp_path / "mask.png")
    mask = "mask.png" if kind == "file" else dict(encode_rle(shown))
    row = {"image": "a.png", "expression": "x", "mask": mask}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    one_truth(read_lines(tmp_path / "own.jsonl"))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_ones_own_mask_that_fits_only_the_stored_pixels_is_turned(tmp_path, orientation):
    save_picture(tmp_path / "a.png", SHOWN, orientation)
    mask = dict(encode_rle(stored(SHOWN, orientation)))
    row = {"image": "a.png", "expression": "x", "mask": mask}
    (tmp_path / "own.jsonl").write_text(json.dumps(row))
    one_truth(read_lines(tmp_path / "own.jsonl"))


def write_coco(root, orientation, mask, *, polygon=False, size=None):
    """A RefCOCO folder of one picture, and the mask as its outline."""
    folder, pictures = folders(root, "refcoco")
    height, width = size or mask.shape
    save_picture(pictures / "1.png", SHOWN, orientation)
    outline = dict(encode_rle(mask))
    if polygon:
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        top, left, bottom, right = rows[0], columns[0], rows[-1] + 1, columns[-1] + 1
        outline = [[int(v) for v in (left, top, right, top, right, bottom, left, bottom)]]
    sentence = {"raw": "x", "sent": "x", "tokens": ["x"], "sent_id": 1}
    ref = {"ref_id": 1, "ann_id": 1, "image_id": 1, "split": "val", "category_id": 1}
    ref |= {"sentences": [sentence], "sent_ids": [1], "file_name": "1.png"}
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "iscrowd": 0, "segmentation": outline}
    shape = {"id": 1, "file_name": "1.png", "height": height, "width": width}
    write_files(folder, "refcoco", [ref], [shape], [annotation])
    return read_refer(root, "refcoco", "val")


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("polygon", [False, True])
def test_cocos_outlines_are_of_the_stored_pixels(tmp_path, orientation, polygon):
    mask = stored(SHOWN, orientation)
    one_truth(write_coco(tmp_path, orientation, mask, polygon=polygon))


@pytest.mark.parametrize("orientation", [5, 6, 7, 8])
def test_a_data_set_may_state_the_size_that_is_shown(tmp_path, orientation):
    one_truth(write_coco(tmp_path, orientation, SHOWN))


def test_a_size_that_is_neither_is_one_sentence(tmp_path):
    data = write_coco(tmp_path, 6, SHOWN, size=(41, 60))
    with pytest.raises(RisError, match=r"1\.png is 40x60 .*, its masks are 41x60"):
        next(refer_images(data))


def test_turned_size_is_its_own_way_back():
    for orientation in range(1, 9):
        assert turned_size(*turned_size(40, 60, orientation), orientation) == (40, 60)
