"""Values that are FP16 between two graphs, and how large they are before they become so.

A graph may compute in FP32 and hand a value on in FP16, as LISA's keys and values of a picture.
What is larger than FP16's end is infinite there, in a bundle of any precision.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

# what joins parts of a value, or lays them out anew, and computes nothing
_JOINS = frozenset({"Concat", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})


@dataclass(frozen=True)
class EdgeRange:
    """How large a value gets that a graph hands on in FP16."""

    largest: float
    """The largest magnitude seen before it was rounded to FP16; inf and nan where it was so."""

    picture: str
    """The sample that had it."""


def edge_sources(model: onnx.ModelProto) -> dict[str, list[str]]:
    """For each FP16 output of a graph the values that become FP16 on their way to it.

    The output itself, where it is computed in FP16.
    """
    makers = {name: node for node in model.graph.node for name in node.output}
    return {
        value.name: _sources(value.name, makers)
        for value in model.graph.output
        if value.type.tensor_type.elem_type == TensorProto.FLOAT16
    }


def _sources(output: str, makers: Mapping[str, onnx.NodeProto]) -> list[str]:
    found, left = [], [output]
    while left:
        name = left.pop()
        node = makers.get(name)
        if node is not None and node.op_type == "Concat":
            left += node.input
        elif node is not None and node.op_type in _JOINS:
            left.append(node.input[0])
        elif node is not None and node.op_type == "Cast":
            found.append(node.input[0])
        else:
            found.append(name)
    return found


class Edges:
    """Notes the largest magnitude of a graph's FP16 outputs, and the sample that had it."""

    def __init__(self, sources: Mapping[str, Sequence[str]], names: Sequence[str]) -> None:
        """Nothing was seen yet.

        Args:
            sources: As of `edge_sources`.
            names: The values whose magnitudes `look` is given, in order.
        """
        places = {name: i for i, name in enumerate(names)}
        self._places = {
            output: [places[name] for name in found if name in places] or [places[output]]
            for output, found in sources.items()
        }
        self.found: dict[str, EdgeRange] = {}

    def look(self, seen: NDArray[np.float64], picture: str) -> None:
        """Takes the magnitudes of one run.

        Args:
            seen: Of each value the largest.
            picture: The sample's name.
        """
        for output, places in self._places.items():
            largest, before = float(seen[places].max()), self.found.get(output)
            odd = np.isnan(largest) and before is not None and not np.isnan(before.largest)
            if before is None or largest > before.largest or odd:
                self.found[output] = EdgeRange(largest, picture)
