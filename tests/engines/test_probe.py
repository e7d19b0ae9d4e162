"""A probe is one graph from file to result; a broken engine is an answer, a crash too."""

from __future__ import annotations

import importlib.metadata

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from ris.engines import EngineOptions, create, select
from ris.engines.errors import EngineError
from ris.engines.onnxruntime import OnnxRuntimeSession
from ris.engines.probe import one_node_graph, probe, probe_apart


def test_the_graph_is_what_onnx_writes():
    x, y = (helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4]) for name in "xy")
    node = helper.make_node("Add", ["x", "x"], ["y"])
    graph = helper.make_graph([node], "probe", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    assert one_node_graph() == model.SerializeToString()
    onnx.checker.check_model(onnx.load_from_string(one_node_graph()), full_check=True)


@pytest.mark.parametrize("ask", [probe, probe_apart])
def test_an_engine_that_runs(ask):
    answer = ask("onnxruntime", "cpu")
    assert answer.problem is None
    assert answer.version == onnxruntime.__version__
    assert answer.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize("ask", [probe, probe_apart])
def test_a_device_that_is_not_there(ask):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has onnxruntime-gpu")
    assert "no CUDAExecutionProvider" in ask("onnxruntime", "cuda").problem


def test_an_engine_that_computes_nonsense(monkeypatch):
    zeros = {"y": np.zeros(4, np.float32)}
    monkeypatch.setattr(OnnxRuntimeSession, "_run", lambda self, feeds: zeros)
    assert "it computes [0.0, 0.0, 0.0, 0.0] where [-3.0" in probe("onnxruntime").problem


@pytest.mark.parametrize(
    ("code", "message"),
    [
        (
            "raise ImportError('libx.so: cannot open shared object file')",
            "installed but broken: libx.so: cannot open",
        ),
        ("", "has no attribute"),  # what an uninstalled twin leaves behind
        ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "crashed with signal 4"),
        ("raise SystemExit(3)", "crashed with exit code 3"),
        ("import time; time.sleep(60)", "did not answer within 3 seconds"),
    ],
)
def test_a_broken_installation(tmp_path, monkeypatch, code, message):
    (tmp_path / "onnxruntime.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    answer = probe_apart("onnxruntime", timeout=3 if "sleep" in code else 60)
    assert message in answer.problem
    assert "\n" not in answer.problem


def test_a_broken_import_is_an_engine_error(monkeypatch):
    def broken(name):
        raise ImportError("undefined symbol")

    monkeypatch.setattr("importlib.import_module", broken)
    refused = "is installed but broken: undefined symbol; install 'onnxruntime' again"
    with pytest.raises(EngineError, match=refused):
        create("onnxruntime", EngineOptions())


def test_two_distributions_of_one_import(monkeypatch):
    row = select("onnxruntime")
    assert row.conflict() is None
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "1.31.1")
    assert row.installed() == {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.31.1"}
    assert "pip uninstall onnxruntime onnxruntime-gpu" in row.conflict()
