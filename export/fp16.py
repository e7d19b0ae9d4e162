"""One graph in FP16: which nodes stay FP32, by rule, by range and by measured error, and the proof
that it holds.

The error is that of true FP16 arithmetic (`calibration.numerics.half`), not of ONNX Runtime's CPU,
which computes most of an FP16 graph in FP32.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ris.calibration.numerics.half import emulate_half
from ris.calibration.numerics.ranges import TensorRange, copy_data, graph_ranges
from ris.engines import EngineOptions, Graph, create
from ris.export import precision
from ris.runtime.bundle import StageParity
from ris.runtime.parity import TOLERANCES, check_stage, graph_feeds

Arrays = Mapping[str, NDArray[Any]]
ACCEPTED = TOLERANCES["fp16"].stage


def make_fp16(
    graph: Graph,
    scopes: Mapping[str, list[str]],
    reference: Arrays,
    known: Mapping[str, TensorRange] | None = None,
    report: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, str], dict[str, StageParity]]:
    """Rewrites the FP32 graph's file in FP16; returns its FP32 islands (node name -> reason) and
    its parity.

    reference: what the graph is measured on; known: ranges of its values over more samples; scopes:
    for every node the paths of the modules it came from, by which islands are searched where the
    error is too large.
    """
    islands = precision.islands(graph.path, dict(scopes))
    ranges = graph_ranges(graph, graph_feeds(graph, reference))
    for name, entry in (known or {}).items():
        if name in ranges and not entry.largest <= ranges[name].largest:
            ranges[name] = entry
    islands = precision.out_of_range(graph.path, ranges) | islands
    with tempfile.TemporaryDirectory(
        prefix=f"{graph.path.name}.fp16-", dir=graph.path.parent
    ) as folder:
        half = dataclasses.replace(graph, path=Path(folder) / graph.path.name)

        def attempt(islands: Mapping[str, str]) -> dict[str, StageParity]:
            precision.convert_to_fp16(graph.path, half.path, islands)
            return check_half(half, reference)

        rows = attempt(islands)
        if _error(rows) > ACCEPTED:
            report("searching FP32 islands")
            islands, rows = _search(attempt, islands, _error(rows), scopes)
        for file in Path(folder).iterdir():
            file.replace(graph.path.with_name(file.name))
    return islands, rows


def _error(rows: Mapping[str, StageParity]) -> float:
    """The largest relative error of a graph's outputs; infinite where one is not finite."""
    return max(row.relative for row in rows.values())


def check_half(graph: Graph, reference: Arrays) -> dict[str, StageParity]:
    """`check_stage` of an FP16 graph in true FP16 arithmetic."""
    with tempfile.TemporaryDirectory(prefix="rounded-", dir=graph.path.parent) as folder:
        rounded = dataclasses.replace(graph, path=Path(folder) / graph.path.name)
        copy_data(graph.path, Path(folder))
        emulate_half(graph.path, rounded.path)
        engine = create("onnxruntime", EngineOptions("cpu"))
        with engine.open(rounded, rounded.path) as session:
            return check_stage(graph.stage, session, reference)


def _search(
    attempt: Callable[[Mapping[str, str]], dict[str, StageParity]],
    islands: dict[str, str],
    error: float,
    scopes: Mapping[str, list[str]],
) -> tuple[dict[str, str], dict[str, StageParity]]:
    """Adds modules to the islands, those whose FP32 helps most first, until the error is accepted.

    Modules are those of the first two levels. Where even all of them do not help, the caller's own
    check says so.
    """
    groups: dict[str, set[str]] = {}
    for node, paths in scopes.items():
        module = paths[-2] if len(paths) > 1 else ""  # the last one is the node itself
        groups.setdefault(".".join(module.split(".")[:2]), set()).add(node)
    alone = {
        name: _error(attempt(islands | dict.fromkeys(nodes, ""))) for name, nodes in groups.items()
    }
    chosen = dict(islands)
    rows: dict[str, StageParity] = {}
    for name in sorted(groups, key=lambda group: alone[group]):
        reason = (
            f"{name or 'the graph itself'}: without it the error in FP16 is {error:.1e}, accepted"
            f" {ACCEPTED:.0e}"
        )
        chosen |= dict.fromkeys(groups[name] - chosen.keys(), reason)
        rows = attempt(chosen)
        error = _error(rows)
        if error <= ACCEPTED:
            break
    return chosen, rows
