"""`ris-eval`: what is wrong is said before a model is fetched, opened and asked for hours."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys

import pytest
from click.testing import CliRunner

from conftest import GOLDEN as GOLDENS
from ris.evaluation.command import main
from ris.runtime.bundle import BUILT_IN
from ris.runtime.commands.running import Running

GOLDEN = GOLDENS / "evaluation"
REFCOCO = ("--data", "refcoco", "--root", GOLDEN)


def run(*arguments):
    done = CliRunner().invoke(main, [str(word) for word in arguments])
    return done.exit_code, " ".join(done.stderr.split())


def refuses(words, *arguments):
    code, said = run(*arguments)
    assert (code, words in said) == (2, True), said


@pytest.fixture
def unopened(monkeypatch):
    """No bundle may be fetched or opened."""

    def refuse(*given, **more):
        raise AssertionError("a bundle was opened")

    monkeypatch.setattr(Running, "load", refuse)
    monkeypatch.setattr("ris.runtime.hub.bundles.fetch_bundle", refuse)


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    """Answers to 4 expressions about scenes, compared at 480x480."""
    out = tmp_path_factory.mktemp("before") / "reference"
    options = ("--samples", 4, "--at", 480, "--out", out, "--engine", "onnxruntime")
    code, said = run(BUILT_IN, *options)
    assert code == 0, said
    return out


def another(reference, folder, **setup):
    """A copy of a folder of answers that says something else of itself."""
    shutil.copytree(reference, folder)
    found = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(found | setup))
    return folder


UNOPENED = pytest.mark.usefixtures("unopened")


@UNOPENED
@pytest.mark.parametrize("command", [("run", BUILT_IN), ("compare", BUILT_IN, BUILT_IN)])
def test_what_counts_the_answers_is_there(command, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    refuses("COCO's outlines need pycocotools", *command, *REFCOCO, "--out", tmp_path / "out")


@UNOPENED
def test_without_what_counts_a_cell_says_so(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pycocotools", None)
    spec, out = tmp_path / "tables.toml", tmp_path / "out"
    columns = 'columns = [{ data = "refcoco", split = "val", metric = "mIoU" }]'
    spec.write_text(
        f'root = "{GOLDEN}"\n[[systems]]\nid = "x"\nbundle = "{BUILT_IN}"\n'
        f'[[tables]]\ntitle = "T"\nsystem = "x"\n{columns}\n'
    )
    refuses("1 of 1 cells", "tables", spec, "--out", out)
    [table] = json.loads((out / "tables.json").read_text())["tables"]
    assert "need pycocotools" in table["rows"][0]["cells"][0]["missing"]


@UNOPENED
@pytest.mark.parametrize(
    ("options", "words"),
    [
        ((*REFCOCO, "--split", "tesA"), "refcoco has no split 'tesA'; it has"),
        (("--data", "nosuch.jsonl"), "nosuch.jsonl cannot be read"),
        (("--form", "typo"), "leave the form 'typo' out"),
        (("--seed", 1), "this model draws no random numbers"),
    ],
)
def test_samples_split_form_and_seed_are_there(options, words):
    refuses(words, BUILT_IN, *options)


@UNOPENED
def test_no_bundle_is_fetched_for_a_split_that_is_not_there():
    wrong = (*REFCOCO, "--split", "tesA")
    refuses("has no split 'tesA'", "hf://org/none", *wrong)


@UNOPENED
def test_every_model_of_a_comparison_is_looked_at(reference, tmp_path):
    pytest.importorskip("matplotlib")
    (tmp_path / "empty").mkdir()
    (tmp_path / "answers.jsonl").write_text("{}\n")
    damaged = tmp_path / "damaged"
    shutil.copytree(BUILT_IN, damaged)
    next(damaged.rglob("*.onnx")).unlink()
    samples = {"data": "refcoco", "split": "testA", "split_by": "unc", "root": "data"}
    other = another(reference, tmp_path / "other", samples=samples)
    out = ("--out", tmp_path / "out")
    for last, options, words in (
        (tmp_path / "empty", (), "neither a bundle nor a folder"),
        (tmp_path / "answers.jsonl", (), "it needs --data with a data set's name"),
        (damaged, (), "is damaged"),
        (other, (*REFCOCO, "--split", "val"), "not to refcoco, unc, val"),
    ):
        refuses(words, "compare", BUILT_IN, BUILT_IN, last, *options, *out)
    refuses("neither a bundle", "compare", "hf://org/none", tmp_path / "empty", *out)


@UNOPENED
def test_folders_have_the_samples_and_the_place_that_are_asked(reference, tmp_path):
    pytest.importorskip("matplotlib")
    compare = ("compare", reference, BUILT_IN, "--out", tmp_path / "out")
    refuses("was evaluated with --at 480, not with --at image", *compare, "--at", "image")
    heldout = "reference has answers to 4 expressions about heldout scenes, not to"
    refuses(f"{heldout} 8 expressions about heldout scenes", *compare, "--samples", 8)
    refuses(f"{heldout} 4 expressions about train scenes", *compare, "--split", "train")

    whole = another(reference, tmp_path / "whole", at="image", name="whole")
    refuses("480x480 and the image's own size", *compare[:3], whole, *compare[3:])
    (tmp_path / "own.jsonl").write_text("{}\n")
    own = ("--data", tmp_path / "own.jsonl")
    refuses("about heldout scenes, not to own pictures", *compare, *own)


def test_a_bundle_is_compared_where_the_folder_was(reference, tmp_path):
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    code, said = run("compare", reference, BUILT_IN, "--out", out, "--engine", "onnxruntime")
    assert code == 0, said
    [setup] = out.glob("answers/*/run.json")
    assert json.loads(setup.read_text())["at"] == "480"
    ours, theirs = json.loads((out / "report.json").read_text())["runs"]
    assert ours["scores"] == theirs["scores"]
    # the same model twice: the second has its number
    assert theirs["name"] == f"{ours['name']} (2)"


def test_pytorch_is_there_before_weights_are_fetched(monkeypatch):
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torch" else found(name)
    )

    def fetch(names, **how):
        raise AssertionError("it was fetched")

    monkeypatch.setattr("ris.runtime.commands.named_files.fetch_given", fetch)
    refuses("--pytorch needs PyTorch", "--pytorch", "--checkpoint", "x.pth")
