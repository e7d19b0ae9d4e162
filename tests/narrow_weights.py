"""Graphs of a product or two, whose matrices tests store in fewer bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from ris.engines import Graph, TensorSpec


def matrix(rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Made-up weights, float32 [rows, columns]."""
    return np.random.default_rng(seed).standard_normal((rows, columns)).astype(np.float32) / 16


def activations(count: int, width: int) -> np.ndarray:
    """Made-up activations, float32 [count, width], of which one channel stands out."""
    found = np.random.default_rng(1).standard_normal((count, width)).astype(np.float32)
    found[:, 3] *= 100
    return found


def write_products(path: Path, *weights: np.ndarray) -> Graph:
    """A graph that multiplies `x` [images, K] by one matrix after the other, at `path`."""
    tensors, nodes, value = [], [], "x"
    for i, weight in enumerate(weights):
        tensors.append(numpy_helper.from_array(weight, f"w{i}"))
        made = "y" if i == len(weights) - 1 else f"h{i}"
        nodes.append(helper.make_node("MatMul", [value, f"w{i}"], [made], f"product{i}"))
        value = made
    rows, columns = len(weights[0]), weights[-1].shape[1]
    graph = helper.make_graph(
        nodes,
        "products",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["images", rows])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["images", columns])],
        tensors,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    data = f"{path.name}.data"
    onnx.save_model(model, path, save_as_external_data=True, location=data, size_threshold=1024)
    spec = TensorSpec("x", "float32", ("images", rows))
    return Graph("products", path, (spec,), (TensorSpec("y", "float32", ("images", columns)),))
