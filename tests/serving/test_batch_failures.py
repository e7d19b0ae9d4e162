"""What is no image's fault leaves a part open, and is tried by other workers; errors again."""

from __future__ import annotations

import errno
import json
import sys
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

pytest.importorskip("pyarrow", reason='pyarrow is not installed: pip install ".[ray]"')
pytest.importorskip("ray", reason='Ray is not installed: pip install ".[ray]"')

import pyarrow.parquet as pq
import ray

import ris.serving.batch.run as batch_run
from ris.engines.errors import EngineError, RisError
from ris.runtime.commands.running import Running
from ris.serving.batch.asked import Given
from ris.serving.batch.command import main
from ris.serving.batch.images import Ahead
from ris.serving.batch.inputs import group_by_image, read_sources
from ris.serving.batch.parts import DEATHS, Job
from ris.serving.batch.run import BatchOptions, BatchReport, plan_batch, run_batch
from ris.serving.batch.worker import NOT_TRIED, Worker
from ris.serving.limits import Limits
from serving_helpers import picture_bytes, pictures_in

RUNNING = {"engine": "onnxruntime", "device": "cpu", "threads": 1, "compute": None}
GIVEN = Given(("left man", "the dog"))


@pytest.fixture
def folder(tmp_path):
    """Six images, the third of which is no image."""
    folder = pictures_in(tmp_path / "in")
    (folder / "2.png").write_bytes(b"broken")
    return folder


@pytest.fixture
def job(folder, tmp_path):
    """Two parts of three images, of two rows each."""
    job = Job(tmp_path / "out")
    job.write_plan(group_by_image(read_sources([folder], GIVEN)), 6, {})
    return job


def worker(job, bundle, **options):
    return Worker(str(job.folder), str(bundle), RUNNING, Limits(), 0.5, **options)


def rows_of(job):
    return pq.read_table(job.folder).sort_by("row").to_pylist()


def journals(job):
    return [json.loads(file.read_text()) for file in (job.folder / "_running").iterdir()]


class DeadError(BaseException):
    """The worker's process is gone."""


def fails_at(monkeypatch, ours, name, breaks=False):
    """The engine fails at this image; with breaks it fails at everything from then on.

    Returns what was asked, "" for the picture that nothing is wrong with.
    """
    model, honest, honest_take = ours._model, ours._model.encode_image, ours._ahead.take
    asked, at, broken = [], [""], []

    def take(location):
        found = honest_take(location)
        at[0] = Path(location.file).name
        return found

    def encode(pixels):
        asked.append(at[0])
        at[0] = ""
        if broken or asked[-1] == name:
            broken.extend([1] * breaks)
            raise RuntimeError("CUDA error: device-side assert triggered")
        return honest(pixels)

    monkeypatch.setattr(ours._ahead, "take", take)
    monkeypatch.setattr(model, "encode_image", encode)
    return asked


@pytest.mark.parametrize(
    "fault",
    [
        RuntimeError("CUDA error: an illegal memory access was encountered\nCompile with ..."),
        MemoryError(),
        OSError(5, "Input/output error"),
        EngineError("fusion: CUDA failed: device lost"),
    ],
    ids=["cuda", "memory", "io", "engine"],
)
def test_an_engine_that_fails_never_makes_a_row(job, served_bundle, monkeypatch, fault):
    ours = worker(job, served_bundle)
    honest = ours._model.encode_image
    asked = []

    def encode(pixels):
        asked.append(pixels)
        if len(asked) == 2:
            raise fault
        return honest(pixels)

    monkeypatch.setattr(ours._model, "encode_image", encode)
    done = ours({"part": [0]})
    [failed] = done["failed"]
    assert failed.endswith("(at 1.png)")
    assert failed.isprintable()
    assert job.open_parts(2) == [0, 1]
    [journal] = journals(job)
    assert (journal["images"], journal["deaths"]) == ([], {}), "nobody died"
    assert list(journal["failures"]) == ["1"]
    assert list(done["well"]) == [True]
    assert list(worker(job, served_bundle)({"part": [0, 1]})["failed"]) == ["", ""]
    assert [row["row"] for row in rows_of(job) if row["error"]] == [4, 5], "of the broken image"


