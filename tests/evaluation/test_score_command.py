"""`ris-eval score` and `ris-data check`: forms of answers, what is missing, what is wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image
from pycocotools import mask as coco

from ris.evaluation.command import main as ris_eval
from ris.evaluation.data_command import main as ris_data
from ris.evaluation.scoring import at_size

GOLDEN = Path(__file__).parent.parent / "golden" / "evaluation"


@pytest.fixture(scope="module")
def rows():
    """The golden answers to refcoco's val, as they stand."""
    text = (GOLDEN / "predictions-refcoco.jsonl").read_text(encoding="utf-8")
    asked = json.loads((GOLDEN / "questions.json").read_text())["LAVT"]["refcoco/unc/val"]
    wanted = {(question["ref_id"], question["sent_id"]) for question in asked}
    found = map(json.loads, text.splitlines())
    return [row for row in found if (row["ref_id"], row["sent_id"]) in wanted]


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def score(path, *more):
    arguments = ["score", str(path), "--data", "refcoco", "--root", str(GOLDEN), *more]
    done = CliRunner().invoke(ris_eval, arguments)
    return done.exit_code, done.stdout, done.stderr


def metrics(path):
    code, text, said = score(path, "--json")
    assert code == 0, said
    return json.loads(text)["metrics"]


def test_all_protocols_side_by_side(rows, tmp_path):
    code, text, said = score(write(tmp_path / "answers.jsonl", rows), "--protocol", "all")
    assert code == 0
    [line] = [line for line in text.splitlines() if "overall IoU" in line]
    cells = [float(cell) for cell in line.split("│")[2:-1]]
    assert cells == [47.17, 46.01, 54.04, 52.02, 53.03, 52.72]
    assert "rela leaves out 2 references, as its loader does: 1133 (annotation" in said
    assert "lavt: LAVT's test.py, masks compared at 480x480" in text


def test_missing_and_doubled_answers_are_named(rows, tmp_path):
    path = write(tmp_path / "answers.jsonl", [*rows[3:], rows[5], rows[6]])
    code, text, said = score(path, "--json")
    assert code == 2
    found = json.loads(text)
    assert found["missing"] == [[row["ref_id"], row["sent_id"]] for row in rows[:3]]
    assert found["doubled"] == [[row["ref_id"], row["sent_id"]] for row in rows[5:7]]
    first = f"sentence {rows[0]['sent_id']} of reference {rows[0]['ref_id']}"
    assert f"3 questions have no answer: {first}" in said
    assert "2 have more than one, of which the first counts" in said
    assert found["metrics"]["count"] == 35


def test_a_missing_answer_counts_as_an_empty_mask(rows, tmp_path):
    emptied = [{**row, "mask": None, "tie": None} for row in rows[:3]]
    wanted = metrics(write(tmp_path / "emptied.jsonl", [*emptied, *rows[3:]]))
    code, text, _ = score(write(tmp_path / "missing.jsonl", rows[3:]), "--json")
    assert code == 2
    assert json.loads(text)["metrics"] == wanted


def plain(row):
    """The row with one mask at 480x480, ties left out."""
    mask = coco.decode(row["mask"]["480"])
    if "480" in row["tie"]:
        mask &= 1 - coco.decode(row["tie"]["480"])
    code = coco.encode(np.asfortranarray(mask))
    return {**row, "tie": None, "mask": {**code, "counts": code["counts"].decode()}}


def as_coco(rows, folder):
    found = [{"sent_id": row["sent_id"], "segmentation": plain(row)["mask"]} for row in rows]
    path = folder / "results.json"
    path.write_text(json.dumps(found), encoding="utf-8")
    return path


def as_pictures(rows, folder):
    found = []
    for number, row in enumerate(rows):
        mask = coco.decode(plain(row)["mask"])
        Image.fromarray(mask * 255).save(folder / f"{number}.png")
        found.append({**row, "tie": None, "mask": f"{number}.png"})
    return write(folder / "pictures.jsonl", found)


