"""Opening a bundle for inference: which engine, in what precision, with which limits."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ris.engines import (
    Engine,
    EngineOptions,
    EngineSpec,
    Progress,
    Session,
    create,
    select,
    silent,
)
from ris.engines.errors import EngineError, RisError
from ris.runtime.bundle import EMULATES, Bundle, open_bundle
from ris.runtime.compile import (
    EMULATION_ENGINE,
    compiled_together,
    expressions_together,
    require_fit,
)
from ris.runtime.model import Model

Compute = str | Mapping[str, str] | None
"""A precision for the whole model, precisions by graph, or None for the bundle's own.

By graph, "*" stands for the whole model, and a graph's own name goes before it.
"""

WHOLE = "*"
"""The whole model in a `Compute` by graph."""


class LoadOptions(TypedDict, total=False):
    """How a bundle is run. Every option may be left out."""

    engine: str
    """A name from `ris.engines.ENGINE_NAMES`. Default: "auto", the first engine that runs here."""

    device: str
    """A name from `ris.engines.DEVICE_NAMES`, or "cuda:1" for the second GPU.

    Default: "auto", the engine's first device.
    """

    threads: int | None
    """CPU threads. Default: all cores that this process may use."""

    strict: bool
    """Refuse to run a node off the device, or a layer wider than its graph's precision.

    Default: False.
    """

    max_expressions: int | None
    """The most expressions that go through the graphs at once, which bounds memory.

    Default: what `ris.runtime.compile.expressions_together` says, or less where the bundle was
    compiled for less.
    """

    build: bool
    """Compile what is not in the engine's cache; False refuses instead. Default: True."""

    compute: Compute
    """What an engine that chooses the precision itself computes in: "fp32", "bf16" or "fp16".

    A mapping names one of them by graph; `ris.runtime.loading.computes_by_stage` says which graphs
    a single one means. Default: the bundle's own.
    """

    overlap: bool | None
    """Run graphs that do not depend on each other side by side. Default: on GPUs alone."""

    low_memory: bool
    """Give memory back after every graph's run; slower. Default: False."""

    throughput: bool
    """Share the cores among threads that use the model at once. Default: False."""

    cuda_graphs: bool
    """Launch CUDA graphs, in engines that do. Default: True."""


def load(
    bundle: str | Path,
    *,
    verify: bool = True,
    progress: Progress = silent,
    **options: Unpack[LoadOptions],
) -> Model:
    """Opens a bundle for inference.

    Args:
        bundle: The folder that `ris-export` wrote.
        verify: Check every file's hash against the manifest.
        progress: Called while an engine compiles.
        **options: `LoadOptions`: engine, device, threads, strict, max_expressions, build, compute,
            overlap, low_memory, throughput, cuda_graphs.

    Raises:
        BundleError: Where the bundle is missing, damaged or too new.
        EngineError: Where the engine cannot run it here, or not with these options.
    """
    _require_known(options)  # before gigabytes are hashed
    return open_model(open_bundle(bundle, verify=verify), progress=progress, **options)


def _require_known(options: Mapping[str, Any]) -> None:
    """Raises TypeError for keywords that `LoadOptions` has not, as Python does for its own."""
    if unknown := sorted(options.keys() - LoadOptions.__annotations__.keys()):
        raise TypeError(f"load() got an unexpected keyword argument {unknown[0]!r}")


def open_model(
    bundle: Bundle, *, progress: Progress = silent, **options: Unpack[LoadOptions]
) -> Model:
    """`load` for a bundle that is open already."""
    _require_known(options)
    max_expressions = options.get("max_expressions")
    if max_expressions is not None and max_expressions < 1:
        raise RisError(f"max_expressions must be at least 1, got {max_expressions}")

    device = options.get("device", "auto")
    row = _select(bundle, options.get("engine", "auto"), device)
    if max_expressions is None:
        max_expressions = expressions_together(bundle, row, device)
    wanted = EngineOptions(
        device=device,
        threads=options.get("threads"),
        strict=options.get("strict", False),
        max_expressions=max_expressions,
        build=options.get("build", True),
        low_memory=options.get("low_memory", False),
        throughput=options.get("throughput", False),
        cuda_graphs=options.get("cuda_graphs", True),
    )
    if options.get("max_expressions") is None:
        together = compiled_together(bundle, create(row.name, wanted), max_expressions)
        max_expressions, wanted = together, replace(wanted, max_expressions=together)

    by_stage = computes_by_stage(options.get("compute"), bundle)
    engines: dict[str | None, Engine] = {}
    for compute in set(by_stage.values()):
        engines[compute] = create(row.name, replace(wanted, compute=compute))

    with ExitStack() as opened:  # where one graph fails, those before it are closed
        sessions: dict[str, Session] = {}
        for stage in bundle.stages:
            graph, chosen = bundle.graph(stage), engines[by_stage[stage]]
            sessions[stage] = chosen.load(graph, progress)
            opened.callback(sessions[stage].close)
        model = Model(bundle, sessions, max_expressions, options.get("overlap"))
        opened.pop_all()
    return model


def _select(bundle: Bundle, engine: str, device: str) -> EngineSpec:
    """The engine's row; raises EngineError where it cannot run the bundle here."""
    if engine == "auto" and EMULATES in bundle.manifest.writer:
        engine = EMULATION_ENGINE
    row = select(engine, device)
    if reason := row.unusable():  # before minutes of compiling for nothing
        raise EngineError(f"engine {row.name!r} cannot run here: {reason}")
    require_fit(bundle, row)
    return row


def computes_by_stage(compute: Compute, bundle: Bundle) -> dict[str, str | None]:
    """What each graph is asked to compute in, None for its own precision.

    "bf16" and "fp16" ask the graphs that are worth their error, which the manifest names
    (`GraphEntry.bfloat16`). "fp32" asks all graphs, a mapping those that it names.

    Raises EngineError where it names a graph that the bundle does not have, and where a narrow
    precision for the whole model would change none.
    """
    stages = bundle.manifest.graphs
    single = {} if compute is None or isinstance(compute, str) else dict(compute)
    whole = compute if isinstance(compute, str) else single.pop(WHOLE, None)
    if unknown := sorted(set(single) - set(stages)):
        raise EngineError(f"there is no graph {', '.join(unknown)}; there are {', '.join(stages)}")
    narrow = whole in ("bf16", "fp16")
    if narrow and not any(entry.bfloat16 for entry in stages.values()):
        raise EngineError(
            f"none of the graphs is said to be precise enough in {whole}; name those that are to"
            f" compute in it, of {', '.join(stages)}"
        )
    return {
        name: single.get(name, whole if entry.bfloat16 or not narrow else None)
        for name, entry in stages.items()
    }
