"""FP32 graph -> FP16 graph: FP16 weights and arithmetic, FP32 inputs, outputs and islands.

The precision is in the graph itself. The converter is onnxruntime.transformers.float16, which ships
in the onnxruntime wheel.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from ris.calibration.numerics.ranges import FP16_MAX, TensorRange
from ris.calibration.numerics.weights import load_whole
from ris.export.families.design import IslandRules

SMALLEST = 2.0**-24
"""FP16's smallest positive number."""

MARGIN = 2.0
"""A value that reaches FP16's limit divided by this counts as out of range.

The samples of a calibration are not all that a model will see.
"""

ISLAND_OPERATORS = {
    "LayerNormalization": "as in torch.autocast",
    "GridSample": "where it samples: FP16 is 0.03 pixels off at pixel 48",
    "InstanceNormalization": (
        "instance or group norm: FP16 InstanceNormalization is wrong in places"
    ),
}
"""ONNX operators that stay FP32 in every FP16 graph, with the reason."""

SIGMOID = "a sigmoid and the products beside it, as in QuickGELU: FP16 would round each of them"
"""Why a sigmoid stays FP32, and the products before and after it."""

RESIDUAL = (
    "residual sum, as in torch.autocast: rounding it once a layer adds up to a third of an "
    "encoder's error"
)
"""Why a sum of two computed values stays FP32."""

BETWEEN = "between nodes that stay FP32: FP16 would be two casts and a rounding"
"""Why a node stays FP32 that has only such neighbours."""

_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})


def islands(path: Path, scopes: Mapping[str, list[str]], rules: IslandRules) -> dict[str, str]:
    """Node name -> reason, for every node of the graph at `path` that has to stay FP32.

    Args:
        path: The FP32 graph.
        scopes: For every node the paths of the modules it came from.
        rules: The family's.
    """
    graph = onnx.load(path, load_external_data=False).graph
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {node.output[0] for node in graph.node if node.op_type == "Constant"}
    beside_sigmoid = {
        name
        for node in graph.node
        if node.op_type == "Sigmoid"
        for name in (*node.input, *node.output)
    }

    found: dict[str, str] = {}
    for node in graph.node:
        modules = scopes.get(node.name, [])
        reason = module_reason(modules, rules) or ISLAND_OPERATORS.get(node.op_type)
        if reason is None and _is_beside_sigmoid(node, beside_sigmoid):
            reason = SIGMOID
        is_attention = any(module.endswith(rules.attention) for module in modules)
        if reason is None and not is_attention and _is_sum(node, constants):
            reason = RESIDUAL
        if reason is not None:
            found[node.name] = reason
    return found | dict.fromkeys(sorted(_between(graph, found.keys())), BETWEEN)


def module_reason(modules: list[str], rules: IslandRules) -> str | None:
    """The reason of the first of the family's modules that is in one of the paths."""
    for part, reason in rules.modules.items():
        if any(f".{part}." in f".{module}." for module in modules):
            return reason
    return None


def _is_beside_sigmoid(node: onnx.NodeProto, beside_sigmoid: set[str]) -> bool:
    """Whether it is a sigmoid, or a product that reads or writes a value beside one."""
    values = (*node.input, *node.output)
    return node.op_type in ("Mul", "Sigmoid") and not beside_sigmoid.isdisjoint(values)


def _is_sum(node: onnx.NodeProto, constants: set[str]) -> bool:
    """Whether it adds two computed values: outside of attention, a residual sum.

    In attention these are logits: they are large, and gone after the softmax.
    """
    return node.op_type == "Add" and constants.isdisjoint(node.input)


def _between(graph: onnx.GraphProto, islands: AbstractSet[str]) -> set[str]:
    """The nodes whose float neighbours are all islands or nodes of this set; never products."""
    floats = {
        value.name
        for value in graph.value_info
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    writers = {name: node.name for node in graph.node for name in node.output}
    partners: dict[str, set[str]] = {}
    for node in graph.node:
        for writer in (writers[name] for name in node.input if name in floats and name in writers):
            partners.setdefault(node.name, set()).add(writer)
            partners.setdefault(writer, set()).add(node.name)

    products = {node.name for node in graph.node if node.op_type in _PRODUCTS}
    found = partners.keys() - products - islands
    while outside := {name for name in found if not partners[name] <= found | islands}:
        found -= outside
    return found


def out_of_range(path: Path, ranges: Mapping[str, TensorRange]) -> dict[str, str]:
    """Node name -> reason, for every node that writes or reads a value too large for FP16.

    A computed value is too large where it comes near FP16's limit, a weight where it lies beyond.
    Readers are found too: on its way into an FP16 operator such a value would be cast, and become
    infinite.
    """
    graph = load_whole(path).graph
    # the comparisons are negated, so that a NaN counts as too large
    too_large = {
        name: f"{name} reaches {entry.largest:.3g} in calibration; FP16 ends at {FP16_MAX:.0f}"
        for name, entry in ranges.items()
        if not entry.largest * MARGIN <= FP16_MAX
    }
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            largest = float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0))
            if not largest <= FP16_MAX:
                reason = f"{tensor.name} holds {largest:.3g}; FP16 ends at {FP16_MAX:.0f}"
                too_large[tensor.name] = reason

    found = {}
    for node in graph.node:
        names = [name for name in (*node.output, *node.input) if name in too_large]
        if names:
            found[node.name] = too_large[names[0]]
    return found


