"""What precision the layers of a built plan have, and whether that is what was asked for.

TensorRT tells it in two ways: the engine inspector's JSON, which needs a GPU, and the list of
layers in the build log, which does not. Layers are fused ONNX nodes; the nodes' names come along as
metadata.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ris.engines.base import Graph

_TYPES = {
    "half": "fp16",
    "fp16": "fp16",
    "float": "fp32",
    "fp32": "fp32",
    "bf16": "bf16",
    "bfloat16": "bf16",
    "int8": "int8",
}
# matrix products and convolutions, by the types of layers
_MATRIX = re.compile(r"gemm|conv|correlation|matrix|matmul|fully_?connected", re.IGNORECASE)
# types of kernels that TensorRT fuses of any operators; their names list them: __myl_FcAddMul_...
_FUSED = re.compile(r"kgen|fusi|myelin|foreign", re.IGNORECASE)
_IN_FUSED = re.compile(r"__myl_\w*?(Fc|Gemm|Conv|Corr)(?![a-z])")
# TensorRT's fused attention is of type or name "mha", "fmha" or "attention"
_ATTENTION = re.compile(r"(?<![a-z])_?f?mha(?![a-z])|attention", re.IGNORECASE)
_SOFTMAX = re.compile(r"softmax", re.IGNORECASE)
_PRODUCT = re.compile(r"matmul|einsum|gemm", re.IGNORECASE)
_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e]+)\]")
_DATATYPE = re.compile(r"Datatype: ([^,}]+)")


@dataclass(frozen=True)
class Layer:
    """One layer of a plan.

    Types of values are "fp16", "fp32", "bf16" and "int8"; scale factors and weights do not count.
    """

    name: str
    """TensorRT's name of the layer."""

    kind: str
    """TensorRT's type of the layer."""

    reads: frozenset[str]
    """The types of the floating-point and quantised values that go in."""

    writes: frozenset[str]
    """The types of the floating-point and quantised values that come out."""

    nodes: frozenset[str]
    """The ONNX nodes that it was made from, as far as is known."""

    @property
    def precision(self) -> str:
        """The type of all its values; "mixed" for several types, "integer" for none."""
        values = self.reads | self.writes
        return "mixed" if len(values) > 1 else next(iter(values), "integer")

    @property
    def is_matrix(self) -> bool:
        """Whether it computes a matrix product or a convolution, fused or not.

        Its type tells, and of a fused kernel the list of operators in its name. Other names do not:
        TensorRT calls a reformat by the layer it is for ("Reformatting CopyNode for ... conv2d").
        """
        return bool(
            _MATRIX.search(self.kind) or (_FUSED.search(self.kind) and _IN_FUSED.search(self.name))
        )


@dataclass(frozen=True)
class PrecisionCount:
    """The precision of a plan's layers."""

    counts: dict[str, int]
    """The number of layers by precision."""

    unexpected: tuple[str, ...]
    """The names of FP32 layers that should be FP16."""

    ignored: bool
    """Whether most matrix products and convolutions that should be FP16 are not.

    So it is where a compiler ignores what precision it is asked for.
    """


def count_precisions(layers: Iterable[Layer], graph: Graph) -> PrecisionCount:
    """Counts the layers, and finds those in FP32 where an FP16 graph has no island.

    A layer is unexpected where none of the nodes it was made from is an island, and either all its
    values are FP32, or it is a matrix product of FP32 values (its result may be cast within the
    layer). Layers that name no node are TensorRT's own, such as reformats; of those only matrix
    products count.
    """
    counts: dict[str, int] = {}
    unexpected, products, wide = [], 0, 0
    for layer in layers:
        counts[layer.precision] = counts.get(layer.precision, 0) + 1
        if graph.precision != "fp16" or layer.nodes & graph.fp32_islands:
            continue
        if layer.is_matrix:
            wrong = layer.reads == {"fp32"}
            products, wide = products + 1, wide + wrong
        else:
            wrong = layer.precision == "fp32" and bool(layer.nodes)
        if wrong:
            unexpected.append(layer.name)
    ignored = 2 * wide > products
    return PrecisionCount(dict(sorted(counts.items())), tuple(unexpected), ignored)


def fused_attention(layers: Iterable[Layer]) -> int:
    """The number of layers that compute a whole attention: product, softmax, product."""
    return sum(_is_attention(layer) for layer in layers)


def _is_attention(layer: Layer) -> bool:
    if _ATTENTION.search(layer.kind) or _ATTENTION.search(layer.name):
        return True
    # a kernel of one softmax and the products on both sides of it
    softmax = [node for node in layer.nodes if _SOFTMAX.search(node)]
    products = [node for node in layer.nodes if _PRODUCT.search(node)]
    return bool(softmax) and len(products) >= 2


def layers_from_log(message: str) -> list[Layer]:
    """The layers of the list in the build log.

    It has a line for each: "Name: ..., LayerType: ..., Inputs: [...], ...".
    """
    layers = []
    for line in message.splitlines():
        if not line.startswith("Name: ") or ", LayerType: " not in line:
            continue
        name, _, rest = line.removeprefix("Name: ").partition(", LayerType: ")
        kind, _, rest = rest.partition(", Inputs: ")
        inputs, _, rest = rest.partition(", Constants: ")
        _, _, rest = rest.partition(", Outputs: ")
        outputs, _, rest = rest.partition(", TacticName: ")
        reads, writes = _types(_DATATYPE.findall(inputs)), _types(_DATATYPE.findall(outputs))
        layers.append(Layer(name, kind, reads, writes, _nodes(rest)))
    return layers


def layers_from_json(text: str) -> list[Layer]:
    """The layers of the engine inspector's JSON; empty where it holds names only or is no JSON.

    TensorRT 10 calls a value's type "Format/Datatype", 11 "Datatype".
    """
    try:
        entries = json.loads(text)["Layers"]
    except (ValueError, KeyError, TypeError):
        return []

    layers = []
    for entry in entries:
        if not isinstance(entry, dict):
            return []
        name, kind = str(entry.get("Name", "")), str(entry.get("LayerType", ""))
        reads, writes = _types_of(entry.get("Inputs", [])), _types_of(entry.get("Outputs", []))
        nodes = _nodes(str(entry.get("Metadata", "")))
        layers.append(Layer(name, kind, reads, writes, nodes))
    return layers


def _types_of(values: Iterable[dict[str, Any]]) -> frozenset[str]:
    """The types of a layer's values in the engine inspector's JSON."""
    return _types(str(value.get("Datatype", value.get("Format/Datatype", ""))) for value in values)


def _types(texts: Iterable[str]) -> frozenset[str]:
    """Our names of the types in TensorRT's words: "Half", "Row major linear FP16 format"."""
    words = (word for text in texts for word in re.findall(r"\w+", text.lower()))
    return frozenset(_TYPES[word] for word in words if word in _TYPES)


def _nodes(metadata: str) -> frozenset[str]:
    """The ONNX nodes that a layer's metadata names."""
    return frozenset(name.strip() for name in _NODE.findall(metadata))
