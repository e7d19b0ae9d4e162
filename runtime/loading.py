"""Opening a bundle for inference: which engine, in what precision, with which limits."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict, Unpack

from ris.engines import EngineOptions, EngineSpec, Progress, create, select, silent
from ris.engines.errors import EngineError, RisError
from ris.runtime.bundle import EMULATES, Bundle, located, open_bundle
from ris.runtime.choice import AUTO
from ris.runtime.compile import (
    EMULATION_ENGINE,
    compiled_together,
    expressions_together,
    require_fit,
)
from ris.runtime.computing import (
    Compute,
    NotMeasuredError,
    Settled,
    engines_by_stage,
    open_graphs,
    settle,
)
from ris.runtime.model import Model

NOT_MEASURED = "what the graphs compute in by default was not measured here yet"
"""`Choice.why` of `settle_as_measured` where that is so."""


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
    """What an engine that can choose computes in: "auto", "fp32", "bf16" or "fp16".

    A mapping names one of them by graph; `ris.runtime.computing.computes_by_stage` says which
    graphs a single one means. Default: $RIS_COMPUTE, then "auto", which takes bfloat16 on a CPU
    where that pays and the bundle's masks bear it (`ris.runtime.computing`).
    """

    overlap: bool | None
    """Run graphs that do not depend on each other side by side. Default: on GPUs alone."""

    low_memory: bool
    """Give memory back after every graph's run; slower. Default: False."""

    throughput: bool
    """Share the cores among threads that use the model at once. Default: False."""

    cuda_graphs: bool
    """Launch CUDA graphs, in engines that do. Default: True."""

    int8_activations: bool
    """On a CPU, round to INT8 what INT8 and INT4 weights are multiplied with; faster, and less
    precise. Default: False."""


def load(
    bundle: str | Path,
    *,
    verify: bool = True,
    progress: Progress = silent,
    **options: Unpack[LoadOptions],
) -> Model:
    """Opens a bundle for inference.

    Args:
        bundle: The folder that `ris-export` wrote, or an address on a Hub
            (`hf://org/name@revision`), from which it is downloaded first.
        verify: Check every file's hash against the manifest.
        progress: Called while a file is downloaded, and while an engine compiles.
        **options: `LoadOptions`: engine, device, threads, strict, max_expressions, build, compute,
            overlap, low_memory, throughput, cuda_graphs, int8_activations.

    Raises:
        BundleError: Where the bundle is missing, damaged or too new.
        HubError: Where it cannot be downloaded.
        EngineError: Where the engine cannot run it here, or not with these options.
    """
    _require_known(options)  # before gigabytes are downloaded or hashed

    def report(name: str, done: int, total: int | None) -> None:
        progress(name, "downloading", done / total if total else None)

    opened = open_bundle(located(bundle, report), verify=verify)
    return open_model(opened, progress=progress, **options)


def _require_known(options: Mapping[str, Any]) -> None:
    """Raises TypeError for keywords that `LoadOptions` has not, as Python does for its own."""
    if unknown := sorted(options.keys() - LoadOptions.__annotations__.keys()):
        raise TypeError(f"load() got an unexpected keyword argument {unknown[0]!r}")


def open_model(
    bundle: Bundle, *, progress: Progress = silent, **options: Unpack[LoadOptions]
) -> Model:
    """`load` for a bundle that is open already."""
    settled, together = settle_for(bundle, progress=progress, **options)
    return open_graphs(bundle, settled, together, options.get("overlap"), progress)


def settle_for(
    bundle: Bundle, *, progress: Progress = silent, **options: Unpack[LoadOptions]
) -> tuple[Settled, int]:
    """What `open_model` opens a bundle's graphs with.

    Returns:
        What each graph computes in, with its engine, and how many expressions go through the graphs
        at once.

    Raises:
        EngineError: As `load`.
    """
    _require_known(options)
    max_expressions = options.get("max_expressions")
    if max_expressions is not None and max_expressions < 1:
        raise RisError(f"max_expressions must be at least 1, got {max_expressions}")

    device = options.get("device", "auto")
    row = select_for(bundle, options.get("engine", "auto"), device)
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
        int8_activations=options.get("int8_activations", False),
    )
    if options.get("max_expressions") is None:
        together = compiled_together(bundle, create(row.name, wanted), max_expressions)
        max_expressions, wanted = together, replace(wanted, max_expressions=together)

    return settle(bundle, row, wanted, options.get("compute"), progress), max_expressions


def settle_as_measured(bundle: Bundle) -> Settled:
    """What `load` opens a bundle's graphs with, without measuring anything.

    In FP32 where `AUTO` was not measured here yet (`NOT_MEASURED`). The engines may compile.

    Raises EngineError as `load`.
    """
    try:
        settled, _ = settle_for(bundle, build=False)
    except NotMeasuredError:
        settled, _ = settle_for(bundle, build=False, compute="fp32")
        choice = replace(settled.choice, asked=AUTO, taken=None, why=NOT_MEASURED)
        settled = replace(settled, choice=choice)
    options = replace(next(iter(settled.engines.values())).options, build=True)
    engines = engines_by_stage(select_for(bundle), options, settled.choice.by_stage)
    return replace(settled, engines=engines)


def select_for(bundle: Bundle, engine: str = "auto", device: str = "auto") -> EngineSpec:
    """The row of the engine that runs a bundle, of the name that was asked for.

    Raises:
        EngineError: Where it cannot run the bundle here.
    """
    if engine == "auto" and EMULATES in bundle.manifest.writer:
        engine = EMULATION_ENGINE
    row = select(engine, device)
    if reason := row.unusable():  # before minutes of compiling for nothing
        raise EngineError(f"engine {row.name!r} cannot run here: {reason}")
    require_fit(bundle, row)
    return row
