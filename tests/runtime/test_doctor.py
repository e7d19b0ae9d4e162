"""`ris-doctor`: healthy and damaged bundles, engines that do not run, no names, JSON."""

from __future__ import annotations

import functools
import json
import os
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, numpy_helper
from stages import STAGES

from ris.engines.probe import Probe
from ris.engines.table import TABLE, EngineSpec, select
from ris.runtime import BundleError, doctor, open_bundle, system
from ris.runtime.commands.doctor import main
from ris.runtime.onnx_weights import count_weights

ASKED = functools.cache(doctor.probe_apart)
"""Each question starts a process, and is asked once for all tests."""


@pytest.fixture(autouse=True)
def asked_once(monkeypatch):
    monkeypatch.setattr(doctor, "probe_apart", ASKED)


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RIS_BUNDLE", raising=False)
    return tmp_path


@pytest.fixture
def run(here):
    return lambda *arguments: CliRunner().invoke(main, [str(a) for a in arguments])


def probes_say(monkeypatch, problem):
    def answer(name, device):
        if problem:
            return Probe(name, device, None, (), problem)
        return Probe(name, device, "1.0", ("Some",), None)

    monkeypatch.setattr(doctor, "probe_apart", answer)


def test_without_a_bundle_of_ones_own(run):
    done = run()
    assert done.exit_code == 0, done.output
    for text in ("numpy ", "CPython 3.", "memory ", "GPU "):
        assert text in done.stdout
    assert "onnxruntime on cpu: runs, version" in done.stdout
    assert "onnxruntime on cuda" in done.stdout
    assert done.stdout.splitlines()[-1].startswith(f"Ready: {TABLE[0].name} ")
    assert "using the built-in demo" in done.stderr
    assert "demo-bundle is whole (fp16)" in done.stdout


def test_a_bundle_is_found_as_ris_infer_finds_it(run, here, tiny_bundle, monkeypatch):
    (here / "ris-bundle").symlink_to(tiny_bundle)
    assert "ris-bundle is whole (fp32)" in run().stdout
    monkeypatch.setenv("RIS_BUNDLE", str(here / "elsewhere"))
    done = run()
    assert done.exit_code == 2
    assert "elsewhere: no such bundle. Way out: make one with ris-export." in done.stdout


def test_a_healthy_bundle_with_its_parity(run, tiny_bundle):
    done = run(tiny_bundle, "--check", "-v")
    assert done.exit_code == 0, done.output
    assert "every file has the hash of the export; format 2" in done.stdout
    model = "dfam tiny, cls query, a no-target head; untrained, from made-up weights, seed 0"
    assert f"model: {model}" in done.stdout
    for stage in STAGES:
        assert f"  {stage}: fp32; " in done.stdout
    assert done.stdout.count(f"weights 100.0% fp32; in fp32 on {select().name}") == len(STAGES)
    assert "parity at the export: masks IoU" in done.stdout
    assert "parity here, now: masks IoU" in done.stdout
    assert "written by: " in done.stdout
    assert "Note: the bundle has made-up weights" in done.stdout
    assert done.stdout.splitlines()[-1].endswith("is whole (fp32), parity holds here")


def test_an_fp16_bundle_says_what_is_fp16(run, tiny_fp16_bundle):
    done = run(tiny_fp16_bundle, "--json")
    assert done.exit_code == 0, done.output
    data = json.loads(done.stdout)
    graphs = data["bundle"]["graphs"]
    assert graphs["mask_decoder"]["asked"] == "fp32"
    assert list(graphs["mask_decoder"]["weights"]) == ["fp32"]
    assert graphs["fusion"]["asked"] == "fp16"
    assert graphs["fusion"]["weights"]["fp16"] > graphs["fusion"]["weights"]["fp32"]
    fusion = open_bundle(tiny_fp16_bundle).manifest.graphs["fusion"]
    assert sum(graphs["fusion"]["islands"].values()) == len(fusion.fp32_islands)
    assert any("computes fp16 graphs in fp32, or in bfloat16" in note for note in data["notes"])
    text = run(tiny_fp16_bundle, "-v").stdout
    assert "mask_decoder: fp32, all of it kept FP32; " in text
    assert "    FP32, 1 x: " in text


def test_the_category_variant(run, tiny_category_bundle):
    assert "category query, no no-target head" in run(tiny_category_bundle).stdout


def test_a_bundle_of_format_1(run, format_1_bundle):
    assert "every file has the hash of the export; format 1" in run(format_1_bundle).stdout


