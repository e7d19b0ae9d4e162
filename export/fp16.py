"""One graph in FP16: which nodes stay FP32 by rule, by range and by measured error.

The error is measured in true FP16 arithmetic (`calibration.numerics.half`), not in that of ONNX
Runtime on a CPU, which computes most of an FP16 graph in FP32.
"""

from __future__ import annotations

import dataclasses
import math
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from ris.calibration.numerics.half import emulate_half
from ris.calibration.numerics.ranges import TensorRange, copy_data, graph_ranges
from ris.engines import EngineOptions, Graph, create
from ris.export import precision
from ris.export.families.design import IslandRules
from ris.runtime.manifest import StageParity
from ris.runtime.parity import Arrays, check_stage, graph_feeds
from ris.runtime.tolerance import TOLERANCES

ACCEPTED = TOLERANCES["fp16"].stage
"""The relative error of an FP16 graph's outputs that is accepted."""

Parity = dict[str, StageParity]
"""The errors of a graph's outputs, by "stage.output"."""

Special = tuple[str | None, Mapping[str, float]]
"""The row of the no-target logits, whose error has no bound; those behind a threshold, and the
error that is accepted there."""


class _Attempt(NamedTuple):
    """What some islands gave."""

    rows: Parity
    """The errors in true FP16 arithmetic."""

    error: float
    """The largest relative one that is judged, as `_error` counts."""


def make_fp16(
    graph: Graph,
    scopes: Mapping[str, list[str]],
    rules: IslandRules,
    reference: Arrays,
    known: Mapping[str, TensorRange] | None = None,
    special: Special = (None, {}),
    report: Callable[[str], None] = lambda what: None,
) -> tuple[dict[str, str], Parity]:
    """Rewrites the FP32 graph's file in FP16, with FP32 islands.

    Islands are added module by module where the error is too large without them.

    Args:
        graph: The FP32 graph.
        scopes: For every node the paths of the modules it came from, outermost first.
        rules: What the family keeps in FP32.
        reference: The arrays that the graph is measured on.
        known: Ranges of the graph's values over more samples. None: there are none.
        special: The rows of which more is accepted.
        report: Called with the name of a step that takes long.

    Returns:
        The islands (node name -> reason), and the parity in true FP16 arithmetic.
    """
    islands = precision.islands(graph.path, scopes, rules)
    ranges = _widest(graph_ranges(graph, graph_feeds(graph, reference)), known or {})
    islands = precision.out_of_range(graph.path, ranges) | islands

    beside = graph.path.parent
    with tempfile.TemporaryDirectory(prefix=f"{graph.path.name}.fp16-", dir=beside) as folder:
        half = dataclasses.replace(graph, path=Path(folder) / graph.path.name)

        def attempt(islands: Mapping[str, str]) -> _Attempt:
            precision.convert_to_fp16(graph.path, half.path, islands)
            rows = check_half(half, reference)
            return _Attempt(rows, _error(rows, special))

        tried = attempt(islands)
        if tried.error > ACCEPTED:
            report("searching FP32 islands")
            islands, tried = _search(attempt, islands, tried, scopes)
        for file in Path(folder).iterdir():
            file.replace(graph.path.with_name(file.name))
    return islands, tried.rows


def _widest(
    measured: Mapping[str, TensorRange], known: Mapping[str, TensorRange]
) -> dict[str, TensorRange]:
    """The measured ranges, each replaced where a known one reaches further."""
    ranges = dict(measured)
    for name, entry in known.items():
        # negated, so that a NaN counts as larger
        if name in ranges and not entry.largest <= ranges[name].largest:
            ranges[name] = entry
    return ranges


def _error(rows: Parity, special: Special) -> float:
    """The largest relative error of a graph's outputs; infinite where one is not finite.

    The size of the no-target logits' error does not count (`Tolerance.no_target_logits`), and that
    of what lies behind a threshold for as much as is accepted of others.
    """
    no_target, behind = special
    judged = (
        row.relative * ACCEPTED / max(ACCEPTED, behind.get(name, 0.0))
        for name, row in rows.items()
        if name != no_target or not math.isfinite(row.relative)
    )
    return max(judged, default=0.0)


def check_half(graph: Graph, reference: Arrays) -> Parity:
    """`check_stage` of an FP16 graph in true FP16 arithmetic."""
    with tempfile.TemporaryDirectory(prefix="rounded-", dir=graph.path.parent) as folder:
        rounded = dataclasses.replace(graph, path=Path(folder) / graph.path.name)
        copy_data(graph.path, Path(folder))
        emulate_half(graph.path, rounded.path)
        engine = create("onnxruntime", EngineOptions("cpu"))
        with engine.open(rounded, rounded.path) as session:
            return check_stage(graph.stage, session, reference)


def _search(
    attempt: Callable[[Mapping[str, str]], _Attempt],
    islands: Mapping[str, str],
    tried: _Attempt,
    scopes: Mapping[str, list[str]],
) -> tuple[dict[str, str], _Attempt]:
    """Adds modules to the islands until the error is accepted, those that help most first.

    Where even all modules do not help, the caller's own check of the graph fails.

    Args:
        attempt: Converts the graph with these islands, and measures it.
        islands: What stays FP32 so far.
        tried: What these islands gave.
        scopes: For every node the paths of the modules it came from, outermost first.
    """
    groups = _modules(scopes)
    alone = {
        name: attempt({**islands, **dict.fromkeys(nodes, "")}).error
        for name, nodes in groups.items()
    }

    chosen = dict(islands)
    for name in sorted(groups, key=lambda group: alone[group]):
        reason = (
            f"{name or 'the graph itself'}: without it the error in FP16 is {tried.error:.1e}, "
            f"accepted {ACCEPTED:.0e}"
        )
        chosen |= dict.fromkeys(groups[name] - chosen.keys(), reason)
        tried = attempt(chosen)
        if tried.error <= ACCEPTED:
            break
    return chosen, tried


def _modules(scopes: Mapping[str, list[str]]) -> dict[str, set[str]]:
    """The nodes of each module of the first two levels, by the module's path."""
    groups: dict[str, set[str]] = {}
    for node, paths in scopes.items():
        module = paths[-2] if len(paths) > 1 else ""  # the last path is the node itself
        groups.setdefault(".".join(module.split(".")[:2]), set()).add(node)
    return groups
