"""Weights that a compiled graph leaves where they are: OpenVINO reads them from the graph's file.

What it compiles repeats the weights, unless it is told that a file has them (`CACHE_MODE` and
`WEIGHTS_PATH`). It then keeps what it made of weights itself, such as levels in several groups, and
for the others their places in that file.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import openvino

from ris.engines.base import Graph
from ris.engines.errors import EngineError, PlanError
from ris.engines.recipe import file_hash, graph_hashes

SMALL = {"CACHE_MODE": "OPTIMIZE_SIZE"}
"""The properties that it compiles with so."""

_FROM = (2026, 4)
"""The first version that was seen to do it for ONNX files, on a CPU."""


def leaves_weights(device: str) -> bool:
    """Whether OpenVINO's version here can leave weights in their file on this device."""
    numbers = re.match(r"(\d+)\.(\d+)", openvino.get_version())  # own builds may have other words
    return device == "CPU" and numbers is not None and (int(numbers[1]), int(numbers[2])) >= _FROM


def weights_file(graph: Graph) -> Path | None:
    """The data file beside a graph; None where it has none, or several."""
    data = [name for name in graph_hashes(graph) if name != graph.path.name]
    return graph.path.parent / data[0] if len(data) == 1 else None


def reading(graph: Graph, artifact: Path, recipe: dict[str, Any]) -> dict[str, str]:
    """The properties with which OpenVINO opens a compiled graph and reads weights of its file.

    Args:
        graph: The graph.
        artifact: What was compiled of it, for messages.
        recipe: The artifact's.

    Raises:
        EngineError: Where the file is not the one that was exported.
        PlanError: Where the artifact was compiled with another.
    """
    file = weights_file(graph)
    if file is None:
        raise PlanError(f"{artifact} needs a file of weights beside the graph; compile it again")
    try:
        found = file_hash(file)
    except OSError as error:
        raise EngineError(
            f"{graph.stage}: {file} cannot be read ({error.strerror}); export it again"
        ) from None
    if found != graph_hashes(graph)[file.name]:
        raise EngineError(
            f"{graph.stage}: {file} is not the file that was exported (sha256 differs); export it"
            " again"
        )
    if found != recipe["onnx"].get(file.name):
        raise PlanError(
            f"{artifact} was compiled with other weights than {file} has; compile it again"
        )
    return {**SMALL, "WEIGHTS_PATH": str(file.resolve())}
