"""Smoothing of outlier channels: the same function in FP32, with activations that fit into 8 bits
better.

SmoothQuant (Xiao et al., ICML 2023): what a product reads is divided by s, channel by channel, and
its weights are multiplied by s. The division costs nothing where it folds into what writes the
activation:

- a LayerNorm: into its scale and bias;
- attention's values, whose sums the output projection reads: into the columns and the bias that
  make the values;
- ReLU(x): into the columns and the bias before it, since s > 0;
- QuickGELU, x * sigmoid(1.702 x): likewise, with 1.702 s in place of 1.702.

GELU's erf form has no such place: the products behind it stay as they are.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from ris.calibration.numerics.qdq import save_with_data

_MOVES = ("Reshape", "Transpose", "Identity", "Slice", "Split", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Fold:
    """Products that read one smoothed activation, and where its division goes.

    nodes: the products; kind: "norm", "values", "relu" or "quick_gelu"; columns: the first of the
    scaled columns in `before`, the weight that makes the activation; vectors: the bias, or the
    norm's scale and bias; factor: the constant of QuickGELU.
    """

    nodes: tuple[str, ...]
    kind: str
    weights: tuple[str, ...]
    before: str | None
    columns: int
    vectors: tuple[str, ...]
    factor: str | None = None


class _Graph:
    """Who writes and who reads what; the weights' shapes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.tensors = {tensor.name: tensor for tensor in graph.initializer}
        self.shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self.writer = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}
        self.last = {
            v.name: v.type.tensor_type.shape.dim[-1].dim_value
            for v in (*graph.value_info, *graph.input)
            if v.type.tensor_type.shape.dim
        }

    def is_product(self, node: onnx.NodeProto) -> bool:
        """With 2-D weights that nothing else reads."""
        return node.op_type == "MatMul" and self.weight_of(node) is not None

    def weight_of(self, node: onnx.NodeProto) -> str | None:
        name = node.input[1]
        alone = len(self.readers[name]) == 1
        return name if alone and len(self.shapes.get(name, ())) == 2 else None

    def products_behind(self, name: str, width: int) -> list[onnx.NodeProto] | None:
        """The products that read `name`, also through operators that keep its last axis; None where
        others do too.
        """
        found: list[onnx.NodeProto] = []
        if name in self.outputs:
            return None
        for node in self.readers.get(name, []):
            if (
                self.is_product(node)
                and self.shapes[node.input[1]][0] == width
                and node.input[0] == name
            ):
                found.append(node)
            elif node.op_type in (
                "Reshape",
                "Transpose",
                "Pad",
                "Identity",
            ) and self._keeps_last_axis(node, width):
                behind = self.products_behind(node.output[0], width)
                if behind is None:
                    return None
                found += behind
            else:
                return None
        return found

    def _keeps_last_axis(self, node: onnx.NodeProto, width: int) -> bool:
        if node.op_type == "Transpose":
            [order] = [list(a.ints) for a in node.attribute if a.name == "perm"] or [[0]]
            return order[-1] == len(order) - 1
        if node.op_type == "Pad" and len(node.input) > 2 and node.input[2]:
            return False  # padding with something other than 0
        return self.last.get(node.output[0]) == width

    def sum_before(self, name: str) -> tuple[str, str] | None:
        """(weight, bias) where `name` is x @ weight + bias and nothing else reads the product."""
        add = self.writer.get(name)
        if add is None or add.op_type != "Add":
            return None
        for value, bias in (tuple(add.input), tuple(reversed(add.input))):
            product = self.writer.get(value)
            if product is None or not self.is_product(product) or len(self.readers[value]) > 1:
                continue
            weight = product.input[1]
            if self.shapes.get(bias) == self.shapes[weight][1:] and len(self.readers[bias]) == 1:
                return weight, bias
        return None


def find_folds(path: Path) -> list[Fold]:
    """Every place in the graph at `path` where smoothing costs nothing, in the graph's order."""
    graph = _Graph(onnx.load(path, load_external_data=False))
    found: list[Fold] = []
    for node in graph.nodes:
        if node.op_type == "LayerNormalization":
            vectors = tuple(node.input[1:])
            if len(vectors) == 2 and all(len(graph.readers[v]) == 1 for v in vectors):
                width = graph.shapes[vectors[0]][-1]
                products = graph.products_behind(node.output[0], width)
                if products and len(graph.shapes[vectors[0]]) == 1:
                    found.append(_fold(products, "norm", None, 0, vectors))
        elif graph.is_product(node):
            for fold in (_values(graph, node), _elementwise(graph, node)):
                if fold is not None:
                    found.append(fold)
    return found


def _fold(
    products: list[onnx.NodeProto],
    kind: str,
    before: str | None,
    columns: int,
    vectors: tuple[str, ...],
    factor: str | None = None,
) -> Fold:
    nodes, weights = tuple(p.name for p in products), tuple(p.input[1] for p in products)
    return Fold(nodes, kind, weights, before, columns, vectors, factor)


def _values(graph: _Graph, product: onnx.NodeProto) -> Fold | None:
    """The projection behind attention: back to the sums that its value heads come from."""
    width = graph.shapes[product.input[1]][0]
    sources = {graph.sum_before(value) for value in _value_sources(graph, product.input[0])}
    if len(sources) != 1:
        return None
    [source] = sources
    if source is None:
        return None
    weight, bias = source
    packed = graph.shapes[weight][1]
    if packed == width:  # the values alone; otherwise queries, keys and values, one after the other
        [add] = graph.readers[graph.readers[weight][0].output[0]]
        if len(graph.readers[add.output[0]]) > 1:
            return None
    elif packed != 3 * width:
        return None
    return _fold([product], "values", weight, packed - width, (bias,))


