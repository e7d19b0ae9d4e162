"""FP32 graph -> FP16 graph. Precision is in the graph: FP16 weights and arithmetic, FP32 inputs,
outputs and islands.

The converter is onnxruntime.transformers.float16, which ships in the onnxruntime wheel.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from pathlib import Path

import numpy as np
import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from ris.calibration.numerics.ranges import FP16_MAX, TensorRange
from ris.runtime.bundle import Precision

SMALLEST = 2.0**-24  # FP16's smallest positive number
# calibration samples are not all there is: what reaches half of FP16's limit counts as out of range
MARGIN = 2.0

# Graphs that stay FP32 as a whole, and why.
FP32_GRAPHS = {
    "text_encoder": (
        "in FP16 it costs more mask IoU than both image encoders together, and it is under 1 % of a"
        " first mask's operations"
    ),
    "mask_decoder": (
        "4.6 M weights whose rounding goes straight into the mask: FP16 here costs as much mask IoU"
        " as FP16 in either image encoder, and the graph is under 1 % of a first mask's operations"
    ),
}
BF16_FP32_GRAPHS = {
    "text_encoder": (
        "in bfloat16 it costs as much mask IoU as an image encoder, for under 1 % of the operations"
    ),
    "mask_decoder": (
        "in bfloat16 it costs as much mask IoU as an image encoder, for under 1 % of the operations"
    ),
}
WHOLE: dict[Precision, dict[str, str]] = {"fp32": {}, "bf16": BF16_FP32_GRAPHS, "fp16": FP32_GRAPHS}
"""By a bundle's precision: the graphs that stay FP32, and why."""
# What stays FP32 in the others, and why: modules by a part of their path in `export.graphs`, and
# ONNX operators.
ISLAND_MODULES = {
    "patches": (
        "SAM's patch embedding: under 1 % of the operations, and every block hands its rounding on"
    ),
    "conv1": (
        "CLIP's patch embedding: under 1 % of the operations, and every block hands its rounding on"
    ),
    "neck": "SAM's neck: under 1 % of the operations, and a fifth of what FP16 costs the embedding",
    "pwam.image_lang_att": (
        "PWAM's attention: its instance norms subtract means that are large beside the rest, which "
        "FP16 has rounded away by then"
    ),
    "pwam": "PWAM: a few products, and all that follows reads what they give",
    "sparse": (
        "the sparse prompt: a few products of a few tokens, which go straight into the mask decoder"
    ),
    "project_category": (
        "the category's query: a product of one token, which the sparse prompt is made of"
    ),
    "self_attn.grid": "where deformable attention samples: FP16 is 0.03 pixels off at pixel 48",
    "self_attn.neighbours": "which pixels those are: FP16 counts to 2048",
}
QUICK_GELU = "CLIP's QuickGELU: three operators, which FP16 would round three times"
RESIDUAL = (
    "residual sum, as in torch.autocast: rounding it once a layer adds up to a third of an"
    " encoder's error"
)
BETWEEN = "between nodes that stay FP32: FP16 would be two casts and a rounding"
_PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
ISLAND_OPERATORS = {
    "LayerNormalization": "as in torch.autocast",
    "GridSample": "where it samples: FP16 is 0.03 pixels off at pixel 48",
    "InstanceNormalization": (
        "group norm in the pixel decoder: FP16 InstanceNormalization is wrong in places"
    ),
}


