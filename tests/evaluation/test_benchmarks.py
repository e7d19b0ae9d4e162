"""`ris-eval run` and `ris-eval compare` on published data sets."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from ris.evaluation.command import main
from ris.runtime.bundle import BUILT_IN

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "evaluation"
PART = ("--data", "grefcoco", "--root", str(GOLDEN), "--split", "testA")
DATA = ("--engine", "onnxruntime", *PART)


def run(*arguments):
    done = CliRunner().invoke(main, [str(word) for word in arguments])
    return done.exit_code, done.stdout, done.stderr


def printed(*arguments):
    code, text, err = run(*arguments, "--json")
    assert code == 0, err
    return json.loads(text)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A folder of `--out`, and what was printed."""
    out = tmp_path_factory.mktemp("evaluated") / "ours"
    return out, printed("run", BUILT_IN, *DATA, "--protocol", "all", "--out", out)


def test_a_models_answers_are_scored_back_equal(evaluated):
    out, found = evaluated
    assert list(found["protocols"]) == ["rela", "released"]
    scored = printed("score", out / "predictions.jsonl", *PART, "--protocol", "all")
    assert scored["protocols"] == found["protocols"]
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text().splitlines()]
    assert {size for row in rows for size in row["mask"]} == {"480", "1024"}
    assert len(rows) == found["protocols"]["rela"]["metrics"]["count"]


def test_a_stopped_run_goes_on_with_the_same_answers(evaluated, tmp_path):
    out, found = evaluated
    part = tmp_path / "part"
    shutil.copytree(out, part)
    text = (out / "predictions.jsonl").read_text()
    (part / "predictions.jsonl").write_text(text[: len(text) // 2])
    command = ("run", BUILT_IN, *DATA, "--protocol", "all", "--out", part, "--json")
    code, shown, err = run(*command)
    assert (code, "goes on after" in err) == (0, True), err
    assert json.loads(shown)["protocols"] == found["protocols"]
    assert (part / "predictions.jsonl").read_text() == text
    code, _, err = run(*(word if word != "testA" else "testB" for word in command))
    assert (code, "has results of another evaluation (samples was" in err) == (2, True), err
    again = printed(*(word if word != "testA" else "testB" for word in command[:-1]), "--restart")
    assert again["split"] == "testB"


def test_without_a_folder_the_usual_evaluator_counts(evaluated):
    _, found = evaluated
    alone = printed(BUILT_IN, *DATA)
    assert alone["protocol"] == "rela"
    assert alone["metrics"] == found["protocols"]["rela"]["metrics"]
    code, text, err = run(BUILT_IN, *DATA)
    assert code == 0, err
    assert "rela: ReLA's refer_evaluation.py, masks compared at 480x480" in text


def test_a_comparison_has_each_ones_own_figures(evaluated, tmp_path):
    """A folder, a bundle that is asked first, and any system's file."""
    out, found = evaluated
    theirs = GOLDEN / "predictions-grefcoco.jsonl"
    command = ("compare", out, BUILT_IN, theirs, "--out", tmp_path / "report", *DATA)
    report = printed(*command, "--protocol", "released")
    assert (report["protocol"], report["compared_at"]) == ("released", "1024x1024")
    ours, bundle, other = report["runs"]
    assert ours["scores"] == bundle["scores"]
    for metric, value in ours["scores"]["all"].items():
        if metric != "samples":
            assert value == found["protocols"]["released"]["metrics"][metric]
    wanted = json.loads((GOLDEN / "metrics.json").read_text())
    wanted = wanted["dfam"]["grefcoco/unc/testA"]["metrics"]
    assert other["scores"]["all"]["gIoU"] == pytest.approx(wanted["gIoU"], abs=1e-9)
    difference = other["against_first"]["gIoU"]
    assert difference["low"] <= difference["value"] <= difference["high"]
    page = (tmp_path / "report" / "report.html").read_text()
    assert page.count("data:image/png") > 12


def test_bad_input_is_a_sentence(evaluated, tmp_path):
    out, _ = evaluated
    compare = ("compare", out, BUILT_IN, "--out", tmp_path / "report")
    for arguments, words in (
        ((BUILT_IN, *DATA, "--protocol", "lavt"), "lavt does not count grefcoco"),
        ((BUILT_IN, *PART[:-1], "testC"), "has no split 'testC'; it has"),
        ((*compare, "--protocol", "all"), "a comparison is by one evaluator"),
        ((*compare, *DATA, "--at", "480"), "has its own size"),
        (
            ("compare", out, BUILT_IN, "--data", "refcoco", *PART[2:]),
            "not to refcoco, unc, testA",
        ),
    ):
        code, _, err = run(*arguments)
        assert (code, words in err) == (2, True), err
