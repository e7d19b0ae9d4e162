"""A data set's outlines one by one: a bad one is named and left out, the others go on."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from PIL import Image

from refer_files import uncompressed, write_refer
from ris.data.datasets import read_lines, read_refer, reference_mask
from ris.data.samples import refer_images
from ris.engines.errors import RisError
from ris.runtime.masks import encode_rle

BOX = (8, 11, 20, 30)
"""The first image's first object in `write_refer`."""


def with_outline(root, outline):
    """The train split, whose annotation 10 has this outline."""
    write_refer(root)
    path = root / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    for annotation in instances["annotations"]:
        if annotation["id"] == 10:
            annotation["segmentation"] = outline
            if outline == "missing":
                del annotation["segmentation"]
    path.write_text(json.dumps(instances))
    return read_refer(root, "refcoco", "train")


@pytest.mark.parametrize(
    ("outline", "words"),
    [
        (None, "annotation 10: an outline is polygons or a run-length code; it is null"),
        ("missing", "annotation 10: an outline is polygons or a run-length code; it is null"),
        ("text", "annotation 10: .* it is str"),
        (7, "annotation 10: .* it is int"),
        ([[10, 10, math.nan, 10, 60, 50]], "annotation 10: .* not a finite number"),
        ([[10, 10, math.inf, 10, 60, 50]], "annotation 10: .* not a finite number"),
        ([[10, 10, "a", 10, 60, 50]], "annotation 10: .* is 'a', not a number"),
        ([[[10, 10, 20, 20, 60, 50]]], "annotation 10: .* nested deeper"),
        ({"size": [96, 120], "counts": [5, 5]}, "annotation 10: .* code is damaged"),
        ({"size": [96, 120]}, "annotation 10: .* code is damaged"),
        ({"size": [9, 9], "counts": [81]}, r"annotation 10: .* a mask of it \(9, 9\)"),
        (
            [{"size": [10**9, 10**9], "counts": [10**18]}],
            r"annotation 10: .* a mask of it \(1000000000",
        ),
        (
            [{"size": [96, 120], "counts": [11520]}, {"size": [9, 9], "counts": [81]}],
            "annotation 10: its run-length codes are of several sizes",
        ),
    ],
)
def test_a_bad_outline_is_left_out_and_named(tmp_path, outline, words):
    data = with_outline(tmp_path, outline)
    skipped, notes = [], []
    images = list(refer_images(data, skipped=skipped.append, noted=notes.append))
    assert [len(image.truths) for image in images] == [2, 4, 4]
    assert len(skipped) == 2  # the reference has two sentences
    for sentence in skipped:
        assert sentence.startswith("COCO_train2014_000000000001.jpg, sentence ")
    with pytest.raises(RisError, match=words):
        next(refer_images(data))
    assert not notes


@pytest.mark.parametrize("outline", [[], [[10, 10, 60, 50]], [[10, 10, 60, 50, 3]], [[]]])
def test_a_degenerate_outline_is_an_empty_mask_with_a_note(tmp_path, outline):
    data = with_outline(tmp_path, outline)
    notes = []
    first, *rest = refer_images(data, noted=notes.append)
    assert [truth.mask.any() for truth in first.truths] == [False, False, True, True]
    assert all(truth.targeted for truth in first.truths)
    assert len(rest) == 2
    assert len(notes) == 2
    for sentence in notes:
        assert "000001.jpg, sentence " in sentence
        assert "annotation 10: " in sentence
        assert sentence.endswith("so its mask is empty")


def test_run_length_codes_alone_and_in_a_list(tmp_path):
    """Crowds have one, not compressed; some tools write a list of compressed ones."""
    box = uncompressed(96, 120, BOX)
    other = np.zeros((96, 120), bool)
    other[60:70, 70:90] = True
    want = np.zeros((96, 120), bool)
    want[11:41, 8:28] = True
    for number, (outline, mask) in enumerate(
        ((box, want), ([box], want), ([box, dict(encode_rle(other))], want | other))
    ):
        data = with_outline(tmp_path / str(number), outline)
        image = data.images[0]
        np.testing.assert_array_equal(reference_mask(data, image, image.references[0]), mask)


def test_mask_files_of_ones_own_are_named(tmp_path):
    void = np.zeros((40, 60), np.uint8)
    void[5:20, 10:30], void[4, 10:30] = 1, 255
    Image.fromarray(void).save(tmp_path / "void.png")
    Image.fromarray(np.uint8(void == 1)).save(tmp_path / "good.png")
    Image.new("RGB", (60, 40)).save(tmp_path / "a.jpg")
    rows = [{"image": "a.jpg", "expression": "x", "mask": f"{n}.png"} for n in ("void", "good")]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    skipped = []
    (image,) = refer_images(read_lines(tmp_path / "own.jsonl"), skipped=skipped.append)
    np.testing.assert_array_equal(image.truths[0].mask, void == 1)
    (sentence,) = skipped
    assert sentence.startswith("own.jsonl, line 1: ")
    assert "void.png does not say what the object is: it has 3 values (0, 1, 255)" in sentence


def test_a_data_sets_pictures_are_read_as_everywhere(tmp_path):
    """Sixteen bits are scaled, and transparent pixels are white."""
    grey = np.arange(2400, dtype=np.uint16).reshape(40, 60) * 27
    Image.fromarray(grey).save(tmp_path / "deep.png")
    clear = np.zeros((40, 60, 4), np.uint8)
    Image.fromarray(clear).save(tmp_path / "clear.png")
    rows = [{"image": f"{n}.png", "expression": "x", "mask": None} for n in ("deep", "clear")]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    deep, clear_image = refer_images(read_lines(tmp_path / "own.jsonl"))
    np.testing.assert_array_equal(deep.rgb[..., 0], np.rint(grey / 257))
    assert (clear_image.rgb == 255).all()
