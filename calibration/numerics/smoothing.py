"""Smoothing of outlier channels, so that activations fit into 8 bits better.

The graph computes the same function in FP32. SmoothQuant (Xiao et al., ICML 2023): what a product
reads is divided by s, channel by channel, and its weights are multiplied by s. The division costs
nothing where it folds into the operator that writes the activation:

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
from ris.calibration.numerics.weights import load_whole

_MOVES = ("Reshape", "Transpose", "Identity", "Slice", "Split", "Squeeze", "Unsqueeze")


@dataclass(frozen=True)
class Fold:
    """Products that read one smoothed activation, and where its division goes."""

    nodes: tuple[str, ...]
    """The products' nodes."""

    kind: str
    """One of "norm", "values", "relu" and "quick_gelu"."""

    weights: tuple[str, ...]
    """The products' weights, in the order of `nodes`."""

    before: str | None
    """The weight that makes the activation. None behind a norm."""

    columns: int
    """The first of the scaled columns in `before` and the scaled elements in `vectors`."""

    vectors: tuple[str, ...]
    """The bias that makes the activation, or the norm's scale and bias."""

    factor: str | None = None
    """The constant of QuickGELU. None for the other kinds."""


class _Graph:
    """Which nodes write and read a value, and the weights' shapes."""

    def __init__(self, model: onnx.ModelProto) -> None:
        graph = model.graph
        self.nodes = list(graph.node)
        self.shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
        self.writer = {name: node for node in graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in graph.output}
        # the length of a value's last axis, 0 where it has a name instead
        self.last = {
            v.name: v.type.tensor_type.shape.dim[-1].dim_value
            for v in (*graph.value_info, *graph.input)
            if v.type.tensor_type.shape.dim
        }

    def is_product(self, node: onnx.NodeProto) -> bool:
        """Whether it is a MatMul with 2-D weights that nothing else reads."""
        if node.op_type != "MatMul":
            return False
        weight = node.input[1]
        return len(self.readers[weight]) == 1 and len(self.shapes.get(weight, ())) == 2

    def products_behind(self, name: str, width: int) -> list[onnx.NodeProto] | None:
        """The products that read `name`, also through operators that keep its last axis.

        None where anything else reads it.
        """
        if name in self.outputs:
            return None
        found: list[onnx.NodeProto] = []
        for node in self.readers.get(name, []):
            if self._multiplies(node, name, width):
                found.append(node)
                continue
            if not self._keeps_last_axis(node, width):
                return None
            behind = self.products_behind(node.output[0], width)
            if behind is None:
                return None
            found += behind
        return found

    def _multiplies(self, node: onnx.NodeProto, name: str, width: int) -> bool:
        """Whether it is a product of `name` with weights of `width` rows."""
        if not self.is_product(node) or node.input[0] != name:
            return False
        return self.shapes[node.input[1]][0] == width

    def _keeps_last_axis(self, node: onnx.NodeProto, width: int) -> bool:
        """Whether the node moves values, each within its channel."""
        if node.op_type not in ("Reshape", "Transpose", "Pad", "Identity"):
            return False
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
    found: list[Fold | None] = []
    for node in graph.nodes:
        if node.op_type == "LayerNormalization":
            found.append(_norm(graph, node))
        elif graph.is_product(node):
            found += [_values(graph, node), _relu(graph, node), _quick_gelu(graph, node)]
    return [fold for fold in found if fold is not None]


def _norm(graph: _Graph, node: onnx.NodeProto) -> Fold | None:
    """The products behind a LayerNorm."""
    vectors = tuple(node.input[1:])
    if len(vectors) != 2 or any(len(graph.readers[vector]) > 1 for vector in vectors):
        return None
    shape = graph.shapes[vectors[0]]
    products = graph.products_behind(node.output[0], shape[-1])
    if not products or len(shape) != 1:
        return None
    nodes = tuple(product.name for product in products)
    weights = tuple(product.input[1] for product in products)
    return Fold(nodes, "norm", weights, before=None, columns=0, vectors=vectors)


