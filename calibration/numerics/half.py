"""True FP16 arithmetic on a CPU: a graph computes in FP32 and rounds every FP16 value to FP16.

ONNX Runtime's CPU runs most of an FP16 graph in FP32 and drops the casts in between. A value of
70,000, which is infinity in FP16, passes there. In the graphs made here every operator's result
goes through FP16 and back, as on hardware with FP16 operators and FP32 accumulation (tensor cores):
products and sums inside one operator are FP32, its output is FP16. A product with weights and the
bias added to it count as one operator, as in torch's float16 linear layers and in TensorRT. An
engine that rounds in between loses a little more. Inputs and outputs that are FP16 stay so.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import onnx
from onnx import TensorProto, helper, numpy_helper

from ris.engines.errors import RisError

# operators whose results are values that they read or hold: those are rounded already
_NOTHING_TO_ROUND = frozenset(
    {
        "Concat",
        "Constant",
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

_AT_THE_EDGE = _NOTHING_TO_ROUND | {"Cast"}


def emulate_half(source: Path, target: Path) -> int:
    """Writes the FP16 graph of `source` to `target` so that it rounds as FP16 hardware does.

    It does so on any FP32 engine. Weights stay FP16 in the file: `target` refers to the data file
    beside `source` by name, so put the two together. Returns the number of values that are rounded.
    Raises RisError for a graph with subgraphs; bundles have none.
    """
    model = onnx.load(source, load_external_data=False)
    graph = model.graph
    half = _half_values(model) - _products_before_a_bias(model)

    edge = _edge(graph)
    nodes = _widened_weights(graph)
    rounded = 0
    for node in graph.node:
        _refuse_subgraphs(node, source)
        nodes.append(node)
        if node.op_type in _AT_THE_EDGE and not edge.isdisjoint(node.output):
            continue
        _widen(node)
        if node.op_type not in _NOTHING_TO_ROUND:
            casts = _rounding(node, half)
            nodes += casts
            rounded += len(casts) // 2

    del graph.node[:]
    graph.node.extend(nodes)
    del graph.value_info[:]  # the values are FP32 now
    onnx.save_model(model, target)
    return rounded


def _edge(graph: onnx.GraphProto) -> set[str]:
    """The values that FP16 outputs are joined of, up to the last casts; they are FP16 here too."""
    kind = TensorProto.FLOAT16
    edge = {value.name for value in graph.output if value.type.tensor_type.elem_type == kind}
    for node in reversed(graph.node):
        if node.op_type in _NOTHING_TO_ROUND and not edge.isdisjoint(node.output):
            edge.update(node.input)
    return edge


def _widened_weights(graph: onnx.GraphProto) -> list[onnx.NodeProto]:
    """Renames the FP16 weights; returns the casts that give their names to FP32 values."""
    casts: list[onnx.NodeProto] = []
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.FLOAT16:
            full = tensor.name
            tensor.name = f"{full}/half"
            casts.append(_cast(tensor.name, full, TensorProto.FLOAT))
    return casts


def _refuse_subgraphs(node: onnx.NodeProto, source: Path) -> None:
    subgraphs = (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)
    if any(attribute.type in subgraphs for attribute in node.attribute):
        raise RisError(
            f"{source}: {node.name} has a subgraph, which the FP16 emulation does not follow"
        )


def _rounding(node: onnx.NodeProto, half: set[str]) -> list[onnx.NodeProto]:
    """Renames the node's FP16 outputs; returns the casts to FP16 and back, two per output."""
    casts: list[onnx.NodeProto] = []
    for i, name in enumerate(node.output):
        if name in half:
            node.output[i] = f"{name}/exact"
            casts.append(_cast(node.output[i], f"{name}/rounded", TensorProto.FLOAT16))
            casts.append(_cast(f"{name}/rounded", name, TensorProto.FLOAT))
    return casts


def _half_values(model: onnx.ModelProto) -> set[str]:
    """The names of all FP16 values that nodes write."""
    known = value_types(model)
    written = [name for node in model.graph.node for name in node.output if name]
    unknown = [name for name in written if not known.get(name)]
    if unknown:
        raise RisError(f"the types of {', '.join(unknown[:3])} are unknown; export the graph again")
    return {name for name in written if known[name] == TensorProto.FLOAT16}


def _products_before_a_bias(model: onnx.ModelProto) -> set[str]:
    """The values x @ W that only the sum with a bias reads; W and the bias are weights."""
    graph = model.graph
    weights = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    products = {
        node.output[0]
        for node in graph.node
        if node.op_type == "MatMul" and weights.get(node.input[1]) == 2
    }
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)

    def adds_bias(node: onnx.NodeProto) -> bool:
        return node.op_type == "Add" and any(weights.get(name) == 1 for name in node.input)

    added = {name for node in graph.node if adds_bias(node) for name in node.input}
    return {name for name in products & added if readers[name] == 1}


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    """ONNX's element type of every value that nodes write, by name, where inference knows it."""
    bare = onnx.ModelProto()
    bare.CopyFrom(model)
    del bare.graph.value_info[:]  # a converter's leftovers would contradict
    inferred = onnx.shape_inference.infer_shapes(bare).graph
    return {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.output)}


def _cast(source: str, target: str, kind: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], f"{target}/cast", to=kind)


def _widen(node: onnx.NodeProto) -> None:
    """FP16 constants within a node, and what it casts to FP16, become FP32."""
    if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT16:
        node.attribute[0].i = TensorProto.FLOAT
    for attribute in node.attribute:
        is_tensor = attribute.type == onnx.AttributeProto.TENSOR
        if is_tensor and attribute.t.data_type == TensorProto.FLOAT16:
            value = numpy_helper.to_array(attribute.t).astype("float32")
            attribute.t.CopyFrom(numpy_helper.from_array(value, attribute.t.name))
