"""`ris-bench` reports what it times, and says what it could not; no figure is judged here."""

from __future__ import annotations

import errno
import json
import os
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from stages import STAGES

from ris.engines import EngineOptions, create
from ris.engines.errors import CheckpointError, RisError
from ris.export import torch_rates
from ris.export.live_reference import timed_reference
from ris.runtime.bench.compare import compare
from ris.runtime.bench.plan import IMAGES, Alternative, Plan
from ris.runtime.bench.process import Worker, WorkerError
from ris.runtime.bench.report import (
    BenchReport,
    Inputs,
    Measured,
    Spread,
    read_report,
)
from ris.runtime.bench.run import run_plan
from ris.runtime.bench.show import markdown, warnings
from ris.runtime.bundle import open_bundle
from ris.runtime.commands import bench as command
from ris.runtime.commands.bench import Request, main, parse_engine


def run(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def done(tiny_bundle, folder):
    """PyTorch, one engine that runs and one that does not."""
    amount = ["--runs", 2, "--cold", 1, "--batches", 1, "--threads", 2]
    ways = ["--pytorch", "--engine", "onnxruntime", "--engine", "onnxruntime:bf16"]
    return run(tiny_bundle, *amount, *ways, "--json", "--out", folder / "here")


def test_the_report(done, folder, tiny_bundle):
    assert done.exit_code == 0, done.output
    report = read_report(folder / "here.json")
    assert done.stdout == report.to_json()
    ways = [Alternative(kind, kind, "") for kind in ("pytorch", "bundle", "bundle")]
    steps = Plan(rounds=2, cold_starts=1, batches=1).steps(ways)
    assert done.stderr.count("] Bench: ") == steps
    assert [m.name for m in report.alternatives] == ["PyTorch eager FP32", "onnxruntime"]
    reason = "engine 'onnxruntime' has no option compute"
    assert reason in report.failed["onnxruntime:bf16"]  # and the others went on
    assert f"Not measured: onnxruntime:bf16: {reason}" in done.stderr
    eager, own = report.alternatives
    for found in (eager.first_mask, own.first_mask, own.next_expression, own.host):
        assert found.runs == 2
        in_order = [found.smallest, found.lower, found.median, found.upper, found.largest]
        assert in_order == sorted(in_order)
        assert found.smallest > 0
    assert own.next_expression.median < own.first_mask.median
    assert set(own.stages) >= {*STAGES, "dense_embedding", "prepare", "mask"}
    assert own.precision == dict.fromkeys(STAGES, "fp32")
    assert own.cold_start.median > own.imports.median + own.load.median
    assert own.peak_memory > 50e6
    assert list(own.images) == list(IMAGES)
    assert own.expressions[64].median > 0
    assert set(report.photo) == {"exact", "draft"}
    assert report.once_an_image + report.per_expression == report.stages == STAGES
    assert 0 < report.floor(own, report.per_expression) < report.floor(own)
    assert report.rates["fp32"]["numpy"].median > 1e8


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_what_pytorch_multiplies_in(tiny_bundle, precision):
    run_once = timed_reference(
        open_bundle(tiny_bundle),
        np.zeros((60, 80, 3), np.uint8),
        ("left man", "ball"),
        1,
        precision=precision,
    )
    seen = set()

    def note(layer, inputs, output):
        if isinstance(layer, torch.nn.Linear):
            seen.add((output.dtype, layer.weight.dtype))

    with torch.nn.modules.module.register_module_forward_hook(note):
        first, following = run_once()
    assert first > following > 0
    assert seen == {{"fp32": (torch.float32,) * 2, "bf16": (torch.bfloat16,) * 2}[precision]}


def test_the_precisions_of_pytorch(tiny_bundle):
    asked = Request((), "auto", 1, None, True, True, ("bf16", "fp32"), {})
    *found, _ = asked.alternatives(tiny_bundle)
    eager, compiled = "PyTorch eager", "torch.compile"
    assert [(one.name, one.compile, one.precision) for one in found] == [
        (f"{eager} FP32", False, "fp32"),
        (f"{eager} bf16", False, "bf16"),
        (f"{compiled} FP32", True, "fp32"),
        (f"{compiled} bf16", True, "bf16"),
    ]
    done = run(tiny_bundle, "--pytorch-precision", "bf16")
    assert done.exit_code == 2
    assert "is for --pytorch and --torch-compile" in done.stderr


def test_a_bundle_with_other_stages_beside_it(done, folder):
    """As of an older format: what runs once an image is said by the bundle's own operations."""
    report = read_report(folder / "here.json")
    *_, own = report.alternatives
    other = replace(own, name="old", operations={"all_of_it": 1})
    assert "of a first mask's operations" in markdown(replace(report, alternatives=[own, other]))
    alone = markdown(replace(report, alternatives=[other]))
    assert "Once an image: sam_image_encoder" in alone
    assert "of a first mask's operations" not in alone


def test_every_round_in_new_processes(tiny_bundle, folder, monkeypatch):
    """A worker for each round and way, not one for each way, and none is left behind."""
    started = []
    init = Worker.__init__

    def noted(self, spec, *more):
        started.append((spec["kind"], self))
        init(self, spec, *more)

    monkeypatch.setattr(Worker, "__init__", noted)
    amount = ["--runs", 2, "--cold", 0, "--anew", "--threads", 1]
    ways = ["--engine", "onnxruntime", "--engine", f"onnxruntime@{tiny_bundle}"]
    done = run(tiny_bundle, *amount, *ways, "--json", "--out", folder / "anew")
    assert done.exit_code == 0, done.output
    report = read_report(folder / "anew.json")
    assert report.anew
    assert [m.first_mask.runs for m in report.alternatives] == [2, 2]
    assert report.photo  # of the process that was started last
    kinds = [kind for kind, _ in started]
    assert kinds.count("rates") == 1
    # a start that compiles, one to learn what runs, two rounds
    assert kinds.count("bundle") == 2 * (1 + 1 + 2)
    assert all(worker._process.poll() is not None for _, worker in started)
    assert "each round in new processes" in (folder / "anew.md").read_text()


def test_other_families(made_up_bundle, folder):
    """Images together go through stages of which one takes what another gives, or through none."""
    amount = ["--runs", 1, "--cold", 0, "--batches", 1, "--threads", 1]
    out = folder / made_up_bundle.name
    done = run(made_up_bundle, *amount, "--engine", "onnxruntime", "--json", "--out", out)
    assert done.exit_code == 0, done.output
    report = read_report(out.with_suffix(".json"))
    [own] = report.alternatives
    assert not report.failed
    assert own.expressions[64].median > 0
    whole = made_up_bundle.name == "whole"
    assert list(own.images) == ([] if whole else list(IMAGES))
    said = "No graph runs once an image: each expression costs the whole network."
    assert (said in out.with_suffix(".md").read_text()) == whole
    assert report.once_an_image == (() if whole else ("look", "pool"))


@pytest.mark.parametrize("vnni", [True, False])
def test_int8_products_in_plain_loops_are_no_floor(monkeypatch, vnni):
    """PyTorch without VNNI: over a minute for a product that takes FP32 half a second."""
    monkeypatch.setattr(torch_rates, "has_vnni", lambda: vnni)
    ones = np.ones((16, 32), np.float32)
    calls = torch_rates.products(ones, ones, threads=None)
    assert ("int8" in calls) == vnni
    assert all(call().shape == (16, 16) for call in calls.values())


def test_for_people(done, folder):
    text = (folder / "here.md").read_text()
    for part in (
        "first mask",
        "measured / floor",
        "cold start",
        "onnxruntime: images together",
        "Not measured: onnxru",
    ):
        assert part in text
    assert (folder / "here.png").read_bytes().startswith(b"\x89PNG")


def test_the_same_again_is_compared(done, folder):
    shown = run("compare", folder / "here.json", folder / "here.json")
    assert shown.exit_code == 0, shown.output
    assert "within the noise" in shown.output


def test_other_inputs_are_refused(done, folder):
    data = json.loads((folder / "here.json").read_text())
    data["inputs"]["image"] = "0" * 64
    (folder / "other.json").write_text(json.dumps(data))
    refused = run("compare", folder / "here.json", folder / "other.json")
    assert refused.exit_code == 2
    assert "are not compared: they measured different inputs: image (" in refused.output
    for text, message in (("{}", "is not a report"), ('{"format_version": 9}', "format version 9")):
        (folder / "bad.json").write_text(text)
        assert message in run("compare", folder / "here.json", folder / "bad.json").output
    assert "cannot be read" in run("compare", folder / "here.json", folder / "none.json").output


def spread(*values):
    return Spread.of(values)


@pytest.fixture
def report():
    slow = Measured(
        name="a",
        engine="a 1 on cpu",
        bundle="b",
        bundle_precision="fp32",
        precision=dict.fromkeys(STAGES, "fp32"),
        operations=dict.fromkeys(STAGES, 10),
        first_mask=spread(4.0, 5.0, 6.0),
        next_expression=spread(1.0),
    )
    mixed = slow.precision | {"fusion": "bf16"}
    fast = replace(slow, name="b", first_mask=spread(2.0), precision=mixed)
    return BenchReport(
        format_version=1,
        inputs=Inputs("0", 1, 1, ("x", "y"), (), "m", None),
        machine={"cpu": "c", "cores": 2, "versions": {}, "load_before": 0.1, "load_after": 1.0},
        rounds=3,
        rates={
            "fp32": {"numpy": spread(4.0, 5.0), "openvino": spread(10.0)},
            "bf16": {"openvino": spread(20.0)},
        },
        alternatives=(slow, fast),
        failed={},
        photo={},
        once_an_image=STAGES[:3],
        per_expression=STAGES[3:],
    )


def test_the_floor_is_operations_at_the_fastest_rate(report):
    slow, fast = report.alternatives
    assert report.rate("fp32") == 10
    assert report.floor(slow) == pytest.approx(6.0)
    assert report.floor(fast) == pytest.approx(5.5)
    assert report.floor(slow, ["fusion"]) == pytest.approx(1.0)
    assert report.floor(replace(slow, operations={})) is None
    assert report.floor(replace(slow, precision=dict.fromkeys(STAGES, "int4"))) is None
    assert "| b | 2.00 s | 2.50 | 5.50 s | 0.36 |" in markdown(report)


def test_quartiles():
    found = spread(1.0, 2.0, 3.0, 4.0, 100.0)
    assert (found.median, found.lower, found.upper, found.largest) == (3.0, 2.0, 4.0, 100.0)
    assert found.overlaps(spread(3.5, 4.5))
    assert not found.overlaps(spread(4.5))


def test_a_busy_or_unsteady_machine_is_said(report):
    assert warnings(report) == []
    busy = replace(report, machine=report.machine | {"load_before": 3.0})
    assert "busy when this began: load average 3.0 on 2 cores" in warnings(busy)[0]
    unsteady = replace(report, rates={"fp32": {"numpy": spread(4.0, 5.0, 8.0)}})
    assert "speed varied" in warnings(unsteady)[0]


def test_nothing_in_common(report):
    other = replace(report, alternatives=(replace(report.alternatives[0], name="z"),))
    with pytest.raises(RisError, match="no alternative in common"):
        compare(report, other, ("x", "y"))


def test_a_process_that_dies_is_an_answer():
    with Worker({"kind": "none"}, None, 60) as worker:
        worker._process.stdin.write("no json\n")
        worker._process.stdin.flush()
        with pytest.raises(WorkerError, match="its process ended with exit code 1"):
            worker.ask("round")
    with (
        Worker({"kind": "none"}, None, 0.01) as worker,
        pytest.raises(WorkerError, match="no answer within 0 seconds"),
    ):
        worker.ask("round")


def test_ways_of_running(tmp_path):
    name = "openvino:bf16,overlap=1,max_expressions=4@other"
    got = parse_engine(name, tmp_path, "auto", 2)
    options = {"engine": "openvino", "device": "auto", "threads": 2}
    switches = {"compute": "bf16", "overlap": True, "max_expressions": 4}
    assert got == Alternative(name, "bundle", "other", options | switches)
    known = "overlap, low_memory, throughput, cuda_graphs, max_expressions"
    for text, message in (
        ("opnvino", "there is no engine 'opnvino'"),
        ("openvino:bf15", "no precision 'bf15'"),
        ("openvino,fast=1", f"'fast=1' is not one of {known}"),
        ("openvino,overlap=yes", "'overlap=yes' is not one of"),
        ("openvino,fusion=bf15", "'fusion=bf15' is not one of .* nor a graph with =fp32"),
        ("openvino,=bf16", "'=bf16' is not one of"),
    ):
        with pytest.raises(RisError, match=message):
            parse_engine(text, tmp_path, "auto", None)


def test_a_way_names_the_precision_of_single_graphs(tmp_path):
    whole = parse_engine("openvino:bf16,fusion=fp32,overlap=1", tmp_path, "auto", None)
    assert whole.options["compute"] == {"*": "bf16", "fusion": "fp32"}
    assert whole.options["overlap"] is True
    single = parse_engine("openvino,fusion=bf16", tmp_path, "auto", None)
    assert single.options["compute"] == {"fusion": "bf16"}


def test_single_graphs_run_in_what_was_asked(tiny_bundle, folder):
    """And a CPU without bfloat16 says so."""
    single, unknown = "openvino:fp32,text_encoder=bf16", "openvino:fp32,text=bf16"
    ways = [part for way in ("openvino:fp32", single, unknown) for part in ("--engine", way)]
    done = run(tiny_bundle, "--runs", 1, "--cold", 0, *ways, "--out", folder / "single")
    assert done.exit_code == 0, done.output
    report = read_report(folder / "single.json")
    precision = {measured.name: measured.precision for measured in report.alternatives}
    assert set(precision["openvino:fp32"].values()) == {"fp32"}
    if "bf16" in create("openvino", EngineOptions()).computes():
        assert precision[single]["text_encoder"] == "bf16"
        assert precision[single]["fusion"] == "fp32"
    else:
        assert "does not compute in bf16; it has fp32" in report.failed[single]
    assert "there is no graph text" in report.failed[unknown]


def test_wrong_weight_files_are_found_before_anything_is_measured(tiny_bundle):
    asked = Request((), "auto", 1, None, True, False, (), {"checkpoint": tiny_bundle / "other.pth"})
    bundle, said = open_bundle(tiny_bundle), []
    with pytest.raises(CheckpointError, match="made-up weights; leave --checkpoint and the others"):
        run_plan(
            bundle, asked.alternatives(tiny_bundle), asked.workload(bundle), Plan(), said.append
        )
    assert said == ["weight files"]


@pytest.mark.parametrize(
    ("out", "sentence"),
    [
        ("file/here", r"cannot write file/here.json: .*file is no folder"),
        ("taken", "cannot write taken.json: taken.json is a folder"),
        (".", "give what the files' names begin with"),
    ],
)
def test_a_report_that_cannot_be_written_is_said_before_anything_is_measured(
    tiny_bundle, tmp_path, monkeypatch, out, sentence
):
    monkeypatch.setattr(command, "run_plan", lambda *a: pytest.fail("measured first"))
    (tmp_path / "file").touch()
    (tmp_path / "taken.json").mkdir()
    monkeypatch.chdir(tmp_path)
    done = run(tiny_bundle, "--out", out)
    assert done.exit_code == 2
    assert re.search(sentence, done.stderr), done.stderr


def test_what_was_measured_is_shown_though_it_cannot_be_written(
    done, folder, tiny_bundle, tmp_path, monkeypatch
):
    def fail(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    report = read_report(folder / "here.json")
    monkeypatch.setattr(command, "run_plan", lambda *a: report)
    monkeypatch.setattr(command, "plot", fail)
    again = run(tiny_bundle, "--out", tmp_path / "full", "--json")
    assert again.exit_code == 2
    assert again.stdout == report.to_json()
    assert f"cannot write {tmp_path / 'full'}: No space left on device" in again.stderr


def test_the_same_way_twice(tiny_bundle):
    refused = run(tiny_bundle, "--engine", "onnxruntime", "--engine", "onnxruntime")
    assert refused.exit_code == 2
    assert "--engine onnxruntime is given twice" in refused.output


def test_a_way_that_cannot_be_measured_is_said_before_a_bundle_is_looked_for(monkeypatch):
    monkeypatch.setattr(command, "find_bundle", lambda given: pytest.fail("looked first"))
    for way, said in (("vulkan", "no engine 'vulkan'"), ("openvino:fp8", "no precision 'fp8'")):
        refused = run("hf://org/name", "--engine", way)
        assert refused.exit_code == 2
        assert said in refused.stderr


def test_a_way_that_fails_is_said_at_once(done):
    """Not when the others are done, which may take an hour."""
    lines = done.stderr.splitlines()
    failed = next(i for i, line in enumerate(lines) if line.startswith("Not measured: onnxru"))
    assert "first start, compiles what is needed" in lines[failed - 1]
    assert sum(line.startswith("Not measured: ") for line in lines) == 1
