"""What is refused leaves an earlier batch as it was; `--restart` throws it away last."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

pytest.importorskip("pyarrow", reason='pyarrow is not installed: pip install ".[ray]"')
pytest.importorskip("ray", reason='Ray is not installed: pip install ".[ray]"')

import ray

import ris.serving.batch.run as batch_run
from ris.engines.errors import EngineError, ExpressionError
from ris.engines.table import select
from ris.runtime import open_bundle
from ris.runtime.categories import CategoryTable
from ris.runtime.commands.running import Running
from ris.serving.batch.asked import Asked, Given, Location
from ris.serving.batch.command import main
from ris.serving.batch.inputs import group_by_image
from ris.serving.batch.parts import Job
from ris.serving.batch.run import BatchOptions, check_run, plan_batch
from serving_helpers import picture_bytes, table_bytes

GIVEN = Given(("left man",))


@pytest.fixture
def folder(tmp_path):
    """A folder of an image, with other sources beside it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture_bytes(1))
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "t.parquet").write_bytes(table_bytes())
    (tmp_path / "no.tar").write_bytes(b"no tar")
    return tmp_path / "in"


@pytest.fixture
def out(folder, tmp_path, served_bundle):
    """A batch that is done, with a journal that a worker left."""
    job, _ = plan_batch(tmp_path / "out", served_bundle, [folder], GIVEN, BatchOptions())
    job.write_answers(0, [{"row": 0, "expression": "left man"}], {})
    job.journal(0).begin(0)
    return job.folder


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["phtos", "-e", "x"], "phtos: no such file or folder"),
        (["in"], "nothing to look for in"),
        (["t.parquet", "in"], "nothing to look for in"),
        (["empty.jsonl"], "there is nothing in the input"),
        (["no.tar"], "cannot be read"),
        (["in", "-e", "x", "--form", "riddle"], "form 'riddle'"),
        (["in", "-e", "x", "--compute", "made_up=fp32"], "there is no graph made_up"),
        (["in", "-e", "x", "--engine", "openvino", "--device", "cuda"], "openvino' has no dev"),
        (["in", "-e", "x", "--address", "nowhere:1"], "Ray does not start or answer (nowhere:1)"),
    ],
)
def test_a_restart_that_is_refused_loses_nothing(
    out, tmp_path, served_bundle, monkeypatch, arguments, said
):
    def nobody(**how):
        raise ConnectionError("nobody answers")

    monkeypatch.setattr(ray, "init", nobody)
    monkeypatch.chdir(tmp_path)
    before = contents(out)
    options = ["--bundle", str(served_bundle), "--out", str(out), "--restart"]
    done = CliRunner().invoke(main, [*arguments, *options])
    assert done.exit_code == 2, done.output
    assert said in done.output
    assert contents(out) == before


def test_an_engine_that_cannot_run_here_is_refused_before_a_restart(
    out, folder, served_bundle, monkeypatch
):
    row = type(select("onnxruntime"))
    monkeypatch.setattr(row, "unusable", lambda self: "it is not installed")
    before = contents(out)
    options = ["--bundle", str(served_bundle), "--out", str(out), "--restart", "-e", "x"]
    done = CliRunner().invoke(main, [str(folder), *options, "--engine", "onnxruntime"])
    assert done.exit_code == 2
    assert "engine 'onnxruntime' cannot run here: it is not installed" in done.output
    assert contents(out) == before

    monkeypatch.undo()
    monkeypatch.setattr(batch_run, "create", lambda *options: None)  # as a package for GPUs does
    monkeypatch.setattr(row, "lacks_cuda", lambda self: "there is no GPU")
    on_gpu = Running("onnxruntime", "cuda:1", 1, None)
    with pytest.raises(EngineError, match="cannot run on cuda:1 here: there is no GPU"):
        check_run(served_bundle, on_gpu, BatchOptions(), restart=False)
    check_run(served_bundle, on_gpu, BatchOptions(address="auto"), restart=False)


@pytest.mark.parametrize("end", [OSError("the disk fails"), KeyboardInterrupt()])
def test_a_restart_that_ends_while_it_plans_keeps_the_answers(
    out, folder, served_bundle, monkeypatch, end
):
    def lines(*arguments):
        for i in range(3):
            yield Asked(f"{i}.png", Location(f"{i}.png"), ("x",))
        raise end

    monkeypatch.setattr(batch_run, "read_sources", lines)
    monkeypatch.setattr(batch_run, "grouped", lambda lines, folder: map(task_of, lines))
    before = (out / "part-00000.parquet").read_bytes()
    options = BatchOptions(rows_per_part=1)
    with pytest.raises(type(end)):
        plan_batch(out, served_bundle, [folder], GIVEN, options, restart=True)
    assert (out / "part-00000.parquet").read_bytes() == before
    assert Job(out).planned() is None


def task_of(line):
    [task] = group_by_image([line])
    return task


def test_a_restart_throws_the_earlier_batch_away_and_nothing_else(
    out, folder, tmp_path, served_bundle
):
    (out / "notes.txt").write_text("mine")
    (out / "_plan" / "plan.json").write_text("damaged")
    other = Given(("the dog", "a tree"))
    job, parts = plan_batch(out, served_bundle, [folder], other, BatchOptions(), restart=True)
    assert job.planned()["asked"]["expressions"] == ["the dog", "a tree"]
    assert job.open_parts(parts) == [0]
    assert [task.expressions for task in job.tasks(0)] == [["the dog", "a tree"]]
    assert sorted(path.name for path in out.iterdir()) == ["_plan", "notes.txt"]


def plan_of(bundle, source, category, *expressions):
    out = source.parent / "categories"
    return plan_batch(out, bundle, [source], Given(expressions, category), BatchOptions())


def test_a_category_that_no_image_could_be_asked_with_is_refused_before_the_plan(
    folder, served_category_bundle
):
    files = open_bundle(served_category_bundle).manifest.categories
    name = CategoryTable.read(served_category_bundle / files.names).names[0]
    lines = folder.parent / "in.jsonl"
    lines.write_text(json.dumps({"image": "in/a.png", "expression": "x"}))

    with pytest.raises(ExpressionError, match=r"asks by category: name .* \(--category auto\)"):
        plan_of(served_category_bundle, folder, None, "x")
    for source in (folder, lines):
        with pytest.raises(ExpressionError, match=f"no category '{name}q'; the nearest are"):
            plan_of(served_category_bundle, source, f"{name}q", "x")
    assert not (folder.parent / "categories").exists()

    job, _ = plan_of(served_category_bundle, lines, None)
    assert job.tasks(0)[0].categories == [None], "a line's own category is its own error"


@pytest.mark.parametrize("own", [False, True])
def test_a_category_that_is_known_or_guessed_is_planned(folder, served_category_bundle, own):
    files = open_bundle(served_category_bundle).manifest.categories
    name = CategoryTable.read(served_category_bundle / files.names).names[0]
    category = name if own else "auto"
    job, _ = plan_of(served_category_bundle, folder, category, "left man")
    assert job.tasks(0)[0].categories == [category]