def test_an_engine_that_fails_at_a_question_never_makes_a_row(job, served_bundle, monkeypatch):
    ours = worker(job, served_bundle)

    def ask(*arguments):
        raise RuntimeError("CUDA error: unspecified launch failure")

    monkeypatch.setattr(ours._model, "_ask", ask)
    done = ours({"part": [0]})
    assert list(done["failed"]) == [
        "the engine failed: CUDA error: unspecified launch failure (at 0.png)"
    ]
    assert list(done["well"]) == [False]
    assert job.open_parts(2) == [0, 1]


def test_failures_of_the_engine_are_no_deaths_of_an_image(job, served_bundle, monkeypatch):
    monkeypatch.setattr(Worker, "_leave", staticmethod(lambda: None))
    ours = worker(job, served_bundle)
    honest = ours._answerer.scene

    def lost(image):
        raise EngineError("the device is lost")

    monkeypatch.setattr(ours._answerer, "scene", lost)
    monkeypatch.setattr(ours._answerer, "is_well", lambda: False)
    for _ in range(DEATHS + 2):
        ours({"part": [0]})
    monkeypatch.setattr(ours._answerer, "scene", honest)
    monkeypatch.setattr(ours._answerer, "is_well", lambda: True)
    ours({"part": [0, 1]})
    errors = [row["row"] for row in rows_of(job) if row["error"]]
    assert errors == [4, 5], "those of the broken image alone"


def test_a_worker_whose_engine_failed_ends_before_the_next_part(job, served_bundle, monkeypatch):
    def leave():
        raise DeadError

    monkeypatch.setattr(Worker, "_leave", staticmethod(leave))
    ours = worker(job, served_bundle)

    def lost(image):
        raise EngineError("the device is lost")

    monkeypatch.setattr(ours._answerer, "scene", lost)
    monkeypatch.setattr(ours._answerer, "is_well", lambda: False)
    ours({"part": [0]})
    with pytest.raises(DeadError):
        ours({"part": [1]})
    assert [journal["deaths"] for journal in journals(job)] == [{}], "nobody died"
    assert list(worker(job, served_bundle)({"part": [0, 1]})["failed"]) == ["", ""]


@pytest.mark.parametrize("breaks", [False, True], ids=["well", "broken"])
def test_an_image_at_which_the_engine_fails_alone_closes_its_part(
    job, served_bundle, monkeypatch, breaks
):
    """The second worker does it last, once it has seen that the engine is well."""
    first, second = worker(job, served_bundle), worker(job, served_bundle)
    fails_at(monkeypatch, first, "0.png", breaks)
    done = first({"part": [0]})
    assert "device-side assert triggered (at 0.png)" in done["failed"][0]
    assert (list(done["well"]), job.open_parts(2)) == ([not breaks], [0, 1])

    asked = fails_at(monkeypatch, second, "0.png", breaks)
    done = second({"part": [0]})
    assert (list(done["failed"]), list(done["errors"])) == ([""], [4])
    assert asked == ["1.png", "", "0.png", ""], "the third is no image"
    errors = [row["error"] for row in rows_of(job) if row["row"] in (0, 1)]
    said = "given up: the engine failed at this image alone, in 2 workers: the engine failed: CUDA"
    assert all(error.startswith(said) for error in errors)
    assert second._failed == breaks, "a broken device is left before the next part"
    assert journals(job) == []


def test_a_sick_engine_is_never_an_images_fault(job, served_bundle, monkeypatch):
    """Even at an image under suspicion."""
    fails_at(monkeypatch, first := worker(job, served_bundle), "0.png")
    first({"part": [0]})
    for _ in range(3):
        sick = worker(job, served_bundle)
        monkeypatch.setattr(sick._answerer, "is_well", lambda: False)
        assert list(sick({"part": [0]})["failed"]) == [
            "the engine fails at a picture that nothing is wrong with"
        ]
    assert job.open_parts(2) == [0, 1]
    assert list(worker(job, served_bundle)({"part": [0]})["failed"]) == [""]
    assert not any(row["error"] for row in rows_of(job)[:4])