def as_long_counts(rows, folder):
    found = []
    for row in map(plain, rows):
        flat = coco.decode(row["mask"]).ravel(order="F")
        edges = np.flatnonzero(np.diff(flat)) + 1
        runs = np.diff([0, *edges, flat.size]).tolist()
        counts = [0, *runs] if flat[0] else runs
        found.append({**row, "mask": {"size": [480, 480], "counts": counts}})
    return write(folder / "long.jsonl", found)


@pytest.mark.parametrize("form", [as_coco, as_pictures, as_long_counts])
def test_every_form_of_a_mask_counts_alike(form, rows, tmp_path):
    wanted = metrics(write(tmp_path / "plain.jsonl", rows))
    assert metrics(form(rows, tmp_path)) == wanted


def test_polygons_are_of_the_images_own_size(rows, tmp_path):
    image = json.loads((GOLDEN / "refcoco" / "instances.json").read_text())["images"]
    sizes = {one["id"]: (one["height"], one["width"]) for one in image}
    boxes, codes = [], []
    for row in rows:
        height, width = sizes[row["image_id"]]
        polygon = [2.0, 2.0, width - 9.0, 2.0, width - 9.0, height - 5.0, 2.0, height - 5.0]
        [code] = coco.frPyObjects([polygon], height, width)
        boxes.append({**row, "tie": None, "mask": [polygon]})
        codes.append({**row, "tie": None, "mask": {**code, "counts": code["counts"].decode()}})
    assert metrics(write(tmp_path / "polygons.jsonl", boxes)) == metrics(
        write(tmp_path / "codes.jsonl", codes)
    )


def test_the_answer_to_the_evaluators_own_text_is_taken(rows, tmp_path):
    asked = json.loads((GOLDEN / "questions.json").read_text())["LAVT"]["refcoco/unc/val"]
    texts = {(q["ref_id"], q["sent_id"]): q["text"] for q in asked}
    own = [{**row, "text": texts[row["ref_id"], row["sent_id"]]} for row in rows]
    other = [{**row, "text": "something else", "mask": None, "tie": None} for row in rows]
    wanted = metrics(write(tmp_path / "plain.jsonl", rows))
    assert metrics(write(tmp_path / "both.jsonl", [*other, *own])) == wanted


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"mask": None}, "line 1: it needs sent_id"),
        ({"sent_id": "7", "mask": None}, "line 1: it needs sent_id"),
        ([1], "line 1 is no JSON object"),
    ],
)
def test_a_file_of_another_form_is_one_sentence(row, said, tmp_path):
    code, _, text = score(write(tmp_path / "answers.jsonl", [row]))
    assert code == 2
    assert said in text


def test_a_mask_that_cannot_be_read_costs_its_own_answer(rows, tmp_path):
    broken = {**rows[0], "mask": {"size": [480, 480], "counts": [1, 2, 3]}, "tie": None}
    code, text, said = score(write(tmp_path / "answers.jsonl", [broken, *rows[1:]]), "--json")
    assert code == 2
    assert len(json.loads(text)["unreadable"]) == 1
    assert f"the answer to sentence {rows[0]['sent_id']} cannot be read" in said


def test_other_splits_and_protocols_are_refused(rows, tmp_path):
    path = write(tmp_path / "answers.jsonl", rows)
    assert "has no split 'nowhere'; it has testA" in score(path, "--split", "nowhere")[2]
    assert "has no splits by 'umd'; it has unc, google" in score(path, "--split-by", "umd")[2]
    arguments = ["score", str(path), "--data", "grefcoco", "--root", str(GOLDEN)]
    done = CliRunner().invoke(ris_eval, [*arguments, "--protocol", "lavt"])
    assert "protocol lavt does not count grefcoco" in done.stderr


