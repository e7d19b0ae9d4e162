"""The data sets' original files: what is read, what is refused, and that a pickle runs nothing."""

from __future__ import annotations

import json
import os
import pickle
import struct

import numpy as np
import pytest
from PIL import Image

from refer_files import uncompressed, write_refer, write_scenes
from ris.data.datasets import read_lines, read_refer, reference_mask
from ris.data.datasets.plain_pickle import load_plain_pickle
from ris.data.samples import refer_images, scene_images
from ris.engines.errors import RisError
from ris.runtime.masks import encode_rle


@pytest.mark.parametrize("name", ["refcoco", "refcoco+", "refcocog"])
def test_refcoco_as_published(tmp_path, name):
    refs = write_refer(tmp_path, name)
    data = read_refer(tmp_path, name, "train")
    assert [image.path.name[-6:] for image in data.images] == ["01.jpg", "03.jpg", "05.jpg"]
    first = data.images[0]
    written = [r for r in refs if r["image_id"] == 1]
    texts = [s["raw"] for r in written for s in r["sentences"]]
    assert [r.expression for r in first.references] == texts
    assert [r.category for r in first.references] == ["person", "person", "car", "car"]
    assert [r.annotations for r in first.references] == [(10,), (10,), (11,), (11,)]
    polygon, runs = (reference_mask(data, first, first.references[i]) for i in (0, 2))
    assert polygon.shape == runs.shape == (96, 120)
    assert polygon[12:40, 9:27].all()
    assert polygon.sum() == pytest.approx(600, abs=60)
    box = np.zeros((96, 120), bool)
    box[11:41, 48:68] = True
    np.testing.assert_array_equal(runs, box)


def test_grefcoco_has_several_objects_and_none(tmp_path):
    write_refer(tmp_path, "grefcoco")
    data = read_refer(tmp_path, "grefcoco", "val")
    image = data.images[0]
    one, other, both, nothing = image.references[::2]
    assert both.annotations == (*one.annotations, *other.annotations)
    union = reference_mask(data, image, one) | reference_mask(data, image, other)
    np.testing.assert_array_equal(reference_mask(data, image, both), union)
    assert nothing.annotations == ()
    assert nothing.category == "background"
    assert not reference_mask(data, image, nothing).any()


def test_what_is_missing_is_named_with_the_places(tmp_path):
    with pytest.raises(RisError, match="known are refcoco"):
        read_refer(tmp_path, "flickr", "train")
    words = r"list of references is missing: looked for .*refs\(unc\)\.p"
    with pytest.raises(RisError, match=words):
        read_refer(tmp_path, "refcoco", "train")
    write_refer(tmp_path)
    with pytest.raises(RisError, match="no split 'testA'; it has train, val"):
        read_refer(tmp_path, "refcoco", "testA")
    next((tmp_path / "images" / "train2014").glob("*03.jpg")).unlink()
    words = r"COCO_train2014_000000000003\.jpg is not in .*train2014"
    with pytest.raises(RisError, match=words):
        read_refer(tmp_path, "refcoco", "train")
    with pytest.raises(RisError, match="folder of images is missing"):
        read_refer(tmp_path, "refcoco", "train", images=tmp_path / "nowhere")
    (tmp_path / "refcoco" / "instances.json").write_text("{")
    with pytest.raises(RisError, match=r"instances\.json is not JSON"):
        read_refer(tmp_path, "refcoco", "val")
    (tmp_path / "refcoco" / "instances.json").write_text("{}")
    with pytest.raises(RisError, match="not the published form"):
        read_refer(tmp_path, "refcoco", "val")


