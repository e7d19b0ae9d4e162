"""Compiling a bundle's graphs for an engine ahead of the first run; the result is in the bundle."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ris.engines import Engine, EngineSpec, Progress, silent
from ris.engines.base import require_gathers
from ris.engines.devices import kind_of
from ris.engines.errors import EngineError
from ris.runtime.bundle import EMULATES, Bundle
from ris.runtime.computing import Settled, settle
from ris.runtime.cost import expressions_at_once, question_operations

EMULATION_ENGINE = "onnxruntime"
"""The engine that keeps the roundings of an emulated bundle.

Others remove a cast to FP16 and back.
"""

_FILLS_A_CPU = 20e9  # operations of an expression from which on it keeps all cores busy alone


@dataclass(frozen=True)
class CompiledGraph:
    """One graph as `compile_bundle` left it."""

    asked: str
    """The graph's precision in the manifest, for people."""

    artifact: Path
    """The compiled file; the ONNX file where the engine runs that as it is."""

    bytes: int
    """The size of the artifact."""

    layers: Mapping[str, int]
    """The number of layers by the precision that they really have; empty where it is unknown."""

    layers_from: str | None
    """Where the engine took `layers` from, None where it is unknown."""

    fused_attention: int | None
    """The number of layers that compute a whole attention; None where it is unknown."""

    notes: tuple[str, ...]
    """What the user should know, such as layers wider than the graph's precision."""

    seconds: float
    """What the build took, now or when the cache was filled."""

    built_now: bool
    """False where it was in the cache."""

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain data."""
        return vars(self) | {
            "artifact": str(self.artifact),
            "layers": dict(self.layers),
            "notes": list(self.notes),
        }


def require_fit(bundle: Bundle, row: EngineSpec) -> None:
    """Raises EngineError where the bundle has graphs that the engine does not run."""
    unfit = sorted({e.precision for e in bundle.manifest.graphs.values()} - set(row.precisions))
    if unfit:
        raise EngineError(
            f"engine {row.name!r} does not run {', '.join(unfit)} graphs; {bundle.path} has some"
        )
    if EMULATES in bundle.manifest.writer and row.name != EMULATION_ENGINE:
        raise EngineError(
            f"{bundle.path} rounds as FP16 hardware does, which {row.name!r} may leave out; ask for"
            f" {EMULATION_ENGINE}"
        )
    if row.needs_gathers:
        for stage in bundle.stages:
            require_gathers(bundle.graph(stage), row.name)


def expressions_together(bundle: Bundle, row: EngineSpec, device: str = "auto") -> int:
    """How many expressions go through the graphs at once where the user does not say.

    Asked together, expressions share what depends on the image alone, and fill idle cores. This
    saves a quarter of each one's time for the demo, but 2 % at full size. There a graph for a
    single expression saves 10 % on engines with `fixed_shapes`. On others it is
    `expressions_at_once`.
    """
    on = row.devices[0] if device == "auto" else kind_of(device)
    fills_it = question_operations(bundle.manifest) >= _FILLS_A_CPU
    return 1 if fills_it and on in row.fixed_shapes else expressions_at_once(bundle.manifest)


def compiled_together(bundle: Bundle, engine: Engine, usual: int) -> int:
    """How many expressions go through the graphs at once where the user does not say.

    It is what the bundle was compiled for, where that is less than usual; so a bundle that was
    compiled for two expressions runs as it is.

    Args:
        bundle: The graphs.
        engine: What runs them.
        usual: The number where nothing is compiled, or where what is compiled takes more.

    Raises:
        EngineError: Where the graphs' files cannot be read.
    """
    limits = [engine.most_compiled(bundle.graph(stage)) for stage in bundle.stages]
    if 0 in limits:
        return usual  # the rest has to be compiled anyway
    return min([usual, *(limit for limit in limits if limit is not None)])


def compile_bundle(
    bundle: Bundle,
    row: EngineSpec,
    engine: Engine,
    progress: Progress = silent,
    *,
    anew: bool = False,
    settled: Settled | None = None,
) -> dict[str, CompiledGraph]:
    """Compiles the graphs, or finds them in the cache.

    Args:
        bundle: The graphs.
        row: The engine's row in the table.
        engine: An engine of that row, with its options.
        progress: Called while it compiles.
        anew: Compile also what is in the cache, and replace it.
        settled: What each graph computes in. None: as `load` has it, or the engine's own options.

    Returns:
        What came of each graph, by stage.

    Raises:
        EngineError: Where the engine cannot compile one of them.
    """
    require_fit(bundle, row)
    engines: Mapping[str, Engine] = dict.fromkeys(bundle.stages, engine)
    if settled is None and "compute" in row.options:
        settled = settle(bundle, row, engine.options, engine.options.compute, progress)
    if settled is not None:
        engines = settled.engines
    found = {}
    for stage in bundle.stages:
        compiled = engines[stage].build(bundle.graph(stage), progress, anew=anew)
        found[stage] = CompiledGraph(
            asked=bundle.manifest.graphs[stage].shown,
            artifact=compiled.artifact,
            bytes=compiled.artifact.stat().st_size,
            layers=compiled.report.get("layers", {}),
            layers_from=compiled.report.get("layers_from"),
            fused_attention=compiled.report.get("fused_attention"),
            notes=tuple(compiled.report.get("notes", ())),
            seconds=compiled.seconds,
            built_now=compiled.built_now,
        )
    return found