@pytest.mark.parametrize("field", ["split", "ann_id", "sentences", "image_id", "ref_id"])
def test_references_of_another_form_are_one_sentence(field, rows, tmp_path):
    shutil.copytree(GOLDEN / "grefcoco", tmp_path / "grefcoco")
    file = tmp_path / "grefcoco" / "grefs(unc).json"
    references = json.loads(file.read_text())
    for wrong in (None, "x", [[1]]):
        for reference in references:
            reference[field] = wrong
        file.write_text(json.dumps(references))
        path = write(tmp_path / "answers.jsonl", rows)
        arguments = ["--data", "grefcoco", "--root", str(tmp_path)]
        done = CliRunner().invoke(ris_eval, ["score", str(path), *arguments])
        assert done.exit_code == 2, (wrong, done.stderr)
        assert "Internal" not in done.stderr
        assert check(tmp_path)[0] in (0, 2)


def check(*arguments):
    done = CliRunner().invoke(ris_data, ["check", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_a_check_says_what_is_there_and_what_is_not_whole(tmp_path):
    for name in ("refcoco", "images"):
        shutil.copytree(GOLDEN / name, tmp_path / name)
    names = sorted((tmp_path / "images" / "train2014").iterdir())
    gone, torn = names[:2]
    gone.unlink()
    torn.write_bytes(torn.read_bytes()[:20])
    code, text, _ = check(tmp_path, "--json")
    assert code == 2
    [found] = json.loads(text)
    assert not found["whole"]
    assert {"what": "references of val", "found": 17, "published": 3811} in found["sizes"]
    assert any(gone.name in sentence for sentence in found["images"])
    assert any(torn.name in sentence for sentence in found["images"])
    assert "no polygon of three points" in found["left_out"]["rela"]["1133"]
    code, text, _ = check(tmp_path)
    assert "42404 !" in text
    assert "Not there: refcoco+, refcocog, grefcoco, ref-zom" in text


def test_a_check_names_a_reference_without_a_split(tmp_path):
    shutil.copytree(GOLDEN / "grefcoco", tmp_path / "grefcoco")
    path = tmp_path / "grefcoco" / "grefs(unc).json"
    references = json.loads(path.read_text())
    del references[0]["split"]
    path.write_text(json.dumps(references))
    [found] = json.loads(check(tmp_path, "--json")[1])
    assert found["missing"] is None
    number = str(references[0]["ref_id"])
    assert found["left_out"]["rela"][number] == "it names no split"


def test_sizes_that_nobody_states_are_no_fault():
    code, text, _ = check(GOLDEN, "--data", "grefcoco")
    assert code == 0, text
    assert "not stated" in text


def test_each_evaluator_takes_the_mask_of_its_own_size():
    """A file may have a mask at several sizes; they are not resized versions of each other."""
    image, small, square = np.zeros((375, 500), bool), np.ones((480, 480), bool), np.eye(1024) > 0
    masks = (image, small, square)
    assert at_size(masks, 480, image.shape) is small
    assert at_size(masks, 1024, image.shape) is square
    assert at_size(masks, None, image.shape) is image
    # without one of the wanted size: an own-size mask for a square, 480x480 for CGFormer
    assert not at_size((image, square), 480, image.shape).any()
    assert at_size((small, square), None, image.shape).all()


def test_masks_of_no_meaning_are_named(rows, tmp_path):
    broken = ([[1, 2]], {}, [[1, 2, 3, 4]], [[1, 2, float("nan"), 4, 5, 6]], [["a"] * 6], 7)
    found = [{**row, "mask": mask} for row, mask in zip(rows, broken, strict=False)]
    path = write(tmp_path / "answers.jsonl", [*found, *rows[len(broken) :]])
    code, text, said = score(path, "--json")
    assert code == 2, said
    assert len(json.loads(text)["unreadable"]) == len(broken)
    assert "a polygon of 2 numbers" in said