def test_of_several_images_that_break_the_device_each_is_found(job, served_bundle, monkeypatch):
    tried = []
    for _ in range(5):
        ours = worker(job, served_bundle)
        for name in ("0.png", "1.png"):
            fails_at(monkeypatch, ours, name, breaks=True)
        tried.append(ours({"part": [0]})["failed"][0])
        if not tried[-1]:
            break
    assert [said[-6:] for said in tried] == ["0.png)", "1.png)", "0.png)", ""]
    assert sum("at this image alone" in (row["error"] or "") for row in rows_of(job)) == 4


def test_what_is_suspected_is_kept_for_the_next_run(job, served_bundle, monkeypatch):
    fails_at(monkeypatch, first := worker(job, served_bundle), "0.png")
    first({"part": [0, 1]})
    job.tidy([0])
    [journal] = journals(job)
    assert list(journal["failures"]) == ["0"]
    job.tidy()
    assert not (job.folder / "_running").exists()


def test_storage_that_went_away_is_no_images_fault(job, served_bundle, monkeypatch, folder):
    ours = worker(job, served_bundle)

    def stale(honest):
        def call(path, *arguments, **options):
            if path.name == "1.png":
                raise OSError(errno.ESTALE, "Stale file handle")
            return honest(path, *arguments, **options)

        return call

    for name in ("open", "stat"):
        with monkeypatch.context() as patched:
            patched.setattr(Path, name, stale(getattr(Path, name)))
            [failed] = ours({"part": [0]})["failed"]
        assert "1.png cannot be read: Stale file handle" in failed
        assert job.open_parts(2) == [0, 1]

    elsewhere = worker(job, served_bundle, sources=[str(folder), "/not/mounted"])
    [failed] = elsewhere({"part": [0]})["failed"]
    assert failed == "/not/mounted is not there on a worker's machine"

    late = worker(job, served_bundle, sources=[str(folder)])
    folder.rename(folder.with_name("gone"))
    [failed] = late({"part": [0]})["failed"]
    assert failed == f"{folder} is not there on a worker's machine"
    assert job.open_parts(2) == [0, 1]


def test_the_next_image_is_read_while_the_engine_works(job, served_bundle, monkeypatch):
    ours = worker(job, served_bundle)
    read = {name: threading.Event() for name in ("0.png", "1.png", "2.png")}
    honest_read, honest_scene = ours._ahead._images.read, ours._answerer.scene
    waited = []

    def reading(location):
        read[Path(location.file).name].set()
        return honest_read(location)

    def scene(image):
        waited.append(read[f"{len(waited) + 1}.png"].wait(timeout=60))
        return honest_scene(image)

    monkeypatch.setattr(ours._ahead._images, "read", reading)
    monkeypatch.setattr(ours._answerer, "scene", scene)
    assert list(ours({"part": [0]})["failed"]) == [""]
    assert waited == [True, True], "the third is no image"


def test_workers_leave_open_parts_alone_once_a_run_is_halted(job, served_bundle):
    ours = worker(job, served_bundle)
    job.halt(True)
    assert list(ours({"part": [0, 1]})["failed"]) == [NOT_TRIED] * 2
    job.halt(False)
    assert list(ours({"part": [0, 1]})["failed"]) == ["", ""]


def test_a_death_while_the_next_image_is_read_falls_on_both_once(job, served_bundle, monkeypatch):
    """Then each is alone, and the one that is to blame is given up."""
    honest = Ahead.begin

    def begin(self, task):
        if task.name == "1.png":
            raise DeadError
        honest(self, task)

    monkeypatch.setattr(Ahead, "begin", begin)
    with pytest.raises(DeadError):
        worker(job, served_bundle)({"part": [0]})
    assert journals(job) == [{"images": [0, 1], "deaths": {}}]
    for _ in range(DEATHS - 1):
        with pytest.raises(DeadError):
            worker(job, served_bundle)({"part": [0]})
    assert journals(job) == [{"images": [1], "deaths": {"0": 1, "1": 2}}]
    worker(job, served_bundle)({"part": [0, 1]})
    errors = {row["row"]: row["error"] for row in rows_of(job) if row["error"]}
    assert sorted(errors) == [2, 3, 4, 5]
    assert errors[2] == f"given up: {DEATHS} workers died on this image"
    assert "can be read" in errors[4]