def _values(graph: _Graph, product: onnx.NodeProto) -> Fold | None:
    """The projection behind attention: back to the sums that its value heads come from."""
    width = graph.shapes[product.input[1]][0]
    sources = {graph.sum_before(value) for value in _value_sources(graph, product.input[0])}
    if len(sources) != 1:
        return None
    [source] = sources
    if source is None:
        return None
    weight, _ = source
    packed = graph.shapes[weight][1]
    if packed == width:  # the values alone; else queries, keys and values, in this order
        [add] = graph.readers[graph.readers[weight][0].output[0]]
        if len(graph.readers[add.output[0]]) > 1:
            return None
    elif packed != 3 * width:
        return None
    return _one_product(product, "values", source, columns=packed - width)


def _value_sources(graph: _Graph, name: str) -> Iterator[str]:
    """The values that attention's products behind `name` have on their right-hand side.

    Each is named as it was before it was cut and moved; "" where `name` is something else.
    """
    node = graph.writer.get(name)
    if node is None or len(graph.readers[name]) > 1:
        yield ""
    elif node.op_type in ("Reshape", "Transpose", "Identity") or _cuts_windows(graph, node):
        yield from _value_sources(graph, node.input[0])
    elif node.op_type == "Concat":
        for part in node.input:
            yield from _value_sources(graph, part)
    elif node.op_type == "MatMul" and node.input[1] not in graph.shapes:
        value = node.input[1]
        while (writer := graph.writer.get(value)) is not None and writer.op_type in _MOVES:
            value = writer.input[0]
        yield value
    else:
        yield ""


def _cuts_windows(graph: _Graph, node: onnx.NodeProto) -> bool:
    """Whether it takes the padding off SAM's windows: a Slice that keeps the last axis."""
    if node.op_type != "Slice":
        return False
    return graph.last.get(node.output[0]) == graph.last.get(node.input[0]) is not None


def _relu(graph: _Graph, product: onnx.NodeProto) -> Fold | None:
    """A product behind ReLU of another."""
    node = graph.writer.get(product.input[0])
    if node is None or node.op_type != "Relu" or len(graph.readers[product.input[0]]) > 1:
        return None
    source = graph.sum_before(node.input[0])
    if source is None or len(graph.readers[node.input[0]]) > 1:
        return None
    return _one_product(product, "relu", source)


def _quick_gelu(graph: _Graph, product: onnx.NodeProto) -> Fold | None:
    """A product behind QuickGELU of another."""
    node = graph.writer.get(product.input[0])
    if node is None or node.op_type != "Mul" or len(graph.readers[product.input[0]]) > 1:
        return None
    for x, gate in (tuple(node.input), tuple(reversed(node.input))):
        source = graph.sum_before(x)
        sigmoid = graph.writer.get(gate)
        if source is None or sigmoid is None or sigmoid.op_type != "Sigmoid":
            continue
        inner = graph.writer.get(sigmoid.input[0])
        if inner is None or inner.op_type != "Mul" or x not in inner.input:
            continue
        [factor] = [name for name in inner.input if name != x] or [""]
        if graph.shapes.get(factor) in ((), (1,)) and len(graph.readers[x]) == 2:
            return _one_product(product, "quick_gelu", source, factor=factor)
    return None


def _one_product(
    product: onnx.NodeProto,
    kind: str,
    source: tuple[str, str],
    columns: int = 0,
    factor: str | None = None,
) -> Fold:
    """The fold of one product into the (weight, bias) of `source`."""
    weight, bias = source
    return Fold((product.name,), kind, (product.input[1],), weight, columns, (bias,), factor)


