"""What a batch computes in: one precision for all workers, kept in the plan, said in the files."""

from __future__ import annotations

import pytest

pytest.importorskip("pyarrow", reason='pyarrow is not installed: pip install ".[ray]"')

import pyarrow.parquet as pq

from ris.engines.errors import EngineError, RisError
from ris.runtime import Choice, open_bundle
from ris.runtime.commands.running import Running
from ris.runtime.computing import VARIABLE, Settled
from ris.serving.batch import precision
from ris.serving.batch.asked import Given
from ris.serving.batch.inputs import group_by_image, read_sources
from ris.serving.batch.parts import Job
from ris.serving.batch.precision import decide, of_worker, with_compute
from ris.serving.batch.worker import Worker
from ris.serving.limits import Limits
from serving_helpers import picture_bytes

AUTO = Running("auto", "auto", 1, None)


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A part of one image."""
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "0.png").write_bytes(picture_bytes(0))
    job = Job(tmp_path / "out")
    job.write_plan(group_by_image(read_sources([tmp_path], Given(("left man",)))), 4, {})
    return job


@pytest.fixture
def settles(monkeypatch):
    """Sets what this machine takes, and counts how often it is asked."""
    calls = []

    def say(taken):
        def settle(*given, **options):
            calls.append(options)
            if isinstance(taken, Exception):
                raise taken
            return Settled(Choice("auto", taken, "it was made up"), {}), 1

        monkeypatch.setattr(precision, "settle_for", settle)
        return calls

    return say


def test_it_is_decided_once_and_kept_with_the_plan(job, served_bundle, settles, monkeypatch):
    calls = settles("bf16")
    assert decide(job, served_bundle, AUTO) == "bf16"
    settles("fp32")
    assert decide(job, served_bundle, AUTO) == "bf16"
    assert len(calls) == 1
    plan = job.planned()
    assert (plan["compute"], plan["compute_because"]) == ("bf16", "it was made up")
    assert plan["parts"] == 1

    # as long as no part is done, what is asked for goes before it
    assert decide(job, served_bundle, Running("auto", "auto", 1, "fp32")) == "fp32"
    monkeypatch.setenv(VARIABLE, "fp16")
    assert decide(job, served_bundle, AUTO) == "fp16"
    plan = job.planned()
    assert (plan["compute"], plan["compute_because"]) == ("fp16", "it was asked for")


def test_a_batch_goes_on_in_no_other_precision(job, served_bundle, settles, monkeypatch):
    settles("bf16")
    begun = Running("auto", "auto", 1, {"fusion": "fp32"})
    assert decide(job, served_bundle, begun) == "bf16"
    job.file(0).write_bytes(b"")
    assert decide(job, served_bundle, begun) == "bf16"
    same = Running("auto", "auto", 1, {"*": "bf16", "fusion": "fp32"})
    assert decide(job, served_bundle, same) == "bf16"

    said = "parts that were computed in bf16, fusion=fp32, and {} is asked for now"
    for compute, now in (
        (None, "bf16"),
        ("fp32", "fp32"),
        ({"fusion": "bf16"}, "bf16, fusion=bf16"),
    ):
        with pytest.raises(RisError, match=said.format(now)):
            decide(job, served_bundle, Running("auto", "auto", 1, compute))
    monkeypatch.setenv(VARIABLE, "fp32")
    with pytest.raises(RisError, match=said.format("fp32, fusion=fp32")):
        decide(job, served_bundle, begun)


@pytest.mark.parametrize(
    ("device", "found", "taken"),
    [
        ("auto", EngineError("no engine runs here"), "fp32"),
        ("cuda", EngineError("no engine runs here"), "auto"),
        ("cuda", None, "auto"),
    ],
)
def test_a_machine_that_has_no_choice_leaves_gpus_alone(
    job, served_bundle, settles, device, found, taken
):
    settles(found)
    assert decide(job, served_bundle, Running("auto", device, 1, None)) == taken


def test_a_worker_takes_it_where_its_engine_leaves_the_choice(served_bundle):
    bundle = open_bundle(served_bundle, verify=False)
    running = {"engine": "onnxruntime", "device": "cpu", "compute": None}
    assert with_compute(running, bundle, "bf16") == running
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    running["engine"] = "openvino"

    def given(asked):
        return with_compute(running | {"compute": asked}, bundle, "bf16")["compute"]

    assert given(None) == given("auto") == {"*": "bf16"}
    assert given("fp32") == "fp32"
    assert given({"fusion": "fp32"}) == {"*": "bf16", "fusion": "fp32"}
    assert given({"*": "fp32", "fusion": "bf16"}) == {"*": "fp32", "fusion": "bf16"}


def test_a_worker_with_gpus_of_its_own_counts_them_from_0():
    running = Running("tensorrt", "cuda:3", 1, None)
    assert of_worker(running, 0.5).device == "cuda"
    assert of_worker(running, 0.0).device == "cuda:3"


def test_the_files_say_what_was_computed_in_and_why(job, served_bundle):
    running = {"engine": "onnxruntime", "device": "cpu", "threads": 1, "compute": None}
    Worker(str(job.folder), str(served_bundle), running, Limits(), 0.5)({"part": [0]})
    about = pq.read_schema(job.file(0)).metadata
    assert about[b"computes_in"] == b"fp32"
    assert about[b"compute"] == b"fp32, since onnxruntime leaves no choice"