def test_other_families(run, made_up_bundle):
    done = run(made_up_bundle, "--check")
    assert done.exit_code == 0, done.output
    whole = "  no graph runs once an image: each expression costs the whole network"
    stages = ["everything"] if made_up_bundle.name == "whole" else ["look", "pool", "read", "draw"]
    assert f"model: made_up_{made_up_bundle.name}, no no-target head; untrained" in done.stdout
    assert (whole in done.stdout) == (made_up_bundle.name == "whole")
    assert ("  once an image: look, pool, " in done.stdout) == (made_up_bundle.name == "chained")
    assert all(f"  {stage}: fp32; " in done.stdout for stage in stages)
    assert "parity holds here" in done.stdout


def test_the_json_has_the_documented_keys(run, tiny_bundle):
    data = json.loads(run(tiny_bundle, "--json").stdout)
    assert set(data) == {f.name for f in fields(doctor.DoctorReport)}
    assert set(data["bundle"]) == {f.name for f in fields(doctor.BundleHealth)}
    assert set(data["bundle"]["graphs"]["fusion"]) == {f.name for f in fields(doctor.GraphHealth)}
    assert data["healthy"] is True
    assert data["problems"] == []


def test_the_json_is_valid_text_whatever_the_bundle_is_called(run, here, tiny_bundle, monkeypatch):
    probes_say(monkeypatch, None)
    (here / os.fsdecode(b"caf\xe9 \xc3\xb1")).symlink_to(tiny_bundle)
    text = run(os.fsdecode(b"caf\xe9 \xc3\xb1"), "--json").stdout_bytes.decode("utf-8")
    assert "ñ" in text
    assert json.loads(text)["bundle"]["path"] == "caf\ufffd ñ"


def test_a_damaged_bundle(run, bundle_copy):
    with (bundle_copy / "graphs" / "fusion.onnx").open("r+b") as file:
        file.write(b"\xff" * 16)
    (bundle_copy / "golden.npz").unlink()
    done = run(bundle_copy, "--check")
    assert done.exit_code == 2
    assert "Problem: " in done.stdout
    damage = "golden.npz is missing; graphs/fusion.onnx is not the file that was exported"
    assert damage in done.stdout
    assert "Way out: Export the bundle again." in done.stdout
    assert done.stdout.splitlines()[-1] == "1 problem to fix, listed above"
    data = json.loads(run(bundle_copy, "--json").stdout)
    assert data["bundle"]["whole"] is False
    assert data["healthy"] is False


def test_only_a_changed_hash(run, bundle_copy):
    """What the manifest says is still shown, but nothing of a damaged bundle is run."""
    (bundle_copy / "tokenizer.json").write_text("{}")
    done = run(bundle_copy)
    assert done.exit_code == 2
    assert "files: damaged; format 2" in done.stdout
    assert "fusion: fp32; " in done.stdout
    assert "; not opened" in done.stdout


@pytest.mark.parametrize("text", ["{", "{}", '{"format_version": 99}'])
def test_a_manifest_that_cannot_be_read(run, bundle_copy, text):
    (bundle_copy / "manifest.json").write_text(text)
    done = run(bundle_copy)
    assert done.exit_code == 2
    assert "cannot be read" in done.stdout
    assert "Traceback" not in done.output
    assert ". Way out: " in done.stdout


def test_parity_that_does_not_hold(run, tiny_bundle, monkeypatch):
    real, failures = doctor.check_model, ("fusion: relative error 1",)
    monkeypatch.setattr(doctor, "check_model", lambda *a: replace(real(*a), failures=failures))
    done = run(tiny_bundle, "--check")
    assert done.exit_code == 2
    assert "out of tolerance here: fusion: relative error 1. Way out: " in done.stdout


def test_an_engine_that_is_installed_but_broken(run, tiny_bundle, monkeypatch):
    probes_say(monkeypatch, "it crashed with signal 4 (Illegal instruction)")
    done = run(tiny_bundle)
    assert done.exit_code == 2
    assert "onnxruntime on cpu: no: it crashed with signal 4" in done.stdout
    assert "onnxruntime is installed but runs on no device (cpu: it crashed" in done.stdout
    # the bundle is described all the same, without running it
    assert "fusion: fp32; " in done.stdout


def test_no_engine_at_all(run, monkeypatch):
    monkeypatch.setattr(EngineSpec, "missing", lambda self: 'not installed; pip install ".[cpu]"')
    done = run()
    assert done.exit_code == 2
    assert "onnxruntime: not here: not installed" in done.stdout
    assert "Problem: no engine is installed. Way out: openvino: not installed; " in done.stdout
    assert 'onnxruntime: not installed; pip install ".[cpu]"' in done.stdout.split("Way out")[1]