def test_missing_pictures_cost_themselves_alone(tmp_path):
    write_refer(tmp_path)
    pictures = tmp_path / "images" / "train2014"
    other = tmp_path / "val2014"  # pictures may lie in several of the usual folders
    other.mkdir()
    (pictures / "COCO_train2014_000000000001.jpg").rename(other / "COCO_train2014_000000000001.jpg")
    (pictures / "COCO_train2014_000000000003.jpg").unlink()
    said = []
    data = read_refer(tmp_path, "refcoco", "train", skipped=said.append)
    assert [image.path.parent.name for image in data.images] == ["val2014", "train2014"]
    assert len(list(refer_images(data))) == 2
    (sentence,) = said
    assert sentence.startswith(f"COCO_train2014_000000000003.jpg is not in {pictures}, {other}")

    for file in (*pictures.iterdir(), *other.iterdir()):
        file.unlink()
    words = r"none of the 3 images is in .*, the first is COCO_train2014_000000000001\.jpg"
    with pytest.raises(RisError, match=words):
        read_refer(tmp_path, "refcoco", "train", skipped=[].append)


def _with(instances, place, value):
    found = json.loads(json.dumps(instances))
    where = found
    for key in place[:-1]:
        where = where[key]
    where[place[-1]] = value
    return found


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("images", 0, "id"), float("inf")),
        (("images", 0, "height"), float("nan")),
        (("images", 0, "height"), "wide " * 1000),
        (("images", 0, "file_name"), "two\nlines\ud83d.jpg"),
        (("images", 0, "file_name"), "x" * 5000),
        (("images", 0, "file_name"), "null\0"),
        (("annotations", 0, "id"), "two\nlines"),
        (("categories", 0, "id"), 1e400),
        (("categories", 0), None),
    ],
)
def test_what_no_author_published_is_one_short_sentence(tmp_path, place, value):
    write_refer(tmp_path)
    path = tmp_path / "refcoco" / "instances.json"
    path.write_text(json.dumps(_with(json.loads(path.read_text()), place, value)))
    with pytest.raises(RisError) as caught:
        read_refer(tmp_path, "refcoco", "train")
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_deep_json_and_infinite_ids_of_references_are_one_sentence(tmp_path):
    write_refer(tmp_path, "grefcoco")
    path = tmp_path / "grefcoco" / "grefs(unc).json"
    references = json.loads(path.read_text())
    references[0]["ann_id"] = [float("inf")]
    path.write_text(json.dumps(references))
    with pytest.raises(RisError, match=r"published form .*infinity"):
        read_refer(tmp_path, "grefcoco", "train")
    path.write_text("[" * 100_000)
    with pytest.raises(RisError, match=r"grefs\(unc\)\.json is nested too deeply"):
        read_refer(tmp_path, "grefcoco", "train")


class _Command:
    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def test_a_pickle_with_code_runs_nothing_and_is_named(tmp_path):
    write_refer(tmp_path)
    trap = _Command()
    trap.path = tmp_path / "ran"
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "refcoco" / "refs(unc).p").write_bytes(pickle.dumps([trap], protocol=protocol))
        words = r"refs\(unc\)\.p is refused: .* it asks for posix\.system"
        with pytest.raises(RisError, match=words):
            read_refer(tmp_path, "refcoco", "train")
    assert not trap.path.exists()


def test_plain_values_and_numpy_scalars_come_out(tmp_path):
    value = {
        "a": [1, 2.5, None, True, "ü", b"x", (3,), {4}],
        "n": np.int64(7),
        "f": np.float32(0.5),
    }
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        (tmp_path / "x.p").write_bytes(pickle.dumps(value, protocol=protocol))
        assert load_plain_pickle(tmp_path / "x.p") == value


