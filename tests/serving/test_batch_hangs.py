"""An engine that never comes back: its worker ends, and what it was at is a failure."""

from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
import time

import pytest
from click.testing import CliRunner

pytest.importorskip("pyarrow", reason='pyarrow is not installed: pip install ".[ray]"')
pytest.importorskip("ray", reason='Ray is not installed: pip install ".[ray]"')

import pyarrow.parquet as pq
import ray

import ris.serving.batch.run as batch_run
from ris.serving.batch import watch
from ris.serving.batch.asked import Given
from ris.serving.batch.command import main
from ris.serving.batch.inputs import group_by_image, read_sources
from ris.serving.batch.parts import Job
from ris.serving.batch.worker import Worker
from ris.serving.limits import Limits
from serving_helpers import picture_bytes, pictures_in

RUNNING = {"engine": "onnxruntime", "device": "cpu", "threads": 1, "compute": None}
HUNG = picture_bytes(1)


@pytest.fixture
def folder(tmp_path):
    """Six images."""
    return pictures_in(tmp_path / "in")


@pytest.fixture
def job(folder, tmp_path):
    """Two parts of three images, of a row each."""
    job = Job(tmp_path / "out")
    job.write_plan(group_by_image(read_sources([folder], Given(("left man",)))), 3, {})
    return job


class EndedError(BaseException):
    """The worker's process is gone."""


def worker(job, bundle):
    return Worker(str(job.folder), str(bundle), RUNNING, Limits(), 0.5)


def tried(worker):
    """What a worker returned of the first part: why it failed, and whether it is well or sick."""
    done = worker({"part": [0]})
    return done["failed"][0], bool(done["well"][0]), bool(done["sick"][0])


def hangs_at(monkeypatch, ours, asked):
    """The engine does not come back from the second image, and the worker ends, as a process."""
    honest = ours._answerer.scene

    def scene(image):
        asked.append(image.key)
        if image.key == hashlib.sha256(HUNG).digest():
            monkeypatch.setattr("os.kill", lambda process, signal: None)
            ours._late()
            raise EndedError
        return honest(image)

    monkeypatch.setattr(ours._answerer, "scene", scene)


def test_an_image_that_the_engine_does_not_come_back_from_is_given_up_and_the_others_answered(
    job, served_bundle, monkeypatch
):
    said = "the engine did not answer about 1.png within 60 s"
    asked = []
    hangs_at(monkeypatch, ours := worker(job, served_bundle), asked)
    with pytest.raises(EndedError):
        ours({"part": [0]})
    assert tried(worker(job, served_bundle)) == (said, True, False), "given back, once"

    del asked[:]
    hangs_at(monkeypatch, ours := worker(job, served_bundle), asked)
    with pytest.raises(EndedError):
        ours({"part": [0]})
    assert asked[-1] == hashlib.sha256(HUNG).digest()
    assert len(asked) == 3, "after all others"

    assert tried(worker(job, served_bundle)) == ("", False, False)
    errors = [row["error"] for row in pq.read_table(job.folder).sort_by("row").to_pylist()]
    given_up = "given up: the engine failed at this image alone, in 2 workers: "
    assert errors == [None, given_up + said, None]


def test_an_engine_that_hangs_at_a_picture_of_the_house_costs_no_image(
    job, served_bundle, monkeypatch
):
    hangs_at(monkeypatch, ours := worker(job, served_bundle), [])
    with pytest.raises(EndedError):
        ours({"part": [0]})
    worker(job, served_bundle)({"part": [0]})  # gives it back

    ours = worker(job, served_bundle)
    honest = ours._answerer.is_well

    def hang():
        ours._late()
        raise EndedError

    monkeypatch.setattr(ours._answerer, "is_well", hang)
    with pytest.raises(EndedError):
        ours({"part": [0]})
    monkeypatch.setattr(ours._answerer, "is_well", honest)
    said = "the engine did not answer about a picture that nothing is wrong with within 60 s"
    assert tried(worker(job, served_bundle)) == (said, True, False)
    assert tried(worker(job, served_bundle)) == ("", False, False)
    errors = pq.read_table(job.folder)["error"].to_pylist()
    assert errors == [None] * 3, "it answered about the image the second time"


def test_a_model_that_does_not_open_makes_its_worker_sick(job, served_bundle, monkeypatch):
    ours = worker(job, served_bundle)

    def hang():
        monkeypatch.setattr("os.kill", lambda process, signal: None)
        ours._late()
        raise EndedError

    ours._open = hang
    with pytest.raises(EndedError):
        ours({"part": [0]})
    following = worker(job, served_bundle)
    following._open = lambda: pytest.fail("it was opened once more")
    said = "the model did not open and answer about a small picture within 240 s"
    assert tried(following) == (said, False, True)
    assert tried(worker(job, served_bundle)) == ("", False, False), "the next try is a new one"


def test_an_image_that_is_not_read_is_no_fault_of_the_image(job, served_bundle, monkeypatch):
    ours = worker(job, served_bundle)

    def hang(location):
        monkeypatch.setattr("os.kill", lambda process, signal: None)
        ours._late()
        raise EndedError

    monkeypatch.setattr(ours._ahead, "take", hang)
    with pytest.raises(EndedError):
        ours({"part": [0]})
    assert job.journal(0).failures(0) == []
    assert tried(worker(job, served_bundle)) == ("0.png was not read within 60 s", True, False)


