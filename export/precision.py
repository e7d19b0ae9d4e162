"""FP32 graph -> FP16 graph. Precision is in the graph: FP16 weights and arithmetic, FP32 inputs, outputs and islands.

The converter is onnxruntime.transformers.float16, which ships in the onnxruntime wheel.
"""

from __future__ import annotations

from pathlib import Path

import onnx
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

# What stays FP32, and why. Keys are class names of the reference's layers, or ONNX operators.
ISLAND_LAYERS = {
    "InstanceNorm": "PWAM's instance norm: squares of unnormalised features overflow or lose their digits in FP16",
}
ISLAND_OPERATORS = {
    "LayerNormalization": "as in torch.autocast; halves the error of the text encoder (1.6e-3 to 0.9e-3 at full size)",
    "InstanceNormalization": "group norm in the pixel decoder: FP16 InstanceNormalization is wrong in places",
}


def islands(path: Path, classes: dict[str, list[str]]) -> dict[str, str]:
    """Node name -> reason, for every node of the graph at `path` that has to stay FP32."""
    model = onnx.load(path, load_external_data=False)
    found = {}
    for node in model.graph.node:
        names = {name.rsplit(".", 1)[-1] for name in classes.get(node.name, [])}
        reasons = [reason for layer, reason in ISLAND_LAYERS.items() if layer in names]
        if node.op_type in ISLAND_OPERATORS:
            reasons.append(ISLAND_OPERATORS[node.op_type])
        if reasons:
            found[node.name] = reasons[0]
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
    save_with_data(half, path)


def _merge_repeated_casts(model: onnx.ModelProto) -> None:
    """The converter writes the same cast once for every island that reads a value; the first one is enough."""
    seen: set[str] = set()
    for node in list(model.graph.node):
        if node.op_type == "Cast" and node.output[0] in seen:
            model.graph.node.remove(node)
        seen.update(node.output)


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
