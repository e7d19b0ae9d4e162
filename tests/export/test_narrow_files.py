"""What rewrites a graph in a narrower precision, on graphs of a few weights."""

from __future__ import annotations

import os

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ris.export.bf16 import convert_to_bf16
from ris.export.precision import convert_to_fp16, out_of_range, save_with_data


@pytest.fixture
def graph(tmp_path):
    """x @ weights + (x @ table) * table, whose data file has another name as well.

    So has that of an export that can be gone on with.
    """
    rng = np.random.default_rng(0)
    weights, table = (rng.standard_normal((32, 32)).astype(np.float32) for _ in range(2))
    nodes = [
        helper.make_node("MatMul", ["x", "weights"], ["product"], "product"),
        helper.make_node("MatMul", ["x", "table"], ["turned"], "turned"),
        helper.make_node("Mul", ["turned", "table"], ["scaled"], "scaled"),
        helper.make_node("Add", ["product", "scaled"], ["y"], "sum"),
    ]
    made = helper.make_graph(
        nodes,
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [32, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [32, 32])],
        [numpy_helper.from_array(weights, "weights"), numpy_helper.from_array(table, "table")],
    )
    path = tmp_path / "graph.onnx"
    save_with_data(helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)]), path)
    os.link(f"{path}.data", tmp_path / "kept.data")
    return path


def types(path):
    tensors = onnx.load(path).graph.initializer
    return {tensor.name: TensorProto.DataType.Name(tensor.data_type) for tensor in tensors}


def test_bfloat16_rounds_what_products_alone_read(graph):
    kept = (graph.parent / "kept.data").read_bytes()
    assert convert_to_bf16(graph) == {}
    assert types(graph) == {"weights.bf16": "BFLOAT16", "table": "FLOAT"}
    assert (graph.parent / "kept.data").read_bytes() == kept


def test_fp16_reads_a_data_file_of_two_names(graph):
    kept = (graph.parent / "kept.data").read_bytes()
    assert out_of_range(graph, {}) == {}
    convert_to_fp16(graph, graph, {})
    assert set(types(graph).values()) == {"FLOAT16"}
    assert (graph.parent / "kept.data").read_bytes() == kept
