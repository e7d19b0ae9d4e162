"""FP32 graph -> FP16 graph. Precision is in the graph: FP16 weights and arithmetic, FP32 inputs, outputs and islands.

The converter is onnxruntime.transformers.float16, which ships in the onnxruntime wheel.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

# Graphs that stay FP32 as a whole, and why.
FP32_GRAPHS = {
    "mask_decoder": "4.6 M weights whose rounding goes straight into the mask: FP16 here costs as much mask IoU as "
    "FP16 in either image encoder, and the graph is under 1 % of a first mask's operations",
}
# What stays FP32 in the others, and why: modules by their path in `export.graphs`, and ONNX operators.
ISLAND_MODULES = {
    "pwam.image_lang_att": "PWAM's attention: its instance norms subtract means that are large beside the rest, which "
    "FP16 has rounded away by then",
}
ISLAND_OPERATORS = {
    "LayerNormalization": "as in torch.autocast; nearly halves the text encoder's error",
    "InstanceNormalization": "group norm in the pixel decoder: FP16 InstanceNormalization is wrong in places",
}


def islands(path: Path, scopes: dict[str, list[str]]) -> dict[str, str]:
    """Node name -> reason, for every node of the graph at `path` that has to stay FP32.

    scopes: for every node the paths of the modules it came from.
    """
    model = onnx.load(path, load_external_data=False)
    found = {}
    for node in model.graph.node:
        inside = [m for m in ISLAND_MODULES if any(f"{s}.".startswith(f"{m}.") for s in scopes.get(node.name, []))]
        if inside:
            found[node.name] = ISLAND_MODULES[inside[0]]
        elif node.op_type in ISLAND_OPERATORS:
            found[node.name] = ISLAND_OPERATORS[node.op_type]
    return found


def convert_to_fp16(path: Path, keep_fp32: dict[str, str]) -> None:
    """Rewrites the graph at `path` (and its data file) in FP16, except for the nodes of `keep_fp32`."""
    model = onnx.load(path)
    blocked = [op for op in DEFAULT_OP_BLOCK_LIST if op not in ("Min", "Max")]
    half = convert_float_to_float16(
        model,
        keep_io_types=True,
        disable_shape_infer=True,  # the exporter wrote every value's type, and inference would copy the weights
        op_block_list=blocked,
        node_block_list=list(keep_fp32),
    )
    _merge_repeated_casts(half)
    _skip_casts_there_and_back(half)
    OnnxModel(half).topological_sort(is_deterministic=True)  # the converter appends its casts at the end
    save_with_data(half, path)


def _merge_repeated_casts(model: onnx.ModelProto) -> None:
    """The converter writes the same cast once for every island that reads a value; the first one is enough."""
    seen: set[str] = set()
    for node in list(model.graph.node):
        if node.op_type == "Cast" and node.output[0] in seen:
            model.graph.node.remove(node)
        seen.update(node.output)


def _skip_casts_there_and_back(model: onnx.ModelProto) -> None:
    """Lets an island read the FP32 value itself, where it would be cast to FP16 and back, or FP32 weights be cast."""
    float_type = onnx.TensorProto.FLOAT
    origin = {t.name: t.name for t in model.graph.initializer if t.data_type == float_type}
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*model.graph.value_info, *model.graph.input)}
    origin |= {
        node.output[0]: node.input[0]
        for node in model.graph.node
        if node.op_type == "Cast"
        and node.attribute[0].i == onnx.TensorProto.FLOAT16
        and kinds.get(node.input[0], float_type) == float_type  # not a cast from integers or booleans
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
            node.CopyFrom(onnx.helper.make_node("Identity", [full[node.output[0]]], node.output, node.name))
    used = {name for node in model.graph.node for name in node.input} | outputs
    for node in list(model.graph.node):
        if node.op_type == "Cast" and node.output[0] not in used:
            model.graph.node.remove(node)


def save_with_data(model: onnx.ModelProto, path: Path) -> None:
    """Writes `path` and all its weights to `path.data`, replacing both."""
    data = path.with_name(path.name + ".data")
    data.unlink(missing_ok=True)
    onnx.save_model(
        model, path, save_as_external_data=True, all_tensors_to_one_file=True, location=data.name, size_threshold=1024
    )


def count_parameters(path: Path) -> int:
    """Elements of all floating-point weights of a graph."""
    total = 0
    for tensor in onnx.load(path, load_external_data=False).graph.initializer:
        if tensor.data_type in (onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16):
            size = 1
            for n in tensor.dims:
                size *= n
            total += size
    return total
