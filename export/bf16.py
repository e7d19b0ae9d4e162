"""FP32 graph -> graph with bfloat16 weights: half the file, and what hardware that multiplies
bfloat16 reads anyway.

Weights are stored in bfloat16 and widened by a Cast each, so the graph says what is in it and any
engine runs it. One without bfloat16 folds the casts when it loads, and is then as fast as with FP32
weights; OpenVINO multiplies in bfloat16 where the CPU does. Rounded weights are all of the error in
the former, about half of it in the latter.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import onnx
from onnx import numpy_helper

from ris.export.precision import save_with_data

MULTIPLY = ("MatMul", "Gemm", "Conv", "ConvTranspose")
BEFORE = (
    "bfloat16 begins behind it: what PWAM's instance norms take away is large beside what they"
    " leave"
)


def convert_to_bf16(path: Path, first: str | None = None) -> dict[str, str]:
    """Rewrites the FP32 graph at `path`, data file and all, with the weights of its products and
    convolutions in bfloat16, rounded to nearest. first: of those alone that depend on the value of
    this name, None for all.

    Returns the products that keep their weights, by node name, and why.
    """
    model = onnx.load(path)
    graph = model.graph
    later = _depending(graph, first) if first else {node.name for node in graph.node}
    kept = {
        node.name: BEFORE
        for node in graph.node
        if node.op_type in MULTIPLY and node.name not in later
    }
    weights = {
        t.name: t
        for t in graph.initializer
        if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) >= 2
    }
    multiplied = {
        name
        for node in graph.node
        if node.op_type in MULTIPLY and node.name in later
        for name in node.input
    }
    multiplied -= {name for node in graph.node if node.name not in later for name in node.input}
    casts = []
    for name in sorted(weights.keys() & multiplied):
        rounded = numpy_helper.to_array(weights[name]).astype(ml_dtypes.bfloat16)
        weights[name].CopyFrom(numpy_helper.from_array(rounded, f"{name}.bf16"))
        casts.append(
            onnx.helper.make_node(
                "Cast", [f"{name}.bf16"], [name], f"{name}.widen", to=onnx.TensorProto.FLOAT
            )
        )
    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    save_with_data(model, path)
    return kept


def _depending(graph: onnx.GraphProto, value: str) -> set[str]:
    """The names of the nodes that depend on a value; the graph's nodes are in order."""
    values, found = {value}, set()
    for node in graph.node:
        if not values.isdisjoint(node.input):
            values.update(node.output)
            found.add(node.name)
    return found