def test_errors_are_asked_again_and_answers_are_kept(job, served_bundle, folder, monkeypatch):
    ours = worker(job, served_bundle)
    ours({"part": [0, 1]})
    before = rows_of(job)
    assert [row["row"] for row in before if row["error"]] == [4, 5]
    (folder / "2.png").write_bytes(picture_bytes(2))

    asked = []
    honest = ours._answerer.scene
    monkeypatch.setattr(ours._answerer, "scene", lambda image: asked.append(1) or honest(image))
    done = ours({"part": [0, 1], "again": [True, False]})
    assert list(done["rows"]) == [2, 6]
    assert list(done["errors"]) == [0, 0]
    assert len(asked) == 1
    after = rows_of(job)
    assert [row for row in after if row["row"] not in (4, 5)] == [
        row for row in before if row["row"] not in (4, 5)
    ]
    assert all(row["rle"] for row in after)


def of_rounds(*rounds, well=False):
    """A round after the other: what is said of each part, "" where it is done."""
    waiting = list(rounds)
    tried = []

    def work(parts):
        tried.append(dict(parts))
        said = waiting.pop(0)
        for part in parts:
            counts = {"rows": 2, "images": 1, "seconds": 1}
            yield {"part": part, "failed": said.get(part, ""), "well": well, **counts}

    return work, tried


def do(todo, *rounds, well=False):
    work, tried = of_rounds(*rounds, well=well)
    tally, failing = batch_run._Tally(), []
    batch_run._do(todo, tally, work, failing.append)
    return tally, tried, failing


def test_a_part_that_failed_is_tried_again_by_other_workers():
    todo = {0: False, 1: True, 2: False}
    tally, tried, failing = do(todo, {1: "lost", 2: "lost"}, {2: "gone"}, {})
    assert tried == [todo, {1: True, 2: False}, {2: False}]
    assert (tally.rows, tally.failed) == (6, {})
    assert failing == [0, 1, 2, 0, 1, 0]


def test_what_fails_every_time_stays_open_with_its_reason():
    always = {1: "lost"}
    tally, tried, _ = do({0: False, 1: False, 2: False}, always, always, always)
    assert [list(parts) for parts in tried] == [[0, 1, 2], [1]], "a second round that does nothing"
    assert tally.failed == {1: "lost"}
    tally, _, _ = do({0: False, 1: False}, {0: "lost", 1: "lost"}, {0: NOT_TRIED, 1: NOT_TRIED})
    assert tally.failed == {0: "lost", 1: "lost"}


def test_images_that_fail_do_not_halt_a_run_whose_engine_is_well():
    todo = dict.fromkeys(range(4), False)
    always = dict.fromkeys(todo, "at this image")
    tally, tried, failing = do(todo, always, always, {}, well=True)
    assert (len(tried), tally.failed) == (3, {})
    assert set(failing) == {0}


def report(**fields):
    values = {"rows": 4, "errors": 0, "parts": 3, "files": 2, "open_parts": 1, "new_rows": 4}
    values |= {"open_because": ["the device is lost"], "images": 2, "seconds": 1.0}
    return BatchReport(**{**values, "worker_seconds": 1.0, **fields})


