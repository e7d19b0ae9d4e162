"""What the released loader leaves out of a data set is left out of training, and named."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from refer_files import folders, write_files, write_refer
from ris.data.datasets import ReferData, Reference, ReferImage
from ris.engines.errors import RisError
from ris.training.reading import hold_out, read_for_training

BOX = [[1.0, 1.0, 9.0, 1.0, 9.0, 9.0, 1.0, 9.0]]


def annotation(number, segmentation=BOX, **other):
    return {
        "id": number,
        "image_id": 1,
        "category_id": 18,
        "segmentation": segmentation,
        "bbox": [1, 1, 8, 8],
        "iscrowd": 0,
    } | other


def reference(number, ann_id, **other):
    sentence = {"raw": f"Raw {number}!", "sent": f"raw {number}", "sent_id": number}
    return {
        "ref_id": number,
        "ann_id": ann_id,
        "image_id": 1,
        "split": "train",
        "category_id": 18,
        "sentences": [sentence],
        "sent_ids": [number],
    } | other


CODE = {"size": [30, 40], "counts": [1200]}
ANNOTATIONS = [
    annotation(1),
    annotation(2, [[1.0, 1.0, 9.0, 9.0]]),
    annotation(3, CODE, iscrowd=1),
    annotation(4, [[1.0, 1.0, 9.0, 9.0], *BOX]),
    annotation(5, [["x", 1.0, 9.0, 1.0, 9.0, 9.0]]),
    annotation(6, None),
]


def read(root, name, references, said):
    folder, pictures = folders(root, name)
    (pictures / "a.jpg").write_bytes(b"not looked at")
    shapes = [{"id": 1, "file_name": "a.jpg", "height": 30, "width": 40}]
    write_files(folder, name, references, shapes, ANNOTATIONS)
    return read_for_training(name, "train", root=root, skipped=said.append)


def by_reference(data):
    return {one.reference_id: one for image in data.images for one in image.references}


def test_of_the_sets_with_one_object(tmp_path):
    said = []
    references = [
        reference(0, 1),
        reference(1, 2),
        reference(2, 3),
        reference(3, 4),
        reference(4, 5),
        reference(5, 6),
        reference(6, 99),
        reference(7, 1, sentences=[{"raw": " ", "sent": "", "sent_id": 7}]),
        reference(8, 1, image_id=77),
        {"ref_id": 9, "split": "train", "sentences": []},
        reference(10, 1, split="val"),
        {k: v for k, v in reference(11, 1).items() if k != "split"},
    ]
    found = by_reference(read(tmp_path, "refcoco", references, said))
    assert set(found) == {0, 3}
    assert found[0].expression == "Raw 0!"
    assert found[0].category == "dog"
    assert found[3].annotations == (4,)
    reasons = dict(sentence.split(" is left out: ") for sentence in said[:-1])
    assert len(said) == len(reasons) + 1 == 9
    expected = {
        1: "no polygon of three points",
        2: "crowds alone",
        4: "annotation 5",
        5: "has no outline",
        6: "annotation 99 is not in instances.json",
        8: "image 77 is not in instances.json",
        9: "has not the published form",
        11: "it names no split",
    }
    for number, words in expected.items():
        where = "refcoco" if number == 11 else "refcoco, train"
        assert words in reasons[f"{where}: reference {number}"]
    assert "empty" in said[-1]


def test_of_grefcoco(tmp_path):
    said = []
    references = [
        reference(0, [-1], category_id=[-1]),
        reference(1, [1, 4]),
        reference(2, [1, 3]),
        reference(3, [1, 2]),
        reference(4, [2]),
        reference(5, [3]),
        reference(6, [-1, 1]),
        reference(7, [1, 1]),
    ]
    found = by_reference(read(tmp_path, "grefcoco", references, said))
    meant = {number: one.annotations for number, one in found.items()}
    assert meant == {0: (), 1: (1, 4), 2: (1,), 3: (1,), 7: (1,)}
    assert all(one.category == "background" for one in found.values())
    assert [sentence.split(" is left out: ")[1] for sentence in said] == [
        "none of its objects has an outline",
        "it means crowds alone",
        "its ann_id has -1 beside objects",
    ]


def test_nothing_is_left_out_unsaid(tmp_path):
    write_refer(tmp_path, "grefcoco")
    with pytest.raises(RisError, match="reference 1 is left out: annotation 11 is a run-length"):
        read_for_training("grefcoco", "train", root=tmp_path)


def test_a_split_that_is_not_there(tmp_path):
    write_refer(tmp_path, "refcoco")
    message = r"nothing to validate on in 'testC'; it has train, val: .* such as refcoco:val$"
    with pytest.raises(RisError, match=message):
        read_for_training("refcoco", "testC", root=tmp_path, skipped=lambda sentence: None)
    write_refer(tmp_path, "grefcoco", splits=("val",))
    with pytest.raises(RisError, match=r"nothing to train on in 'train'; it has val$"):
        read_for_training("grefcoco", "train", root=tmp_path, skipped=lambda sentence: None)


def test_a_file_of_ones_own(tmp_path):
    from PIL import Image

    Image.new("RGB", (40, 30)).save(tmp_path / "a.png")
    rows = [{"image": "a.png", "expression": text, "mask": None} for text in ("a zebra", "  ")]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    said = []
    data = read_for_training(str(tmp_path / "own.jsonl"), "train", skipped=said.append)
    assert [one.expression for one in data.images[0].references] == ["a zebra"]
    assert len(said) == 1
    assert said[0].startswith("own.jsonl, line 2")


def test_a_published_set_needs_its_folder():
    with pytest.raises(RisError, match="refcoco needs --root"):
        read_for_training("refcoco", "train")


def test_images_are_held_out_of_a_file_whole():
    def data(sizes):
        one = Reference("the dog", (), None, 0, 0)
        images = (ReferImage(str(i), Path(str(i)), 3, 4, (one,) * n) for i, n in enumerate(sizes))
        return ReferData("own.jsonl", "all", tuple(images), {})

    def sentences(part):
        return sum(len(image.references) for image in part.images)

    for sizes, held in (([1, 1], 1), ([30, 2, 40], 2), ([2] * 100, 10), ([1] * 20_000, 500)):
        rest, judged = hold_out(data(sizes))
        assert sentences(judged) == held
        assert sentences(rest) == sum(sizes) - held
        assert not {image.name for image in rest.images} & {image.name for image in judged.images}
        assert hold_out(data(sizes)) == (rest, judged)
    with pytest.raises(RisError, match=r"about one image, .* give --validation"):
        hold_out(data([9]))