def islands(path: Path, scopes: dict[str, list[str]]) -> dict[str, str]:
    """Node name -> reason, for every node of the graph at `path` that has to stay FP32.

    scopes: for every node the paths of the modules it came from.
    """
    model = onnx.load(path, load_external_data=False)
    found = {}
    given = {tensor.name for tensor in model.graph.initializer}
    given |= {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    beside_sigmoid = {
        name
        for node in model.graph.node
        if node.op_type == "Sigmoid"
        for name in (*node.input, *node.output)
    }
    for node in model.graph.node:
        inside = [
            m
            for m in ISLAND_MODULES
            if any(f".{m}." in f".{s}." for s in scopes.get(node.name, []))
        ]
        if inside:
            found[node.name] = ISLAND_MODULES[inside[0]]
        elif node.op_type in ISLAND_OPERATORS:
            found[node.name] = ISLAND_OPERATORS[node.op_type]
        elif node.op_type in ("Mul", "Sigmoid") and not beside_sigmoid.isdisjoint(
            (*node.input, *node.output)
        ):
            found[node.name] = QUICK_GELU
        elif (
            node.op_type == "Add"
            and given.isdisjoint(node.input)
            and not _in_attention(scopes.get(node.name, []))
        ):
            found[node.name] = RESIDUAL
    return found | dict.fromkeys(sorted(_between(model.graph, found.keys())), BETWEEN)


def _between(graph: onnx.GraphProto, islands: AbstractSet[str]) -> set[str]:
    """The nodes that exchange floats with islands and with one another alone, products aside."""
    floats = {
        v.name for v in graph.value_info if v.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
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


def _in_attention(modules: list[str]) -> bool:
    """Sums in there are of logits: large, and gone after the softmax."""
    return any(re.search(r"(attn|image_lang_att)$", module) for module in modules)


def out_of_range(path: Path, ranges: Mapping[str, TensorRange]) -> dict[str, str]:
    """Node name -> reason, for every node that writes or reads a value which comes near FP16's
    limit, or whose weights lie beyond it.

    Readers too: on its way into an FP16 operator such a value would be cast, and be infinite.
    """
    graph = onnx.load(path).graph
    too_large = {
        name: f"{name} reaches {entry.largest:.3g} in calibration; FP16 ends at {FP16_MAX:.0f}"
        for name, entry in ranges.items()
        if not entry.largest * MARGIN <= FP16_MAX
    }
    for tensor in graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            largest = float(np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0))
            if not largest <= FP16_MAX:
                too_large[tensor.name] = (
                    f"{tensor.name} holds {largest:.3g}; FP16 ends at {FP16_MAX:.0f}"
                )
    found = {}
    for node in graph.node:
        names = [name for name in (*node.output, *node.input) if name in too_large]
        if names:
            found[node.name] = too_large[names[0]]
    return found


def convert_to_fp16(source: Path, target: Path, keep_fp32: Mapping[str, str]) -> None:
    """Writes the FP32 graph of `source` to `target`, data file and all, in FP16 except for the
    nodes of `keep_fp32`.
    """
    model = onnx.load(source)
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
    OnnxModel(half).topological_sort(
        is_deterministic=True
    )  # the converter appends its casts at the end
    del half.graph.value_info[:]  # the types that the values had before
    save_with_data(half, target)


def _merge_repeated_casts(model: onnx.ModelProto) -> None:
    """The converter writes the same cast once for every island that reads a value; the first one is
    enough.
    """
    seen: set[str] = set()
    for node in list(model.graph.node):
        if node.op_type == "Cast" and node.output[0] in seen:
            model.graph.node.remove(node)
        seen.update(node.output)


def _skip_casts_there_and_back(model: onnx.ModelProto) -> None:
    """Lets an island read the FP32 value itself, where it would be cast to FP16 and back, or FP32
    weights be cast.
    """
    float_type = onnx.TensorProto.FLOAT
    origin = {t.name: t.name for t in model.graph.initializer if t.data_type == float_type}
    kinds = {
        v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.input)
    }
    origin |= {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Cast"
        and node.attribute[0].i == onnx.TensorProto.FLOAT16
        and kinds.get(node.input[0], float_type)
        == float_type  # not a cast from integers or booleans
    }
    full = {
        node.output[0]: origin[node.input[0]]
        for node in model.graph.node
        if node.op_type == "Cast" and node.attribute[0].i == float_type and node.input[0] in origin
    }
    outputs = {value.name for value in model.graph.output}
    for node in list(model.graph.node):
        for i, name in enumerate(node.input):
            node.input[i] = full.get(name, name)
        if node.op_type == "Cast" and node.output[0] in full and node.output[0] in outputs:
            node.CopyFrom(
                onnx.helper.make_node("Identity", [full[node.output[0]]], node.output, node.name)
            )
    while unused := _unused_casts(model.graph):
        for node in unused:
            model.graph.node.remove(node)


def _unused_casts(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    used = {name for node in graph.node for name in node.input} | {
        value.name for value in graph.output
    }
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
    """Elements of all floating-point weights of a graph."""
    total = 0
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_type in (
            onnx.TensorProto.FLOAT,
            onnx.TensorProto.FLOAT16,
            onnx.TensorProto.BFLOAT16,
        ):
            size = 1
            for n in tensor.dims:
                size *= n
            total += size
    return total
