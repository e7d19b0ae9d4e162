"""INT8 in the graph: QuantizeLinear and DequantizeLinear before products.

Every engine here takes this form. It is symmetric throughout (zero points are 0, as TensorRT
demands): activations have one scale per tensor; weights are int8 initialisers with one scale per
output channel and a DequantizeLinear behind them. Biases, results and all other operators stay as
they are.
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

from ris.calibration.numerics.weights import bring_weights, weight_values
from ris.engines.errors import RisError

LEVELS = 127
"""Levels of a magnitude. Weights do not use -128, so that their scale is symmetric."""

_PRODUCTS = ("MatMul", "Gemm", "Conv")
_LEADING_NUMBER = re.compile(r"\d+")


@dataclass(frozen=True)
class Layer:
    """A product that can be quantised."""

    node: str
    """Its node's name in the graph."""

    name: str
    """The module it came from, for people."""

    operator: str
    """MatMul, Gemm or Conv."""

    activations: tuple[str, ...]
    """The values it reads that are no weights."""

    weight: str | None
    """Its weight's name. None for a product of two activations."""

    axis: int
    """The weight's axis of output channels. 0 without a weight."""

    values: int
    """Elements of its activations, for one image or expression."""


def find_layers(path: Path, attention: bool = False) -> list[Layer]:
    """The products of the graph at `path`, in its order.

    They are products with 2-D weights and convolutions, and with `attention` those of two
    activations too. Products with weights of more dimensions (tables of relative positions) are
    left out.
    """
    graph = onnx.load(path, load_external_data=False).graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    sizes = {value.name: _elements(value) for value in (*graph.input, *graph.value_info)}
    names = _module_names(graph, weights)
    layers: list[Layer] = []

    def add(node: onnx.NodeProto, activations: tuple[str, ...], axis: int) -> None:
        weight = node.input[1] if node.input[1] in weights else None
        values = sum(sizes.get(name, 0) for name in activations)
        layers.append(
            Layer(node.name, names[node.name], node.op_type, activations, weight, axis, values)
        )

    for node in graph.node:
        if node.op_type not in _PRODUCTS or node.input[0] in weights:
            continue
        weight = weights.get(node.input[1])
        if weight is None:
            if attention and node.op_type == "MatMul":
                add(node, tuple(dict.fromkeys(node.input)), 0)
        elif _can_be_int8(node, weight):
            add(node, (node.input[0],), _output_axis(node))
    return layers


def _can_be_int8(node: onnx.NodeProto, weight: TensorProto) -> bool:
    is_float = weight.data_type == TensorProto.FLOAT
    return is_float and (node.op_type == "Conv" or len(weight.dims) == 2)


def _output_axis(node: onnx.NodeProto) -> int:
    """The axis of output channels in the node's weight."""
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else 1


def _elements(value: onnx.ValueInfoProto) -> int:
    """Elements of a value where every named axis is 1; "4*images" counts as 4."""
    count = 1
    for dim in value.type.tensor_type.shape.dim:
        found = _LEADING_NUMBER.match(dim.dim_param)
        count *= dim.dim_value or (int(found[0]) if found else 1)
    return count


def _module_names(graph: onnx.GraphProto, weights: Mapping[str, TensorProto]) -> dict[str, str]:
    """The module that each product came from, by node.

    It is that of the weight or bias, as in "blocks.3.attn.proj". For a product without either it is
    the parent of the next such module, followed by the node's own name.
    """
    readers = {name: node for node in graph.node for name in node.input}
    names: dict[str, str] = {}
    waiting: list[str] = []
    for node in graph.node:
        if node.op_type not in _PRODUCTS:
            continue
        candidates = list(node.input[1:])
        after = readers.get(node.output[0])
        if after is not None and after.op_type == "Add":
            candidates += after.input
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
    return _numbered(names)


def _numbered(names: Mapping[str, str]) -> dict[str, str]:
    """The names with "#2", "#3" ... behind those of a module that runs more than once."""
    taken: dict[str, int] = {}
    numbered: dict[str, str] = {}
    for node, module in names.items():
        taken[module] = taken.get(module, 0) + 1
        numbered[node] = f"{module}#{taken[module]}" if taken[module] > 1 else module
    return numbered


