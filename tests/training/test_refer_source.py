"""Training sees pictures as the model is asked about them, and masks that lie on them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ris.data.datasets import read_lines
from ris.engines.errors import RisError
from ris.runtime.masks import encode_rle
from ris.training.refer_source import ReferSource

SHOWN = np.zeros((48, 64), bool)
SHOWN[6:24, 8:32] = True


def source(folder, orientation, *, stored=False):
    """One picture with its object white; the mask of what is shown, or of the stored pixels."""
    rgb = np.where(SHOWN[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)
    back = {1: rgb, 3: rgb[::-1, ::-1], 6: np.rot90(rgb)}[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(np.ascontiguousarray(back)).save(folder / "a.png", exif=exif)
    mask = np.ascontiguousarray(back[..., 0] > 0) if stored else SHOWN
    row = {"image": "a.png", "expression": "x", "mask": dict(encode_rle(mask))}
    (folder / "own.jsonl").write_text(json.dumps(row))
    return ReferSource(read_lines(folder / "own.jsonl"), 32, 1, 1)


@pytest.mark.parametrize(("orientation", "stored"), [(1, False), (3, False), (6, False), (6, True)])
def test_the_mask_is_turned_with_its_picture(tmp_path, orientation, stored):
    batch = source(tmp_path, orientation, stored=stored).batch(0)
    white = batch.images[0, ..., 0] > 127
    assert np.count_nonzero(white != batch.masks[0]) <= 64  # borders, as the two are resized
    assert batch.masks[0].sum() == pytest.approx(SHOWN.mean() * 32 * 32, abs=32)


def test_sixteen_bits_are_scaled(tmp_path):
    made = source(tmp_path, 1)
    Image.fromarray(np.full((48, 64), 30000, np.uint16)).save(tmp_path / "a.png")
    assert (made.batch(0).images == round(30000 / 257)).all()


def test_a_damaged_picture_is_one_sentence(tmp_path):
    made = source(tmp_path, 1)
    whole = (tmp_path / "a.png").read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RisError, match=r"a\.png is damaged or cut short"):
        made.batch(0)