def test_two_onnxruntimes(run, monkeypatch):
    both = {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"}
    monkeypatch.setattr(EngineSpec, "installed", lambda self: both)
    done = run()
    assert done.exit_code == 2
    problem = "onnxruntime and onnxruntime-gpu are both installed and overwrite each other"
    assert f"Problem: {problem}. Way out: " in done.stdout


def test_a_gpu_that_no_engine_uses(run, monkeypatch):
    card = system.Gpu("NVIDIA T4", "550.54", "15360", "7.5")
    monkeypatch.setattr(system, "gpus", lambda: system.Gpus((card,), True, None))
    done = run()
    assert done.exit_code == 0
    shown = "NVIDIA T4, driver 550.54, 15360 MiB, compute capability 7.5"
    assert f"GPU            {shown}" in done.stdout
    assert "Note: there is a GPU (NVIDIA T4), but no engine that runs on it" in done.stdout
    probes_say(monkeypatch, None)
    assert "Note: there is a GPU" not in run().stdout


def test_a_quota_is_pointed_out(run, monkeypatch):
    real = system.cpu()
    monkeypatch.setattr(system, "cpu", lambda: replace(real, usable=16, present=32, quota=2.5))
    done = run()
    assert "16 of 32 cores, a container's quota of 2.5" in done.stdout
    note = "the container may spend 2.5 of 16 cores; engines start 3 threads unless told otherwise"
    assert f"Note: {note}." in done.stdout


def test_nobody_is_named(run, bundle_copy, tmp_path, monkeypatch):
    """Home, user and host are in the bundle's path and in the message about its damage."""
    home = tmp_path / "somebody"
    bundle = home / "secret-host" / "b"
    bundle.parent.mkdir(parents=True)
    bundle_copy.rename(bundle)
    (bundle / "golden.npz").unlink()
    elsewhere = tmp_path / "data" / "somebody" / "b"
    monkeypatch.setattr(Path, "home", lambda: home)
    monkeypatch.setattr("getpass.getuser", lambda: "somebody")
    monkeypatch.setattr("platform.node", lambda: "secret-host")
    for arguments in ((bundle,), (bundle, "--json"), (elsewhere,), (elsewhere, "--json")):
        done = run(*arguments)
        assert done.exit_code == 2
        assert "somebody" not in done.output
        assert "secret-host" not in done.output
    assert "Bundle ~/<host>/b" in run(bundle).stdout
    assert "data/<user>/b" in run(elsewhere).stdout


def test_what_looks_like_a_name_and_is_none(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/root"))
    monkeypatch.setattr("getpass.getuser", lambda: "numpy")
    monkeypatch.setattr("platform.node", lambda: "onnx")
    text = "numpy 2.4, onnxruntime 1.31, /rootfs/a, linux-numpy"
    assert doctor.private(text) == text
    assert doctor.private("/root/a, /srv/numpy/b") == "~/a, /srv/<user>/b"


@pytest.mark.parametrize("name", ["tiny_bundle", "tiny_fp16_bundle"])
def test_weights_are_counted_as_onnx_counts_them(name, request):
    bundle = open_bundle(request.getfixturevalue(name))
    for entry in bundle.manifest.graphs.values():
        path = bundle.file(entry.file)
        want: dict[int, int] = {}
        for tensor in onnx.load(path, load_external_data=False).graph.initializer:
            want[tensor.data_type] = want.get(tensor.data_type, 0) + int(np.prod(tensor.dims))
        found = count_weights(path)
        assert found.get("fp32", 0) == want.get(TensorProto.FLOAT, 0)
        assert found.get("fp16", 0) == want.get(TensorProto.FLOAT16, 0)
        assert sum(found.values()) == entry.parameters


def test_other_types_of_weights(tmp_path):
    arrays = [
        np.zeros((3, 5), np.int8),
        np.zeros(7, np.uint8),
        np.zeros((), np.float32),
        np.zeros(9, np.int64),
    ]
    tensors = [numpy_helper.from_array(a, f"t{i}") for i, a in enumerate(arrays)]
    tensors.append(helper.make_tensor("b", TensorProto.BFLOAT16, [2, 2], [0.0] * 4))
    onnx.save(helper.make_model(helper.make_graph([], "g", [], [], tensors)), tmp_path / "a.onnx")
    assert count_weights(tmp_path / "a.onnx") == {"int8": 15, "uint8": 7, "bf16": 4, "fp32": 1}


@pytest.mark.parametrize("content", [b"", b"not onnx at all", b"\x3a\xff\xff\x03", b"\xff" * 40])
def test_what_is_no_onnx_file(tmp_path, content):
    (tmp_path / "a.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"a\.onnx is not an ONNX file"):
        count_weights(tmp_path / "a.onnx")