def test_workers_that_die_while_they_open_the_model_are_not_started_for_ever(job, served_bundle):
    """A library that holds Python's lock, or one that crashes, leaves no other word."""

    def die():
        raise EndedError

    for _ in range(3):
        ours = worker(job, served_bundle)
        ours._open = die
        with pytest.raises(EndedError):
            ours({"part": [0]})
    assert tried(worker(job, served_bundle)) == (
        "3 workers died while they opened the model",
        False,
        True,
    )
    assert tried(worker(job, served_bundle)) == ("", False, False), "the next try is a new one"


def test_an_engine_that_hangs_at_one_part_after_the_other_is_seen():
    """Each of them takes long, though the engine answers about a picture of the house."""
    failing = []

    def work(parts):
        for part in parts:
            yield {"part": part, "failed": "it hangs", "well": True, "hung": True, "sick": False}

    batch_run._do(dict.fromkeys(range(3), False), batch_run._Tally(), work, failing.append)
    assert failing == [0, 1, 2, 3] * 3


@pytest.mark.parametrize(("sick", "halts"), [(True, [0, 8, 0, 8]), (False, [0, 1, 0, 1])])
def test_a_worker_that_hangs_at_everything_has_had_its_failures(sick, halts):
    failing = []

    def work(parts):
        for part in parts:
            yield {"part": part, "failed": "it hangs", "well": False, "sick": sick}

    batch_run._do({0: False}, batch_run._Tally(), work, failing.append)
    assert failing == halts


def test_a_step_that_takes_too_long_is_seen_and_no_other(monkeypatch):
    monkeypatch.setattr(watch, "_LOOKED_FOR", 0.01)
    late = threading.Event()
    looked = watch.Watch(600, late.set)
    with looked.on():
        with looked.step(600):
            pass
        assert not late.wait(0.1), "nothing is at work"
        with looked.step(0):
            assert late.wait(60)


def test_a_step_does_not_end_while_it_is_said_to_be_late(monkeypatch):
    """What `late` notes would be undone by the next step."""
    monkeypatch.setattr(watch, "_LOOKED_FOR", 0.01)
    begun, noted = threading.Event(), []

    def late():
        begun.set()
        time.sleep(0.2)
        noted.append("late")

    looked = watch.Watch(600, late)
    with looked.on():
        with looked.step(0):
            assert begun.wait(60)
        assert noted


@pytest.mark.parametrize("seconds", ["inf", "nan", "5e10"])
def test_a_time_without_an_end_is_none(seconds):
    looked = watch.Watch(5 * float(seconds), lambda: pytest.fail("late"))
    with looked.on(), looked.step(float(seconds)):
        pass


def test_a_library_that_holds_pythons_lock_does_not_keep_its_process():
    program = """
import ctypes
from ris.serving.batch.watch import Watch
watch = Watch(1, lambda: None)
with watch.on(), watch.step(0):
    ctypes.PyDLL(None).sleep(600)  # no other thread of Python's runs meanwhile
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, timeout=300)
    assert done.returncode == 1
    assert b"Timeout (0:00:01)!" in done.stderr


class HangsAtOneImage(Worker):
    """Its engine sleeps for ever at one image."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)
        opened = self._open

        def opening():
            answerer = opened()
            honest = answerer.scene

            def scene(image):
                while image.key == hashlib.sha256(HUNG).digest():
                    time.sleep(600)
                return honest(image)

            answerer.scene = scene
            return answerer

        self._open = opening


class DoesNotOpen(Worker):
    """Its model never opens."""

    def __init__(self, *given, **options):
        super().__init__(*given, **options)

        def opening():
            while True:
                time.sleep(600)

        self._open = opening


def ris_batch(monkeypatch, double, folder, bundle, seconds):
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    monkeypatch.setattr(batch_run, "Worker", double)
    arguments = [str(folder), "-e", "left man", "--bundle", str(bundle), "--part-rows", "2"]
    arguments += ["--out", str(folder.parent / "out"), "--max-seconds", str(seconds)]
    return CliRunner().invoke(main, [*arguments, "--engine", "onnxruntime", "--threads", "1"])


@pytest.mark.ray
def test_a_batch_whose_engine_hangs_at_one_image_answers_all_others(
    folder, served_bundle, monkeypatch
):
    done = ris_batch(monkeypatch, HangsAtOneImage, folder, served_bundle, 8)
    assert "6 rows, 1 of them errors, in 3 files" in done.output, done.output
    assert done.exit_code == 2
    rows = pq.read_table(folder.parent / "out").sort_by("row").to_pylist()
    errors = {row["image"]: row["error"] for row in rows if row["error"]}
    assert list(errors) == ["1.png"]
    assert errors["1.png"].endswith("the engine did not answer about 1.png within 8 s")


@pytest.mark.ray
def test_a_batch_whose_model_never_opens_ends_with_open_parts(folder, served_bundle, monkeypatch):
    done = ris_batch(monkeypatch, DoesNotOpen, folder, served_bundle, 1)
    assert done.exit_code == 1, done.output
    assert (
        "Error: 3 of 3 parts could not be done and stay open (the model did not open and answer"
        " about a small picture within 4 s); the same command goes on"
    ) in done.output
