"""The operations of a graph's matrix products and convolutions, from the shapes in its ONNX file.

The benchmark computes its floor from them. Sampling, norms, softmax and elementwise work are not
counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import onnx

from ris.runtime.manifest import Operations


def count_operations(path: Path, tokens: int = 1) -> Operations:
    """The operations of the graph at `path`, two for each multiply-add.

    They are a linear function of the numbers of images and expressions. Raises ValueError where a
    shape that is needed is not in the file, or is not made of one axis.

    tokens: the length of the axis of that name.
    """
    graph = onnx.load(path, load_external_data=False).graph
    sizes = {"images": 1, "expressions": 1, "tokens": tokens}
    one = _count(graph, sizes)
    image = _count(graph, sizes | {"images": 2}) - one
    expression = _count(graph, sizes | {"expressions": 2}) - one
    return Operations(fixed=one - image - expression, image=image, expression=expression)


def _count(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> int:
    """The operations with these lengths of the dynamic axes."""
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = [_size(axis, sizes) for axis in value.type.tensor_type.shape.dim]
    return sum(2 * _multiplications(node, shapes) for node in graph.node)


def _multiplications(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int:
    """The multiply-adds of one node; 0 for operators that are not counted."""

    def shape(name: str) -> list[int]:
        return _shape(node, name, shapes)

    if node.op_type == "MatMul":
        return math.prod(shape(node.output[0])) * shape(node.input[0])[-1]
    if node.op_type == "Gemm":
        is_transposed = any(a.name == "transA" and a.i for a in node.attribute)
        inner = shape(node.input[0])[0 if is_transposed else 1]
        return math.prod(shape(node.output[0])) * inner
    if node.op_type == "Conv":  # weights [out, in / groups, ...]
        return math.prod(shape(node.output[0])) * math.prod(shape(node.input[1])[1:])
    if node.op_type == "ConvTranspose":  # weights [in, out / groups, ...]
        return math.prod(shape(node.input[0])) * math.prod(shape(node.input[1])[1:])
    return 0


def _shape(node: onnx.NodeProto, name: str, shapes: Mapping[str, list[int]]) -> list[int]:
    if name not in shapes:
        raise ValueError(
            f"the shape of {name!r}, at {node.op_type} {node.name!r}, is not in the graph"
        )
    return shapes[name]


def _size(axis: onnx.TensorShapeProto.Dimension, sizes: Mapping[str, int]) -> int:
    """The length of an axis: a number, or made of a dynamic one ("4*images", "tokens + 292")."""
    if not axis.dim_param:
        return int(axis.dim_value)
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+)(?: ([+-] \d+))?", axis.dim_param)
    if match is None or match[2] not in sizes:
        raise ValueError(f"the axis {axis.dim_param!r} is not made of one of {', '.join(sizes)}")
    return int(match[1] or 1) * sizes[match[2]] + int((match[3] or "0").replace(" ", ""))