def quantise_weight(
    weight: NDArray[np.float32], axis: int
) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Symmetric int8 levels of the weight's own shape, and the scale of each channel of `axis`."""
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

    In the folder of `source` the other weights stay in its data file; elsewhere `target` gets a
    data file of its own.

    Args:
        source: The FP32 graph.
        target: The graph to write.
        layers: Products of the graph, from `find_layers`.
        thresholds: The magnitude that becomes level 127, by activation.

    Raises:
        RisError: A threshold is not finite.
    """
    model = onnx.load(source, load_external_data=False)
    rewritten = _Rewriter(model.graph, source, thresholds)
    chosen = {layer.node: layer for layer in layers}
    for node in model.graph.node:
        rewritten.add(node, chosen.get(node.name))

    _replace_nodes(model.graph, rewritten.nodes)
    if target.parent == source.parent:
        onnx.save_model(model, target)
        return
    bring_weights(model, source.parent)
    save_with_data(model, target)


class _Rewriter:
    """The nodes of a graph once more, with Q/DQ before the products that become INT8."""

    def __init__(
        self, graph: onnx.GraphProto, source: Path, thresholds: Mapping[str, float]
    ) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._initializers = graph.initializer
        self._weights = {tensor.name: tensor for tensor in graph.initializer}
        self._source, self._thresholds = source, thresholds
        # what a quantised product reads instead, by weight and activation: written once for all
        self._instead: dict[str, str] = {}

    def add(self, node: onnx.NodeProto, layer: Layer | None) -> None:
        """Appends the node; with a `layer`, as a product that reads 8-bit values."""
        if layer is not None:
            for i in range(2):
                if layer.weight is not None and i == 1:
                    node.input[i] = self._weight(layer.weight, layer.axis)
                else:
                    node.input[i] = self._activation(node.input[i])
        self.nodes.append(node)

    def _weight(self, name: str, axis: int) -> str:
        """The value to read in place of a weight."""
        key = f"{name}/int8"
        if key not in self._instead:
            array = weight_values(self._weights[name], self._source.parent)
            levels, scale = quantise_weight(array, axis)
            self._store(levels, key)
            self._store(scale, f"{key}/scale")
            self._store(np.zeros(scale.shape, np.int8), f"{key}/zero")

            inputs, back = [key, f"{key}/scale", f"{key}/zero"], f"{key}/back"
            self._node("DequantizeLinear", inputs, back, f"{key}/dequantize", axis=axis)
            self._instead[key] = back
        return self._instead[key]

    def _activation(self, name: str) -> str:
        """The value to read in place of an activation."""
        if name not in self._instead:
            parameters = [f"{name}/int8/scale", f"{name}/int8/zero"]
            self._store(self._scale(name), parameters[0])
            self._store(np.int8(0), parameters[1])

            levels, back = f"{name}/int8/levels", f"{name}/int8/back"
            self._node("QuantizeLinear", [name, *parameters], levels, f"{name}/quantize")
            self._node("DequantizeLinear", [levels, *parameters], back, f"{name}/dequantize")
            self._instead[name] = back
        return self._instead[name]

    def _scale(self, name: str) -> np.float32:
        threshold = self._thresholds[name]
        if not np.isfinite(threshold):
            raise RisError(
                f"{self._source.name}: {name} reaches {threshold}; such a graph cannot be quantised"
            )
        return np.float32(threshold / LEVELS) or np.float32(1)

    def _store(self, value: NDArray | np.generic, name: str) -> None:
        self._initializers.append(numpy_helper.from_array(np.asarray(value), name))

    def _node(
        self, operator: str, inputs: list[str], output: str, name: str, **attributes: int
    ) -> None:
        self.nodes.append(helper.make_node(operator, inputs, [output], name, **attributes))


def _replace_nodes(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Gives the graph these nodes, and drops the weights that none of them reads."""
    del graph.node[:]
    graph.node.extend(nodes)
    used = {name for node in nodes for name in node.input} | {value.name for value in graph.output}
    kept = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)


def save_with_data(model: onnx.ModelProto, path: Path) -> None:
    """Writes `path` and all its large weights to `path.data`, replacing both."""
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)  # onnx does not replace it
    onnx.save_model(
        model,
        path,
        save_as_external_data=True,
        all_tensors_to_one_file=True,
        location=data.name,
        size_threshold=1024,
    )
