"""Training sees pictures as the model is asked about them, and masks that lie on them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from refer_files import folders, write_files
from ris.data.datasets import read_lines
from ris.data.scenes.as_refer import write_as_refer
from ris.engines.errors import RisError
from ris.runtime.masks import encode_rle
from ris.runtime.orientation import TURNS, turned
from ris.training.reading import read_for_training
from ris.training.refer_source import ReferSource, ReferSubset

SHOWN = np.zeros((48, 64), bool)
SHOWN[6:24, 8:32] = True
BACK = {**{which: which for which in TURNS}, 6: 8, 8: 6, 1: 1}


def save_picture(path, orientation):
    """The object white on black, stored so that it is shown upright; the stored mask."""
    stored = np.asarray(turned(Image.fromarray(SHOWN), BACK[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    rgb = np.where(stored[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)
    Image.fromarray(rgb).save(path, exif=exif)
    return stored


def own(folder, orientation, *, stored=False):
    """One picture in a file of one's own; the mask of what is shown, or of the stored pixels."""
    mask = save_picture(folder / "a.png", orientation)
    code = dict(encode_rle(np.ascontiguousarray(mask if stored else SHOWN)))
    row = {"image": "a.png", "expression": "x", "mask": code}
    (folder / "own.jsonl").write_text(json.dumps(row))
    return ReferSource([(read_lines(folder / "own.jsonl"), 1.0)], 32, 1, 1)


def assert_lies_on_the_object(batch, side=32):
    white = batch.images[0, ..., 0] > 127
    assert np.count_nonzero(white != batch.masks[0]) <= 2 * side  # borders, as both are resized
    assert batch.masks[0].sum() == pytest.approx(SHOWN.mean() * side * side, abs=side)


@pytest.mark.parametrize(("orientation", "stored"), [(1, False), (3, False), (6, False), (6, True)])
def test_the_mask_is_turned_with_its_picture(tmp_path, orientation, stored):
    assert_lies_on_the_object(own(tmp_path, orientation, stored=stored).batch(0))


@pytest.mark.parametrize("orientation", [1, 3, 5, 6, 8])
def test_polygons_of_stored_pixels_are_turned_with_it(tmp_path, orientation):
    folder, pictures = folders(tmp_path, "refcoco")
    mask = save_picture(pictures / "a.png", orientation)
    height, width = mask.shape
    (ys, xs) = np.nonzero(mask)
    x, y, right, low = int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1
    annotation = {
        "id": 7,
        "image_id": 1,
        "category_id": 1,
        "segmentation": [[float(v) for v in (x, y, right, y, right, low, x, low)]],
        "bbox": [x, y, right - x, low - y],
        "iscrowd": 0,
    }
    sentence = {"raw": "X", "sent": "x", "sent_id": 0}
    reference = {"ref_id": 0, "ann_id": 7, "image_id": 1, "split": "train", "category_id": 1}
    reference |= {"sentences": [sentence], "sent_ids": [0]}
    shape = {"id": 1, "file_name": "a.png", "height": height, "width": width}
    write_files(folder, "refcoco", [reference], [shape], [annotation])
    data = read_for_training("refcoco", "train", root=tmp_path)
    assert_lies_on_the_object(ReferSource([(data, 1.0)], 32, 1, 1).batch(0))


def test_sixteen_bits_are_scaled(tmp_path):
    made = own(tmp_path, 1)
    Image.fromarray(np.full((48, 64), 30000, np.uint16)).save(tmp_path / "a.png")
    assert (made.batch(0).images == round(30000 / 257)).all()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made-up")
    for name in ("refcoco", "grefcoco"):
        write_as_refer(folder, name, {"train": 12, "val": 6}, side=96)
    return folder


def read(root, name="grefcoco", split="train"):
    return read_for_training(name, split, root=root)


def test_samples_are_independent_draws_and_objects_come_one_by_one(root):
    source = ReferSource([(read(root), 1.0)], 64, 16, 4)
    assert source.groups == 4
    counts = set()
    for step in range(4):
        for number in range(4):
            batch = source.batch(step, number)
            assert len(batch.examples) == 4
            assert len(batch.images) == len({x.place[:2] for x in batch.examples})
            for x in batch.examples:
                entry = source.entry(x.place)
                assert x.expression == entry.reference.expression
                assert len(x.objects) == len(entry.reference.annotations)
                assert x.present == bool(len(x.objects))
                np.testing.assert_array_equal(x.mask, x.objects.any(0))
                counts.add(len(x.objects))
    assert {0, 1, 2} <= counts


def test_an_image_that_comes_twice_is_encoded_once(root):
    source = ReferSource([(read(root), 1.0)], 64, 16, 16)
    batches = [source.batch(step) for step in range(6)]
    assert any(len(batch.images) < 16 for batch in batches)
    for batch in batches:
        for x in batch.examples:
            assert x.image_index < len(batch.images)
        assert set(batch.image_index) == set(range(len(batch.images)))


def test_data_sets_are_mixed(root, tmp_path):
    own(tmp_path, 1)
    mine = read_lines(tmp_path / "own.jsonl")
    source = ReferSource([(read(root, "refcoco"), 3.0), (mine, 1.0)], 64, 8, 4)
    drawn = [source.batch(step, number) for step in range(20) for number in range(2)]
    own_share = np.mean([x.place[0] == 1 for batch in drawn for x in batch.examples])
    assert own_share == pytest.approx(0.25, abs=0.05)
    assert source.sentences == 1 + ReferSource([(read(root, "refcoco"), 1.0)], 64, 8, 4).sentences


@pytest.mark.parametrize("weight", [0.0, -1.0, float("nan"), float("inf")])
def test_a_weight_is_above_0(root, weight):
    with pytest.raises(RisError, match="a number above 0"):
        ReferSource([(read(root), weight)], 64, 8, 4)


def test_samples_make_whole_groups(root):
    with pytest.raises(RisError, match="10 samples a step cannot be cut into groups of 4"):
        ReferSource([(read(root), 1.0)], 64, 10, 4)


def test_the_validation_subset_is_random_fixed_and_has_each_sentence_once(root):
    def places(count, seed=0):
        subset = ReferSubset(read(root, split="val"), 64, count, seed, group=4)
        batches = [subset.batch(step) for step in range(subset.steps)]
        assert subset.sentences == sum(len(batch.examples) for batch in batches)
        return [x.place for batch in batches for x in batch.examples]

    everything = places(None)
    assert len(set(everything)) == len(everything) > 20
    some = places(10)
    assert some == places(10) == sorted(some)
    assert len(some) == 10
    assert some != places(10, seed=1)
    assert set(some) < set(everything)
