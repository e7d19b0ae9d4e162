"""`ris-eval`: bad lines, images and expressions are named and counted, and the rest is scored."""

from __future__ import annotations

import json
import pickle
import re

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from refer_files import write_refer
from ris.evaluation.command import main
from ris.evaluation.results import read_results
from ris.runtime.masks import encode_rle

MASK = np.zeros((30, 40), bool)
MASK[5:20, 8:30] = True


@pytest.fixture
def lines(tmp_path):
    """Nine lines, of which three can be used."""
    for name in "abcd":
        Image.new("RGB", (40, 30), "red").save(tmp_path / f"{name}.png")
    whole = (tmp_path / "d.png").read_bytes()
    (tmp_path / "d.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "e.png").write_bytes(b"no picture")
    code = dict(encode_rle(MASK))
    rows = [
        {"image": "a.png", "expression": "left\u2028man", "mask": code},
        {"image": "a.png", "expression": "  ", "mask": code},
        {"image": "a.png", "expression": "\u200b", "mask": None},
        {"image": "a.png", "expression": "the dog", "mask": None},
        {"image": "b.png", "expression": "x", "mask": {"size": [30, 40], "counts": "zz"}},
        {"image": "c.png", "expression": "the tree", "mask": code},
        {"image": "d.png", "expression": "x", "mask": None},
        {"image": "e.png", "expression": "x", "mask": None},
        {"image": "a.png", "expression": None, "mask": None},
    ]
    path = tmp_path / "own.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    return path


def run(*arguments):
    return CliRunner().invoke(main, [*map(str, arguments), "--engine", "onnxruntime"])


def places(sentences):
    return sorted(re.findall(r"line \d+|[a-e]\.png", sentence)[-1] for sentence in sentences)


LEFT_OUT = ["a.png", "d.png", "line 2", "line 5", "line 8", "line 9"]


def test_what_is_left_out_is_named_and_the_rest_is_scored(lines, tiny_bundle):
    done = run(tiny_bundle, "--data", lines, "--json")
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    assert found["kinds"]["all"]["samples"] == 3
    assert places(found["left_out"]) == LEFT_OUT
    assert "Error: 6 left out, named above; the figures are of the others" in done.stderr
    assert done.stderr.count("\nError: ") + done.stderr.startswith("Error: ") == 7


def test_an_evaluation_that_goes_on_counts_each_once(lines, tiny_bundle, tmp_path):
    out = tmp_path / "out"
    first = json.loads(run(tiny_bundle, "--data", lines, "--out", out, "--json").stdout)
    again = json.loads(run(tiny_bundle, "--data", lines, "--out", out, "--json").stdout)
    assert again["kinds"] == first["kinds"]
    assert places(again["left_out"]) == places(first["left_out"]) == LEFT_OUT
    assert [len(result.answers) for result in read_results(out)] == [2, 1]

    # an image that was repaired meanwhile is asked, and what was answered is not asked again
    Image.new("RGB", (40, 30)).save(lines.parent / "d.png")
    third = json.loads(run(tiny_bundle, "--data", lines, "--out", out, "--json").stdout)
    assert third["kinds"]["all"]["samples"] == 4
    assert len(third["left_out"]) == 5
    assert [len(result.answers) for result in read_results(out)] == [2, 1, 1]


def test_a_comparison_says_what_was_left_out(lines, tiny_bundle, tiny_fp16_bundle, tmp_path):
    pytest.importorskip("matplotlib", reason='pip install ".[eval]"')
    done = run("compare", tiny_bundle, tiny_fp16_bundle, "--data", lines, "--out", tmp_path / "r")
    assert done.exit_code == 2
    assert "6 left out, named above" in done.stderr
    assert places(json.loads((tmp_path / "r" / "report.json").read_text())["left_out"]) == LEFT_OUT
    assert "6 left out" in (tmp_path / "r" / "report.html").read_text()


def test_a_data_sets_sentence_without_words_is_named(tmp_path, tiny_bundle):
    write_refer(tmp_path)
    path = tmp_path / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    mine = next(ref for ref in refs if ref["split"] == "val")
    mine["sentences"][0]["raw"] = ""
    path.write_bytes(pickle.dumps(refs, protocol=2))
    done = run(tiny_bundle, "--data", "refcoco", "--root", tmp_path, "--json")
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    number = mine["sentences"][0]["sent_id"]
    place = f"sentence {number} of reference {mine['ref_id']}"
    assert found["skipped"][0].startswith(f'{place}, "": the expression is empty')
    # it is counted all the same, as an empty mask
    assert (found["metrics"]["count"], found["missing"]) == (6, [[mine["ref_id"], number]])


def test_a_reference_that_names_no_split_is_named_and_the_others_scored(tmp_path, tiny_bundle):
    """At which the published loaders stop, whatever split is asked."""
    write_refer(tmp_path)
    path = tmp_path / "refcoco" / "refs(unc).p"
    refs = pickle.loads(path.read_bytes())
    mine = next(ref for ref in refs if ref["split"] == "val")
    del mine["split"]
    path.write_bytes(pickle.dumps(refs, protocol=2))
    data = ("--data", "refcoco", "--root", tmp_path)
    done = run(tiny_bundle, *data, "--out", tmp_path / "out", "--json")
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    number = mine["ref_id"]
    assert found["left_out"][str(number)] == "it names no split"
    assert number in found["stops_at"]
    assert found["metrics"]["count"] == 4
    assert f"{number} (it names no split)" in done.stderr
    score = ["score", tmp_path / "out" / "predictions.jsonl", *data, "--split", "testB"]
    again = CliRunner().invoke(main, list(map(str, score)))
    assert again.exit_code == 2
    assert "refcoco has no split 'testB'; it has train, val" in again.stderr


def test_missing_pictures_of_a_data_set_are_named_and_the_others_scored(tmp_path, tiny_bundle):
    write_refer(tmp_path)
    pictures = tmp_path / "images" / "train2014"
    (pictures / "COCO_train2014_000000000004.jpg").unlink()
    done = run(tiny_bundle, "--data", "refcoco", "--root", tmp_path, "--json")
    assert done.exit_code == 2
    found = json.loads(done.stdout)
    (sentence,) = found["skipped"]
    assert sentence.startswith(str(pictures / "COCO_train2014_000000000004.jpg"))
    assert (found["metrics"]["count"], len(found["missing"])) == (6, 2)
    assert "2 questions have no answer" in done.stderr
    assert "3 left out, named above; questions without an answer count as empty" in done.stderr


def test_nothing_usable_is_an_error_at_once(tmp_path, tiny_bundle):
    (tmp_path / "bad.jsonl").write_text("{\n")
    done = run(tiny_bundle, "--data", tmp_path / "bad.jsonl", "--json")
    assert done.exit_code == 2
    assert done.stdout == ""
    assert "bad.jsonl has no line that can be used" in done.stderr