@pytest.mark.parametrize(
    "content", [b"", b"not a pickle", b"\x80\x04\x95", b"(lp0\nI1\n", b"\x80\x02]q\x00(X"]
)
def test_a_torn_pickle_is_one_sentence(tmp_path, content):
    (tmp_path / "x.p").write_bytes(content)
    with pytest.raises(RisError, match=r"x\.p is"):
        load_plain_pickle(tmp_path / "x.p")


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]r" + struct.pack("<I", 60_000_000) + b".",
        b"\x80\x02X\x05\0\0\0r....r" + struct.pack("<I", 2**32 - 1) + b".",
        b"\x80\x04\x95" + struct.pack("<Q", 8) + b"]r" + struct.pack("<I", 2**24) + b"e.",
        b"(lp60000000\n.",
        b"(lp6_0_0_0_0_0_0_0\n.",
        b"(S'p60000000'\np16000000\n.",
    ],
)
def test_a_large_memo_number_takes_no_memory(tmp_path, content):
    (tmp_path / "x.p").write_bytes(content)
    with pytest.raises(RisError, match="it remembers a value under a number far too large"):
        load_plain_pickle(tmp_path / "x.p")


def test_what_a_text_holds_is_no_step(tmp_path):
    texts = ["r\xff\xff\xff\xff", "p99999999\n", "x" * 300 + "r!!!!"] * 100
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        value = [{"a": text, text: [text, i, 2.5, 10**30, None]} for i, text in enumerate(texts)]
        (tmp_path / "x.p").write_bytes(pickle.dumps(value, protocol=protocol))
        assert load_plain_pickle(tmp_path / "x.p") == value


def test_the_name_of_a_class_stays_in_its_line(tmp_path):
    for name in (b"x" * 5000, b"os\x1b[2J\xe2\x80\xa8", b"two\r"):
        (tmp_path / "x.p").write_bytes(b"c" + name + b"\nsystem\n.")
        with pytest.raises(RisError, match="it asks for") as caught:
            load_plain_pickle(tmp_path / "x.p")
        assert str(caught.value).isprintable()
        assert len(str(caught.value)) < 500


@pytest.mark.parametrize(
    "value", [np.arange(3), np.array(["a"], object)[0].__class__, range(3), Exception("x")]
)
def test_other_objects_are_refused(tmp_path, value):
    (tmp_path / "x.p").write_bytes(pickle.dumps([value]))
    with pytest.raises(RisError, match="it asks for"):
        load_plain_pickle(tmp_path / "x.p")


def test_an_unknown_annotation_is_named(tmp_path):
    write_refer(tmp_path)
    path = tmp_path / "refcoco" / "instances.json"
    instances = json.loads(path.read_text())
    instances["annotations"] = instances["annotations"][2:]
    path.write_text(json.dumps(instances))
    with pytest.raises(RisError, match="annotation 10 of reference 0 is not in"):
        read_refer(tmp_path, "refcoco", "train")


def test_ref_zom_says_where_nothing_is_meant(tmp_path):
    images = list(scene_images("heldout", 24, size=64))
    write_scenes(tmp_path, "ref-zom", images)
    data = read_refer(tmp_path, "ref-zom", "val")
    names = [f"COCO_train2014_{n:012d}.png" for n in range(1, len(images) + 1)]
    assert [image.name for image in data.images] == names
    for image, entry in zip(images, data.images, strict=True):
        assert [r.expression for r in entry.references] == [t.expression for t in image.truths]
        assert [bool(r.annotations) for r in entry.references] == [t.targeted for t in image.truths]
        for truth, reference in zip(image.truths, entry.references, strict=True):
            np.testing.assert_array_equal(reference_mask(data, entry, reference), truth.mask)
    assert not all(t.targeted for image in images for t in image.truths)
    # a zero reference may name an object that is somewhere else: its source decides
    refs = pickle.loads((tmp_path / "ref-zom" / "refs(final).p").read_bytes())
    zero = next(r for r in refs if r["source"] == "zero")
    zero["ann_id"] = 1
    (tmp_path / "ref-zom" / "refs(final).p").write_bytes(pickle.dumps(refs))
    again = read_refer(tmp_path, "ref-zom", "val")
    references = [reference for image in again.images for reference in image.references]
    of_zero = [r.annotations for r in references if r.reference_id == zero["ref_id"]]
    assert of_zero == [()]