def smooth(
    source: Path, target: Path, channels: Mapping[str, NDArray[np.float32]], alpha: float
) -> list[Fold]:
    """Writes the FP32 graph of `source` to `target`, smoothed and with a data file of its own.

    Args:
        source: The FP32 graph.
        target: The graph to write.
        channels: The largest magnitude of each channel (last axis), float32 [K], by activation.
            Products that read other activations stay as they are.
        alpha: From 0 to 1, how much of the difficulty moves from activations to weights.

    Returns:
        What was folded.
    """
    model = load_whole(source)
    smoother = _Smoother(model, channels, alpha)
    done: list[Fold] = []
    for number, fold in enumerate(find_folds(source)):
        if smoother.apply(fold, number):
            done.append(fold)
    save_with_data(model, target)
    return done


class _Smoother:
    """Changes the weights of a model, fold by fold."""

    def __init__(
        self, model: onnx.ModelProto, channels: Mapping[str, NDArray[np.float32]], alpha: float
    ) -> None:
        self._graph, self._channels, self._alpha = model.graph, channels, alpha
        self._tensors = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes = {node.name: node for node in model.graph.node}

    def apply(self, fold: Fold, number: int) -> bool:
        """Smooths one activation; False where nobody measured it. `number` names new constants."""
        read = {self._nodes[node].input[0] for node in fold.nodes}
        measured = [self._channels[name] for name in read if name in self._channels]
        if not measured:
            return False

        weights = [self._read(name) for name in fold.weights]
        by_channel = [np.abs(weight).max(1) for weight in weights]
        s = factors(np.max(measured, 0), np.max(by_channel, 0), self._alpha)
        for name, weight in zip(fold.weights, weights, strict=True):
            self._change(name, weight * s[:, None])

        divided = fold.vectors if fold.before is None else (fold.before, *fold.vectors)
        for name in divided:
            values = self._read(name)
            values[..., fold.columns : fold.columns + len(s)] /= s
            self._change(name, values)
        if fold.factor is not None:
            self._scale_factor(fold, fold.factor, s, number)
        return True

    def _scale_factor(self, fold: Fold, factor: str, s: NDArray[np.float64], number: int) -> None:
        """Gives this QuickGELU constants of its own; other layers may read the one it had."""
        own = f"{factor}/smoothed_{number}"
        scaled = self._read(factor).reshape(-1) * s
        self._graph.initializer.append(numpy_helper.from_array(scaled.astype(np.float32), own))
        gate = self._gate(fold)
        for i, name in enumerate(gate.input):
            gate.input[i] = own if name == factor else name

    def _gate(self, fold: Fold) -> onnx.NodeProto:
        """The node that multiplies QuickGELU's x with its constant."""
        writer = {name: node for node in self._graph.node for name in node.output}
        last = writer[self._nodes[fold.nodes[0]].input[0]]
        [sigmoid] = [writer[name] for name in last.input if writer[name].op_type == "Sigmoid"]
        return writer[sigmoid.input[0]]

    def _read(self, name: str) -> NDArray[np.float64]:
        return numpy_helper.to_array(self._tensors[name]).astype(np.float64)

    def _change(self, name: str, values: NDArray[np.float64]) -> None:
        self._tensors[name].CopyFrom(numpy_helper.from_array(values.astype(np.float32), name))


def factors(
    activation: NDArray[np.floating], weight: NDArray[np.floating], alpha: float
) -> NDArray[np.float64]:
    """s [K] of SmoothQuant's equation 4, from the largest magnitudes of each channel [K].

    It is 1 for channels of zeros, before all are divided by their geometric mean.
    """
    a, w = activation.astype(np.float64), weight.astype(np.float64)
    there = (a > 0) & (w > 0)
    a, w = np.where(there, a, 1.0), np.where(there, w, 1.0)
    s = np.where(there, a**alpha / w ** (1 - alpha), 1.0)
    # a common factor changes no rounding; this one keeps FP32 values near where they were
    return s / np.exp(np.log(s).mean())