def convert_to_fp16(source: Path, target: Path, keep_fp32: Mapping[str, str]) -> None:
    """Writes the FP32 graph at `source` to `target` in FP16, with its data file.

    The nodes of `keep_fp32` (name -> reason) stay FP32.
    """
    model = load_whole(source)
    blocked = [op for op in DEFAULT_OP_BLOCK_LIST if op not in ("Min", "Max")]
    half = convert_float_to_float16(
        model,
        keep_io_types=True,
        # the exporter wrote every value's type, and inference would copy the weights
        disable_shape_infer=True,
        # the converter's own limits are 1e-7 and 1e4, beyond which it changes weights
        min_positive_val=SMALLEST,
        max_finite_val=FP16_MAX,
        op_block_list=blocked,
        node_block_list=list(keep_fp32),
    )
    _merge_repeated_casts(half)
    _skip_casts_there_and_back(half)
    # the converter appends its casts at the end
    OnnxModel(half).topological_sort(is_deterministic=True)
    del half.graph.value_info[:]  # the types that the values had before
    save_with_data(half, target)


def _merge_repeated_casts(model: onnx.ModelProto) -> None:
    """Keeps the first of equal casts; the converter writes one for every island that reads a value.

    Equal casts have the same output name.
    """
    seen: set[str] = set()
    for node in list(model.graph.node):
        if node.op_type == "Cast" and node.output[0] in seen:
            model.graph.node.remove(node)
        seen.update(node.output)


def _skip_casts_there_and_back(model: onnx.ModelProto) -> None:
    """Lets an island read an FP32 value itself, and not its cast to FP16 and back to FP32.

    A weight that stays FP32 is read without a cast as well.
    """
    full = _cast_back(model.graph)
    outputs = {value.name for value in model.graph.output}
    for node in list(model.graph.node):
        for i, name in enumerate(node.input):
            node.input[i] = full.get(name, name)
        # the graph's output keeps its name
        if node.op_type == "Cast" and node.output[0] in full and node.output[0] in outputs:
            node.CopyFrom(
                onnx.helper.make_node("Identity", [full[node.output[0]]], node.output, node.name)
            )
    while unused := _unused_casts(model.graph):
        for node in unused:
            model.graph.node.remove(node)


def _cast_back(graph: onnx.GraphProto) -> dict[str, str]:
    """Every value that is a cast to FP32, by name, and the FP32 value that it comes from."""
    fp32 = onnx.TensorProto.FLOAT
    kinds = {
        value.name: value.type.tensor_type.elem_type for value in (*graph.value_info, *graph.input)
    }
    casts = [node for node in graph.node if node.op_type == "Cast"]

    origin = {tensor.name: tensor.name for tensor in graph.initializer if tensor.data_type == fp32}
    for node in casts:
        is_narrowing = node.attribute[0].i == onnx.TensorProto.FLOAT16
        # a cast from integers or booleans has no FP32 value before it
        if is_narrowing and kinds.get(node.input[0], fp32) == fp32:
            origin[node.output[0]] = node.input[0]
    return {
        node.output[0]: origin[node.input[0]]
        for node in casts
        if node.attribute[0].i == fp32 and node.input[0] in origin
    }


def _unused_casts(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    used = {name for node in graph.node for name in node.input}
    used |= {value.name for value in graph.output}
    return [node for node in graph.node if node.op_type == "Cast" and node.output[0] not in used]


def save_with_data(model: onnx.ModelProto, path: Path) -> None:
    """Writes `path` and all its weights to `path.data`, replacing both."""
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


def count_parameters(path: Path) -> int:
    """The number of elements in all floating-point weights of the graph at `path`."""
    kinds = (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
    weights = onnx.load(path, load_external_data=False).graph.initializer
    return sum(math.prod(tensor.dims) for tensor in weights if tensor.data_type in kinds)
