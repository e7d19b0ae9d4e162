"""What ONNX Runtime's sessions say they compute in: what runs, not what a graph is written in."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from ris.engines import EngineOptions, Graph, create
from ris.engines.errors import EngineError
from ris.engines.onnx_int8 import mostly_int8


def written(folder, **weights):
    """A file with these weights by name, and no node."""
    stored = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    graph = helper.make_graph([], "weights", [], [], stored)
    onnx.save(helper.make_model(graph), folder / "graph.onnx")
    return folder / "graph.onnx"


@pytest.mark.parametrize(
    ("narrow", "wide", "mostly"), [((8, 8), (4, 8), True), ((4, 8), (8, 8), False)]
)
def test_the_larger_part_of_the_weights_decides(tmp_path, narrow, wide, mostly):
    """Scales, biases and indices are multiplied by nothing that is worth counting."""
    path = written(
        tmp_path,
        narrow=np.zeros(narrow, np.int8),
        wide=np.zeros(wide, np.float32),
        scales=np.zeros(1000, np.float32),
        zeros=np.zeros(1000, np.int8),
        indices=np.zeros((30, 30), np.int64),
    )
    assert mostly_int8(path) == mostly


def test_a_file_that_is_no_onnx(tmp_path):
    (tmp_path / "graph.onnx").write_bytes(b"\xff" * 40)
    with pytest.raises(EngineError, match="is not an ONNX file that can be read"):
        mostly_int8(tmp_path / "graph.onnx")


@pytest.mark.parametrize(
    ("device", "precision", "int8", "computes"),
    [
        ("cpu", "fp32", False, "fp32"),
        ("cpu", "fp16", False, "fp32"),
        ("cpu", "bf16", False, "fp32"),
        ("cpu", "fp32", True, "int8"),
        ("cuda", "fp32", False, "fp32"),
        ("cuda", "fp16", False, "fp16"),
        ("cuda", "bf16", False, "fp32"),
        ("cuda", "fp32", True, "fp32"),
    ],
)
def test_what_onnx_runtime_computes_in(tmp_path, device, precision, int8, computes):
    """bfloat16 weights stand behind casts to FP32, and INT8 kernels are the CPU's."""
    path = written(tmp_path, narrow=np.zeros((8, 8), np.int8))
    engine = create("onnxruntime", EngineOptions("cpu"))
    engine.options = EngineOptions(device)
    graph = Graph("graph", path, (), (), precision=precision, int8=int8)
    assert engine._computes(graph) == computes