def _value_sources(graph: _Graph, name: str) -> Iterator[str]:
    """What the right-hand sides of the attention products behind `name` were before they were cut
    and moved.
    """
    node = graph.writer.get(name)
    if node is None or len(graph.readers[name]) > 1:
        yield ""
    elif node.op_type in ("Reshape", "Transpose", "Identity"):
        yield from _value_sources(graph, node.input[0])
    elif (
        node.op_type == "Slice"
        and graph.last.get(node.output[0]) == graph.last.get(node.input[0]) is not None
    ):
        yield from _value_sources(graph, node.input[0])  # SAM's windows without their padding
    elif node.op_type == "Concat":
        for part in node.input:
            yield from _value_sources(graph, part)
    elif node.op_type == "MatMul" and node.input[1] not in graph.tensors:
        value = node.input[1]
        while (writer := graph.writer.get(value)) is not None and writer.op_type in _MOVES:
            value = writer.input[0]
        yield value
    else:
        yield ""


def _elementwise(graph: _Graph, product: onnx.NodeProto) -> Fold | None:
    """A product behind ReLU or QuickGELU of another."""
    name = product.input[0]
    node = graph.writer.get(name)
    if node is None or len(graph.readers[name]) > 1:
        return None
    if node.op_type == "Relu":
        source = graph.sum_before(node.input[0])
        if source is None or len(graph.readers[node.input[0]]) > 1:
            return None
        return _fold([product], "relu", source[0], 0, source[1:])
    if node.op_type != "Mul":
        return None
    for x, gate in (tuple(node.input), tuple(reversed(node.input))):
        sigmoid = graph.writer.get(gate)
        inner = (
            graph.writer.get(sigmoid.input[0])
            if sigmoid is not None and sigmoid.op_type == "Sigmoid"
            else None
        )
        source = graph.sum_before(x)
        if inner is None or inner.op_type != "Mul" or source is None or x not in inner.input:
            continue
        [factor] = [name for name in inner.input if name != x] or [""]
        if graph.shapes.get(factor) in ((), (1,)) and len(graph.readers[x]) == 2:
            return _fold([product], "quick_gelu", source[0], 0, source[1:], factor)
    return None


def smooth(
    source: Path, target: Path, channels: Mapping[str, NDArray[np.float32]], alpha: float
) -> list[Fold]:
    """Writes the FP32 graph of `source` to `target`, data file and all, smoothed; returns what was
    folded.

    channels: by activation, float32 [K], the largest magnitude of each channel of what a product
    reads (the last axis). alpha: from 0 to 1, how much of the difficulty moves from activations to
    weights.
    """
    folds = find_folds(source)
    model = onnx.load(source)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}
    done = []

    def change(name: str, values: NDArray[np.float64]) -> None:
        tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))

    def read(name: str) -> NDArray[np.float64]:
        return numpy_helper.to_array(tensors[name]).astype(np.float64)

    for number, fold in enumerate(folds):
        measured = [
            channels[nodes[n].input[0]] for n in fold.nodes if nodes[n].input[0] in channels
        ]
        if not measured:
            continue
        weights = [read(name) for name in fold.weights]
        s = factors(np.max(measured, 0), np.max([np.abs(w).max(1) for w in weights], 0), alpha)
        for name, weight in zip(fold.weights, weights, strict=True):
            change(name, weight * s[:, None])
        if fold.before is not None:
            weight = read(fold.before)
            weight[:, fold.columns : fold.columns + len(s)] /= s
            change(fold.before, weight)
        for name in fold.vectors:
            vector = read(name)
            vector[fold.columns : fold.columns + len(s)] /= s
            change(name, vector)
        if fold.factor is not None:
            own = f"{fold.factor}/smoothed_{number}"
            model.graph.initializer.append(
                numpy_helper.from_array((read(fold.factor).reshape(-1) * s).astype(np.float32), own)
            )
            gate = nodes[_gate(model, fold)]
            for i, name in enumerate(gate.input):
                gate.input[i] = own if name == fold.factor else name
        done.append(fold)
    save_with_data(model, target)
    return done


def _gate(model: onnx.ModelProto, fold: Fold) -> str:
    """The node that multiplies QuickGELU's x with its constant."""
    writer = {name: node for node in model.graph.node for name in node.output}
    [product] = [node for node in model.graph.node if node.name == fold.nodes[0]]
    last = writer[product.input[0]]
    [sigmoid] = [writer[name] for name in last.input if writer[name].op_type == "Sigmoid"]
    return writer[sigmoid.input[0]].name


def factors(
    activation: NDArray[np.floating], weight: NDArray[np.floating], alpha: float
) -> NDArray[np.float64]:
    """s [K] of SmoothQuant's equation 4, from the largest magnitudes of each channel [K]; 1 for
    channels of zeros.
    """
    a, w = activation.astype(np.float64), weight.astype(np.float64)
    there = (a > 0) & (w > 0)
    s = np.where(
        there, np.where(there, a, 1.0) ** alpha / np.where(there, w, 1.0) ** (1 - alpha), 1.0
    )
    return s / np.exp(
        np.log(s).mean()
    )  # a common factor changes no rounding; FP32 stays near where it was
