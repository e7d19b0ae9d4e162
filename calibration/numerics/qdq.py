"""INT8 in the graph: QuantizeLinear and DequantizeLinear before products, in the form that every
engine here takes.

Symmetric throughout (zero points are 0, as TensorRT demands): activations with one scale a tensor,
weights as int8 initialisers with one scale an output channel and a DequantizeLinear behind them.
Biases, results and all other operators stay as they are.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.external_data_helper import load_external_data_for_model

from ris.engines.errors import RisError

LEVELS = 127  # of a magnitude; -128 stays unused by weights, so that the scale is symmetric
_LEADING_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Layer:
    """A product that can be quantised.

    node: its name in the graph; name: the module it came from, for people; operator: MatMul, Gemm
    or Conv; activations: the values it reads that are no weights; weight: its weight's name, None
    for a product of two activations; axis: the weight's output channels; values: elements of its
    activations, for one image or expression.
    """

    node: str
    name: str
    operator: str
    activations: tuple[str, ...]
    weight: str | None
    axis: int
    values: int


def find_layers(path: Path, attention: bool = False) -> list[Layer]:
    """The products of the graph at `path` in its order: with 2-D weights, convolutions, and with
    `attention` those of two activations too. Products with weights of more dimensions (tables of
    relative positions) are left out.
    """
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    sizes = {v.name: _elements(v) for v in (*graph.input, *graph.value_info)}
    names = _module_names(graph, weights)
    layers: list[Layer] = []
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        weight = weights.get(node.input[1])
        if node.input[0] in weights or (
            weight is not None and weight.data_type != TensorProto.FLOAT
        ):
            continue
        if weight is None:
            if not attention or node.op_type != "MatMul":
                continue
            activations, axis = tuple(dict.fromkeys(node.input)), 0
        elif node.op_type != "Conv" and len(weight.dims) != 2:
            continue
        else:
            transposed = any(a.name == "transB" and a.i for a in node.attribute)
            activations, axis = (node.input[0],), 0 if node.op_type == "Conv" or transposed else 1
        name = weight.name if weight is not None else None
        values = sum(sizes.get(value, 0) for value in activations)
        layers.append(
            Layer(node.name, names[node.name], node.op_type, activations, name, axis, values)
        )
    return layers


def _elements(value: onnx.ValueInfoProto) -> int:
    """Elements of a value where every named axis is 1; "4*images" counts as 4."""
    count = 1
    for dim in value.type.tensor_type.shape.dim:
        found = _LEADING_NUMBER.match(dim.dim_param)
        count *= dim.dim_value or (int(found[0]) if found else 1)
    return count


def _module_names(graph: onnx.GraphProto, weights: Mapping[str, TensorProto]) -> dict[str, str]:
    """A name for people by node: of the weight or bias, as in "blocks.3.attn.proj"; for a product
    without either, the next such module's parent and the node's own name.
    """
    readers = {name: node for node in graph.node for name in node.input}
    names: dict[str, str] = {}
    waiting: list[str] = []
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm", "Conv"):
            continue
        after = readers.get(node.output[0])
        candidates = [
            *node.input[1:],
            *(after.input if after is not None and after.op_type == "Add" else ()),
        ]
        own = [n for n in candidates if n in weights and n.endswith(("weight", "bias"))]
        if not own:
            waiting.append(node.name)
            continue
        module = re.sub(r"[._](weight|bias)$", "", own[0])
        names[node.name] = module
        parent = module.rpartition(".")[0]
        names |= {other: f"{parent}.{other}".lstrip(".") for other in waiting}
        waiting.clear()
    names |= {other: other for other in waiting}
    taken: dict[str, int] = {}
    for node_name, module in names.items():  # a module that runs more than once
        taken[module] = taken.get(module, 0) + 1
        if taken[module] > 1:
            names[node_name] = f"{module}#{taken[module]}"
    return names


def quantise_weight(
    weight: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 levels of the weight's own shape, and the scale of each channel along
    `axis`.
    """
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale = np.abs(weight).max(others).astype(np.float32) / np.float32(LEVELS)
    scale[scale == 0] = 1.0  # a channel of zeros
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    levels = np.clip(np.rint(weight / scale.reshape(shape)), -LEVELS, LEVELS)
    return levels.astype(np.int8), scale


def write_quantised(
    source: Path, target: Path, layers: list[Layer], thresholds: Mapping[str, float]
) -> None:
    """Writes the FP32 graph of `source` to `target` with `layers` in INT8.

    thresholds: the magnitude that becomes level 127, by activation. In the folder of `source` the
    other weights stay in its data file; elsewhere `target` gets a data file of its own. Raises
    RisError for a threshold that is no number.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    chosen = {layer.node: layer for layer in layers}
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    done: dict[str, str] = {}  # what is read instead

    def add_weight(layer: Layer) -> str:
        assert layer.weight is not None
        key = f"{layer.weight}/int8"
        if key not in done:
            array = numpy_helper.to_array(tensors[layer.weight], str(source.parent))
            levels, scale = quantise_weight(array, layer.axis)
            zero = np.zeros(scale.shape, np.int8)
            for suffix, value in (("", levels), ("/scale", scale), ("/zero", zero)):
                graph.initializer.append(numpy_helper.from_array(value, f"{key}{suffix}"))
            inputs = [key, f"{key}/scale", f"{key}/zero"]
            nodes.append(
                helper.make_node(
                    "DequantizeLinear",
                    inputs,
                    [f"{key}/back"],
                    f"{key}/dequantize",
                    axis=layer.axis,
                )
            )
            done[key] = f"{key}/back"
        return done[key]

    def add_activation(name: str) -> str:
        if name not in done:
            threshold = thresholds[name]
            if not np.isfinite(threshold):
                raise RisError(
                    f"{source.name}: {name} reaches {threshold}; such a graph cannot be quantised"
                )
            scale = np.float32(threshold / LEVELS) or np.float32(1)
            for suffix, value in (("scale", scale), ("zero", np.int8(0))):
                graph.initializer.append(
                    numpy_helper.from_array(np.asarray(value), f"{name}/int8/{suffix}")
                )
            parameters = [f"{name}/int8/scale", f"{name}/int8/zero"]
            to, back = f"{name}/int8/levels", f"{name}/int8/back"
            nodes.append(
                helper.make_node("QuantizeLinear", [name, *parameters], [to], f"{name}/quantize")
            )
            nodes.append(
                helper.make_node(
                    "DequantizeLinear", [to, *parameters], [back], f"{name}/dequantize"
                )
            )
            done[name] = back
        return done[name]

    for node in graph.node:
        layer = chosen.get(node.name)
        if layer is not None:
            for i in range(2):
                is_weight = layer.weight is not None and i == 1
                node.input[i] = add_weight(layer) if is_weight else add_activation(node.input[i])
        nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    if target.parent == source.parent:
        onnx.save_model(model, target)
        return
    load_external_data_for_model(model, str(source.parent))
    save_with_data(model, target)


def save_with_data(model: onnx.ModelProto, path: Path) -> None:
    """Writes `path` and all its large weights to `path.data`, replacing both."""
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=data.name,
        size_threshold=1024,
    )
