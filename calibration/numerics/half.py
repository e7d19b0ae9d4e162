"""True FP16 arithmetic on a CPU: a graph that computes in FP32 and rounds every FP16 value to FP16
where it arises.

ONNX Runtime's CPU runs most of an FP16 graph in FP32 and drops the casts in between, so that a
value of 70,000, which is infinity in FP16, passes. In the graphs made here every operator's result
goes through FP16 and back, as it does on hardware with FP16 operators and FP32 accumulation (tensor
cores): products and sums inside one operator are FP32, what it writes is FP16. A product with
weights and the bias added to it count as one operator, as torch's float16 linear layers and
TensorRT have it; an engine that rounds in between loses a little more.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from ris.engines.errors import RisError

# these write values that they read, so that nothing is left to round
_MOVES = frozenset(
    {
        "Concat",
        "DepthToSpace",
        "Expand",
        "Flatten",
        "Gather",
        "GatherElements",
        "GatherND",
        "Identity",
        "Max",
        "MaxPool",
        "Min",
        "Pad",
        "Relu",
        "Reshape",
        "ScatterElements",
        "ScatterND",
        "Slice",
        "SpaceToDepth",
        "Split",
        "Squeeze",
        "Tile",
        "Transpose",
        "Unsqueeze",
        "Where",
    }
)


def emulate_half(source: Path, target: Path) -> int:
    """Writes the FP16 graph of `source` to `target` in a form that rounds as FP16 hardware does on
    any FP32 engine.

    Weights stay FP16 in the file: `target` refers to the data file beside `source` by name, so put
    the two together. Returns the number of values that are rounded. Raises RisError for a graph
    with subgraphs; bundles have none.
    """
    model = onnx.load(source, load_external_data=False)
    half = _half_values(model) - _products_before_a_bias(model)
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            full = tensor.name
            tensor.name = f"{full}/half"
            nodes.append(_cast(tensor.name, full, TensorProto.FLOAT))
    rounded = 0
    for node in graph.node:
        if any(
            a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
            for a in node.attribute
        ):
            raise RisError(
                f"{source}: {node.name} has a subgraph, which the FP16 emulation does not follow"
            )
        _widen_constants(node)
        nodes.append(node)
        to_half = node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16
        if to_half:
            node.attribute[0].i = TensorProto.FLOAT
        elif node.op_type in _MOVES or node.op_type == "Constant":
            continue
        for i, name in enumerate(node.output):
            if name in half:
                node.output[i] = f"{name}/exact"
                nodes.append(_cast(node.output[i], f"{name}/rounded", TensorProto.FLOAT16))
                nodes.append(_cast(f"{name}/rounded", name, TensorProto.FLOAT))
                rounded += 1
    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]
    onnx.save_model(model, target)
    return rounded


def _half_values(model: onnx.ModelProto) -> set[str]:
    """The names of all FP16 values that nodes write."""
    known = value_types(model)
    written = [name for node in model.graph.node for name in node.output if name]
    unknown = [name for name in written if not known.get(name)]
    if unknown:
        raise RisError(f"the types of {', '.join(unknown[:3])} are unknown; export the graph again")
    return {name for name in written if known[name] == TensorProto.FLOAT16}


def _products_before_a_bias(model: onnx.ModelProto) -> set[str]:
    """The values x @ W that nothing reads but the sum with a bias; W and the bias are weights."""
    weights = {tensor.name: len(tensor.dims) for tensor in model.graph.initializer}
    products = {
        node.output[0]
        for node in model.graph.node
        if node.op_type == "MatMul" and weights.get(node.input[1]) == 2
    }
    readers = Counter(name for node in model.graph.node for name in node.input)
    readers.update(value.name for value in model.graph.output)
    return {
        name
        for node in model.graph.node
        if node.op_type == "Add" and any(weights.get(other) == 1 for other in node.input)
        for name in node.input
        if name in products and readers[name] == 1
    }


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX's element type of every value that nodes write, as far as inference gets, by name."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # a converter's leftovers would contradict
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}/cast", to=kind)


def _widen_constants(node: onnx.NodeProto) -> None:
    """FP16 constants within a node become FP32."""
    for attribute in node.attribute:
        if (
            attribute.type == onnx.AttributeProto.TENSOR
            and attribute.t.data_type == TensorProto.FLOAT16
        ):
            value = numpy_helper.to_array(attribute.t).astype("float32")
            attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))
