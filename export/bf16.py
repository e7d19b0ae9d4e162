"""FP32 graph -> graph with bfloat16 weights, half the size.

Weights are stored in bfloat16, and a Cast widens each of them to FP32. So the graph itself says
what its weights are, and every engine runs it. An engine without bfloat16 folds the casts when it
loads the graph and is then as fast as with FP32 weights. OpenVINO multiplies in bfloat16 where the
CPU does. In the first case all of the error comes from the rounded weights, in the second about
half of it.
"""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import onnx
from onnx import numpy_helper

from ris.calibration.numerics.weights import load_whole
from ris.export.families.design import NarrowFrom
from ris.export.precision import save_with_data

MULTIPLY = ("MatMul", "Gemm", "Conv", "ConvTranspose")
"""The operators whose weights become bfloat16."""


def convert_to_bf16(path: Path, begins: NarrowFrom | None = None) -> dict[str, str]:
    """Rewrites the FP32 graph at `path`, and its data file, with bfloat16 weights.

    The weights of products and convolutions are rounded to nearest. With `begins`, only the weights
    of nodes that depend on its value are; None: all.

    Returns the products that keep their weights, by node name, with the reason.
    """
    model = load_whole(path)
    graph = model.graph
    later = _depending(graph, begins.value) if begins else {node.name for node in graph.node}

    weights = {
        tensor.name: tensor
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) >= 2
    }
    casts = []
    for name in sorted(weights.keys() & _multiplied(graph, later)):
        rounded = numpy_helper.to_array(weights[name]).astype(ml_dtypes.bfloat16)
        weights[name].CopyFrom(numpy_helper.from_array(rounded, f"{name}.bf16"))
        casts.append(_widening(name))

    nodes = [*casts, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)
    save_with_data(model, path)
    if begins is None:
        return {}
    return {
        node.name: begins.reason
        for node in graph.node
        if node.op_type in MULTIPLY and node.name not in later
    }


def _depending(graph: onnx.GraphProto, value: str) -> set[str]:
    """The names of the nodes that depend on a value; the graph's nodes are in order."""
    values, found = {value}, set()
    for node in graph.node:
        if not values.isdisjoint(node.input):
            values.update(node.output)
            found.add(node.name)
    return found


def _multiplied(graph: onnx.GraphProto, later: set[str]) -> set[str]:
    """The inputs of the products among `later` that no other node reads.

    What another reads as well, such as a table of rotations, is no weight of a product alone.
    """
    multiplied = {
        name
        for node in graph.node
        if node.op_type in MULTIPLY and node.name in later
        for name in node.input
    }
    return multiplied - {
        name
        for node in graph.node
        if node.op_type not in MULTIPLY or node.name not in later
        for name in node.input
    }


def _widening(name: str) -> onnx.NodeProto:
    """The Cast that makes the FP32 weight of this name from its bfloat16 form."""
    return onnx.helper.make_node(
        "Cast", [f"{name}.bf16"], [name], f"{name}.widen", to=onnx.TensorProto.FLOAT
    )
