"""How many operations a graph's matrix products and convolutions take, from the shapes in its ONNX
file.

What the benchmark's floor is made of. Sampling, norms, softmax and other elementwise work is not
counted.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

import onnx

from ris.runtime.bundle import Operations

_AXES = ("images", "expressions")


def count_operations(path: Path) -> Operations:
    """The operations of the graph at `path`, two for each multiply-add, as a linear function of its
    dynamic axes.

    Raises ValueError where a shape that is needed is not in the file, or is no multiple of an axis.
    """
    model = onnx.load(path, load_external_data=False)
    one, more_images, more_expressions = (
        _count(model.graph, dict(zip(_AXES, sizes, strict=True)))
        for sizes in ((1, 1), (2, 1), (1, 2))
    )
    image, expression = more_images - one, more_expressions - one
    return Operations(fixed=one - image - expression, image=image, expression=expression)


def _count(graph: onnx.GraphProto, sizes: Mapping[str, int]) -> int:
    shapes = {tensor.name: list(tensor.dims) for tensor in graph.initializer}
    for value in (*graph.input, *graph.value_info, *graph.output):
        shapes[value.name] = [_size(axis, sizes) for axis in value.type.tensor_type.shape.dim]
    return sum(2 * _multiplications(node, shapes) for node in graph.node)


def _multiplications(node: onnx.NodeProto, shapes: Mapping[str, list[int]]) -> int:
    if node.op_type == "MatMul":
        return (
            math.prod(_shape(node, node.output[0], shapes))
            * _shape(node, node.input[0], shapes)[-1]
        )
    if node.op_type == "Gemm":
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        left = _shape(node, node.input[0], shapes)
        return math.prod(_shape(node, node.output[0], shapes)) * left[0 if transposed else 1]
    if node.op_type == "Conv":  # weights [out, in / groups, ...]
        return math.prod(_shape(node, node.output[0], shapes)) * math.prod(
            _shape(node, node.input[1], shapes)[1:]
        )
    if node.op_type == "ConvTranspose":  # weights [in, out / groups, ...]
        return math.prod(_shape(node, node.input[0], shapes)) * math.prod(
            _shape(node, node.input[1], shapes)[1:]
        )
    return 0


def _shape(node: onnx.NodeProto, name: str, shapes: Mapping[str, list[int]]) -> list[int]:
    if name not in shapes:
        raise ValueError(
            f"the shape of {name!r}, at {node.op_type} {node.name!r}, is not in the graph"
        )
    return shapes[name]


def _size(axis: onnx.TensorShapeProto.Dimension, sizes: Mapping[str, int]) -> int:
    """An axis: a number, an axis' name, or a multiple of one as the exporter writes it
    ("4*images").
    """
    if not axis.dim_param:
        return int(axis.dim_value)
    match = re.fullmatch(r"(?:(\d+)\*)?(\w+)", axis.dim_param)
    if match is None or match[2] not in sizes:
        raise ValueError(f"the axis {axis.dim_param!r} is no multiple of {' or '.join(sizes)}")
    return int(match[1] or 1) * sizes[match[2]]
