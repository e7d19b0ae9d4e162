"""Drawn scenes in RefCOCO's and gRefCOCO's own files: what readers and commands make of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from ris.data.datasets import read_refer
from ris.data.datasets.squares import scaled_mask
from ris.data.samples import refer_images
from ris.data.scenes import make_scene
from ris.data.scenes.as_refer import outlines_of, write_as_refer
from ris.engines.errors import RisError
from ris.evaluation.data_check import check
from ris.training.reading import read_for_training


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made-up")
    for name in ("refcoco", "grefcoco"):
        write_as_refer(folder, name, {"train": 7, "val": 3, "testA": 2}, side=160)
    return folder


def test_the_readers_find_every_sentence_and_mask(root):
    data = read_refer(root, "refcoco", "train")
    assert len(data.images) >= 6
    sizes = {(image.width, image.height) for image in data.images}
    assert sizes == {(160, 120), (120, 160)}, "lying and upright"
    for image in refer_images(data):
        for truth in image.truths:
            assert truth.targeted
            assert truth.mask.any()
            assert truth.category != "background"


def test_the_form_of_grefcoco_has_several_objects_and_none(root):
    data = read_refer(root, "grefcoco", "train")
    counts = {len(one.annotations) for image in data.images for one in image.references}
    assert {0, 1, 2} <= counts


def test_raw_is_not_sent(root):
    references = json.loads((root / "grefcoco" / "grefs(unc).json").read_text())
    pairs = [(one["raw"], one["sent"]) for ref in references for one in ref["sentences"]]
    assert all(raw != sent for raw, sent in pairs)
    assert all(raw.strip(" .").lower() == sent for raw, sent in pairs)


def test_every_published_loader_reads_all_of_it(root):
    for name in ("refcoco", "grefcoco"):
        found = check(root, name, "unc")
        assert found.missing is None
        assert found.images == []
        assert found.left_out == {}
        assert read_for_training(name, "val", root=root).images


def test_two_forms_share_the_pictures(root):
    names = [
        {image.name for image in read_refer(root, name, "train").images}
        for name in ("refcoco", "grefcoco")
    ]
    assert names[0] <= names[1]
    assert len(list((root / "images" / "train2014").iterdir())) == 12


def test_outlines_are_the_masks():
    scene = make_scene(5, "train", 200)
    for thing in scene.objects:
        found = scaled_mask(outlines_of(thing.mask, (1, 1)), (200, 200), 200)
        assert (found & thing.mask).sum() / (found | thing.mask).sum() > 0.97


def test_an_outline_around_one_pixel():
    mask = np.zeros((4, 4), bool)
    mask[1, 2] = True
    assert len(outlines_of(mask, (1, 1))[0]) >= 6


def test_another_form_is_refused(tmp_path):
    with pytest.raises(RisError, match="refcoco, refcocog, grefcoco, not as 'coco'"):
        write_as_refer(tmp_path, "coco", {"train": 1})


def test_pictures_are_of_the_scenes(root):
    image = read_refer(root, "refcoco", "train").images[0]
    number = int(image.name.split("_")[-1].split(".")[0]) - 1
    scene = make_scene(number, "train", 120)
    shown = np.asarray(Image.open(image.path).resize((120, 120)), float)
    assert np.abs(shown - scene.image).mean() < 12