@pytest.fixture
def own(tmp_path):
    """Three images, masks in every form."""
    mask = np.zeros((40, 60), bool)
    mask[5:20, 10:30] = True
    (tmp_path / "masks").mkdir()
    Image.fromarray(mask.astype(np.uint8) * 255).save(tmp_path / "masks" / "1.png")
    coloured = np.zeros((40, 60, 4), np.uint8)
    coloured[..., 3] = 255
    coloured[mask] = (0, 200, 0, 255)
    Image.fromarray(coloured).save(tmp_path / "masks" / "2.png")
    for name in ("a", "b"):
        Image.new("RGB", (60, 40)).save(tmp_path / f"{name}.jpg")
    box = uncompressed(40, 60, (10, 5, 20, 15))
    rows = [
        {"image": "a.jpg", "expression": "left man", "mask": "masks/1.png", "category": "person"},
        {"image": "b.jpg", "expression": "the dog", "mask": dict(encode_rle(mask))},
        {"image": "a.jpg", "expression": "a zebra", "mask": None},
        {"image": "b.jpg", "expression": "the other", "mask": box},
        {"image": "b.jpg", "expression": "the third", "mask": "masks/2.png"},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    return path, mask


def test_a_data_set_of_ones_own(own):
    path, mask = own
    data = read_lines(path)
    found = [(i.name, i.height, i.width, len(i.references)) for i in data.images]
    assert found == [("a.jpg", 40, 60, 2), ("b.jpg", 40, 60, 3)]
    first, zebra = data.images[0].references
    assert (first.category, zebra.annotations) == ("person", ())
    for image in data.images:
        for reference in image.references:
            want = mask if reference.expression != "a zebra" else np.zeros_like(mask)
            np.testing.assert_array_equal(reference_mask(data, image, reference), want)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "line 1: not JSON"),
        ('["a.jpg"]', "line 1: not of the form"),
        ('{"image": "a.jpg", "expression": "x"}', "line 1: .*: 'mask' is missing"),
        (
            '{"image": "a.jpg", "expression": "x", "mask": 3}',
            "a file name, a run-length code or null",
        ),
        (
            '{"image": "nosuch.jpg", "expression": "x", "mask": null}',
            r"nosuch\.jpg: no such image file \(line 1 of ",
        ),
        ("", "has no lines"),
    ],
)
def test_a_bad_line_is_named(own, line, words):
    path, _ = own
    path.write_text(line)
    with pytest.raises(RisError, match=words):
        read_lines(path)


@pytest.mark.parametrize(
    ("mask", "words"),
    [
        ("masks/nosuch.png", r"nosuch\.png: no such image file"),
        ({"size": [40, 60], "counts": "zz"}, "run-length code is damaged"),
        ({"size": [40, 60]}, "run-length code is damaged"),
        ({"size": [40, 60], "counts": [5, 5]}, "run-length code is damaged"),
        ({"size": 40, "counts": [5, 5]}, "run-length code is damaged"),
        ({"size": [40.0, "x"], "counts": [5, 5]}, r"a mask of it \(40.0, 'x'\)"),
        ({"size": "wide\n" * 1000, "counts": [5]}, r"its size is 'wide\\nwide.{0,80}'\)$"),
        ({"size": ["\n\0" * 1000, 1], "counts": ""}, r"a mask of it \('\\n\\x00.{0,80}', 1\)$"),
        ({"size": [40, 60], "counts": ["wide\n" * 1000]}, r"damaged \(ValueError: .{0,200}\)$"),
        ({"size": [40, 60], "counts": {"x": 1}}, "its counts are neither text nor a list"),
        ({"size": [2, 2], "counts": [4]}, r"40x60 \(height x width\), a mask of it \(2, 2\)"),
    ],
)
def test_a_bad_mask_is_one_sentence(own, mask, words):
    path, _ = own
    path.write_text(json.dumps({"image": "a.jpg", "expression": "x", "mask": mask}))
    data = read_lines(path)
    with pytest.raises(RisError, match=words):
        reference_mask(data, data.images[0], data.images[0].references[0])