@pytest.mark.parametrize(
    ("found", "code", "said"),
    [
        (
            report(),
            1,
            "Error: 1 of 3 parts could not be done and stay open (the device is lost); the same"
            " command goes on",
        ),
        (
            report(errors=2),
            1,
            "goes on. 2 of 4 rows have no answer; their column `error` says why",
        ),
        (report(open_parts=0, errors=2), 2, "Error: 2 of 4 rows have no answer"),
        (report(open_parts=0), 0, "4 rows, 0 of them errors, in 2 files"),
    ],
)
def test_the_exit_code_tells_open_parts_from_errors(
    folder, served_bundle, monkeypatch, tmp_path, found, code, said
):
    monkeypatch.setattr(batch_run, "run_batch", lambda *arguments: found)
    options = ["--bundle", str(served_bundle), "--out", str(tmp_path / "out"), "-e", "left man"]
    done = CliRunner().invoke(main, [str(folder), *options, "--engine", "onnxruntime"])
    assert done.exit_code == code
    assert said in done.output


def test_mended_images_of_a_folder_may_be_asked_again(folder, served_bundle, tmp_path):
    out = tmp_path / "out"
    again = BatchOptions(retry_errors=True)
    plan_batch(out, served_bundle, [folder], GIVEN, BatchOptions())
    (folder / "2.png").write_bytes(picture_bytes(2))
    with pytest.raises(RisError, match="has a batch with other files"):
        plan_batch(out, served_bundle, [folder], GIVEN, BatchOptions())
    assert plan_batch(out, served_bundle, [folder], GIVEN, again)[1] == 1
    assert plan_batch(out, served_bundle, [folder], GIVEN, BatchOptions())[1] == 1

    lines = tmp_path / "in.jsonl"
    lines.write_text('{"image": "in/1.png", "expression": "x"}\n')
    plan_batch(tmp_path / "out2", served_bundle, [lines], GIVEN, BatchOptions())
    lines.write_text('{"image": "in/2.png", "expression": "x"}\n')
    with pytest.raises(RisError, match="has a batch with other files"):
        plan_batch(tmp_path / "out2", served_bundle, [lines], GIVEN, again)


def test_a_batch_goes_on_in_its_form_alone(folder, formed_bundle, served_bundle, tmp_path):
    out = tmp_path / "out"

    def plan(form, bundle=formed_bundle, **more):
        return plan_batch(out, bundle, [folder], GIVEN, BatchOptions(form=form), **more)

    with pytest.raises(RisError, match="there is no form 'riddle'; the model has phrase and sent"):
        plan("riddle")
    assert not out.exists()
    job, _ = plan(None)
    assert job.planned()["asked"]["form"] == "phrase"
    assert plan("phrase")[0].planned() == job.planned()
    old = job.planned()
    del old["asked"]["form"]  # as before there were forms: the model's own was asked
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(job), "planned", lambda self: old)
        plan(None)
        with pytest.raises(RisError, match="has a batch with other form"):
            plan("sentence")

    with pytest.raises(RisError, match="has a batch with other form; use another --out"):
        plan("sentence")
    with pytest.raises(RisError, match="leave the form 'sentence' out"):
        plan("sentence", served_bundle, restart=True)
    assert job.planned()["asked"]["form"] == "phrase", "nothing was thrown away"
    assert plan("sentence", restart=True)[0].planned()["asked"]["form"] == "sentence"


class SickAtFirst(Worker):
    """Its engine fails at each part until three have failed; `sick` in `out` counts them."""

    def _part(self, part, again):
        sick = self._job.folder.parent / "sick"
        count = len(list(sick.iterdir()))
        if count < 3:
            (sick / str(count)).touch()
            raise EngineError("CUDA error: device lost")
        return super()._part(part, again)


@pytest.mark.ray
def test_a_batch_heals_where_an_engine_was_sick(folder, served_bundle, tmp_path, monkeypatch):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(batch_run, "Worker", SickAtFirst)
    (tmp_path / "sick").mkdir()
    options = BatchOptions(workers=1, cpus=1, rows_per_part=2)
    job, parts = plan_batch(tmp_path / "out", served_bundle, [folder], GIVEN, options)
    running = Running("onnxruntime", "cpu", 1, None)
    found = run_batch(job, parts, served_bundle, running, options)
    assert (found.parts, found.files, found.open_parts, found.open_because) == (6, 6, 0, [])
    assert (found.rows, found.errors) == (12, 2)
    assert len(list((tmp_path / "sick").iterdir())) == 3
