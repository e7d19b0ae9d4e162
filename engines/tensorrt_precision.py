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
# layers that do the arithmetic that precision is about, by the names of their type and of the fused
# kernels
_MATRIX = re.compile(r"gemm|conv|correlation|matrix|(?<![a-z])fc|_fc", re.IGNORECASE)
_NODE = re.compile(r"\[ONNX Layer: ([^\]\x1e]+)\]")
_DATATYPE = re.compile(r"Datatype: ([^,}]+)")


@dataclass(frozen=True)
class Layer:
    """One layer of a plan. reads, writes: the types of its floating-point and quantised values
    ("fp16", "fp32", "bf16", "int8"; scale factors and weights do not count); nodes: the ONNX nodes
    it was made from, as far as is known.
    """

    name: str
    kind: str
    reads: frozenset[str]
    writes: frozenset[str]
    nodes: frozenset[str]

    @property
    def precision(self) -> str:
        """The type of all its values; "mixed" where it casts, "integer" where it has neither
        kind.
        """
        values = self.reads | self.writes
        return "mixed" if len(values) > 1 else next(iter(values), "integer")

    @property
    def is_matrix(self) -> bool:
        """Matrix products and convolutions, fused or not."""
        return bool(_MATRIX.search(self.kind) or _MATRIX.search(self.name))


@dataclass(frozen=True)
class PrecisionCount:
    """counts: number of layers by precision; unexpected: names of FP32 layers that should be
    FP16.
    """

    counts: dict[str, int]
    unexpected: tuple[str, ...]


def count_precisions(layers: Iterable[Layer], graph: Graph) -> PrecisionCount:
    """Counts, and looks for FP32 where an FP16 graph has no island.

    A layer is out of place where all its values are FP32, or where it is a matrix product of FP32
    values (its result may be cast within the layer), and none of the nodes it was made from is an
    island. Layers that name no node are TensorRT's own, such as reformats; of those only matrix
    products count.
    """
    counts: dict[str, int] = {}
    unexpected = []
    for layer in layers:
        counts[layer.precision] = counts.get(layer.precision, 0) + 1
        if graph.precision != "fp16" or layer.nodes & graph.fp32_islands:
            continue
        lone = layer.precision == "fp32" and bool(layer.nodes)
        wrong = layer.reads == {"fp32"} if layer.is_matrix else lone
        if wrong:
            unexpected.append(layer.name)
    return PrecisionCount(dict(sorted(counts.items())), tuple(unexpected))


def layers_from_log(message: str) -> list[Layer]:
    """The layers of the build log's list, a line each: "Name: ..., LayerType: ..., Inputs: [...],
    ...".
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
        layers.append(
            Layer(
                name,
                kind,
                _types(_DATATYPE.findall(inputs)),
                _types(_DATATYPE.findall(outputs)),
                _nodes(rest),
            )
        )
    return layers


def layers_from_json(text: str) -> list[Layer]:
    """The layers of the engine inspector's JSON; empty where it holds names only or cannot be read.

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
        reads, writes = (
            _types(
                str(v.get("Datatype", v.get("Format/Datatype", ""))) for v in entry.get(name, [])
            )
            for name in ("Inputs", "Outputs")
        )
        name, kind, metadata = (
            str(entry.get(key, "")) for key in ("Name", "LayerType", "Metadata")
        )
        layers.append(Layer(name, kind, reads, writes, _nodes(metadata)))
    return layers


def _types(texts: Iterable[str]) -> frozenset[str]:
    """Floating-point and quantised types as TensorRT words them, such as "Half" or "Row major
    linear FP16 format".
    """
    words = (word for text in texts for word in re.findall(r"\w+", text.lower()))
    return frozenset(_TYPES[word] for word in words if word in _TYPES)


def _nodes(metadata: str) -> frozenset[str]:
    return frozenset(name.strip() for name in _NODE.findall(metadata))
