"""`ris-compile`: compiles a bundle's graphs ahead of the first run. Thin over `compile_bundle`."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ris.engines import ENGINE_NAMES, Engine, EngineOptions, EngineSpec, create, select
from ris.runtime.bundle import Bundle, open_bundle
from ris.runtime.commands.console import CompileProgress, RisCommand, find_bundle, print_json, size
from ris.runtime.commands.options import Command, DeviceName, add_options
from ris.runtime.commands.running import collect_compute, compute_option
from ris.runtime.compile import CompiledGraph, compile_bundle, expressions_together
from ris.runtime.computing import Compute, settle


@dataclass(frozen=True)
class Compiling:
    """What `build_options` gave; the fields are those of `EngineOptions`."""

    max_batch: int
    """The most images of a call."""

    max_expressions: int | None
    """The most expressions of a call. None: what `expressions_together` says."""

    workspace: int | None
    """The most scratch memory of a graph in MiB. None: the engine's own limit."""

    version_compatible: bool
    """Plans that later versions of the engine load too."""

    hardware_compatible: bool
    """Plans for this GPU generation and later ones."""

    strip_weights: bool
    """Plans without weights, which take them from the graphs."""

    strict: bool
    """Refuse layers wider than their graph's precision, and nodes off the device."""

    device: str
    """One of `DEVICE_NAMES`, or a numbered GPU."""

    def engine_options(
        self, row: EngineSpec, bundle: Bundle | None, build: bool = True
    ) -> EngineOptions:
        """As an engine of `row` takes it.

        bundle: None where there is none yet. build: False refuses to compile.
        """
        given = vars(self) | {"workspace": self.workspace and self.workspace * 2**20}
        if self.max_expressions is None:
            del given["max_expressions"]
            if bundle is not None:
                given["max_expressions"] = expressions_together(bundle, row, self.device)
        # what is asked for here is what lies in the bundle afterwards, not something that will do
        return EngineOptions(build=build, exact=True, **given)


_BUILD_OPTIONS = (
    click.option(
        "--max-batch",
        type=click.IntRange(1),
        default=1,
        show_default=True,
        help="Most images of a call.",
    ),
    click.option(
        "--max-expressions",
        type=click.IntRange(1),
        help="Most expressions of a call. Default: 8; 1 for large models on OpenVINO, and for very "
        "large ones on every engine.",
    ),
    click.option(
        "--workspace",
        type=click.IntRange(1),
        metavar="MIB",
        help="Most scratch memory of a graph.",
    ),
    click.option(
        "--version-compatible",
        is_flag=True,
        help="Plans that later versions of the engine load too.",
    ),
    click.option(
        "--hardware-compatible",
        is_flag=True,
        help="Plans for this GPU generation and later ones.",
    ),
    click.option(
        "--strip-weights",
        is_flag=True,
        help="Plans without weights, which take them from the graphs.",
    ),
    click.option(
        "--strict",
        is_flag=True,
        help="Refuse plans with layers wider than the graph's precision, and nodes off the GPU. "
        "Default: a warning.",
    ),
)


def build_options(command: Command) -> Command:
    """Adds what says how to compile; the command gets it as one argument, `compiling`."""
    return add_options(command, _BUILD_OPTIONS, "compiling", _take_compiling)


def _take_compiling(given: dict[str, Any]) -> Compiling:
    device = given.pop("device", "auto")  # commands that compile on the side have no such option
    names = [field.name for field in fields(Compiling) if field.name != "device"]
    return Compiling(device=device, **{name: given.pop(name) for name in names})


@click.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.option(
    "--engine",
    type=click.Choice(ENGINE_NAMES),
    default="auto",
    show_default=True,
)
@click.option(
    "--device",
    type=DeviceName(),
    default="auto",
    show_default=True,
    help="The device to compile for; cuda:1 is the second GPU.",
)
@build_options
@compute_option
@click.option(
    "--no-build",
    is_flag=True,
    help="Only say what is there; end with 2 where something is missing.",
)
@click.option("--force", is_flag=True, help="Compile also what is there, and replace it.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(
    bundle: str | None,
    engine: str,
    compiling: Compiling,
    compute: tuple[tuple[str | None, str], ...],
    no_build: bool,
    force: bool,
    as_json: bool,
) -> None:
    """Compiles the graphs of BUNDLE for an engine and keeps the result in its engines/ folder.

    What was compiled with these very options is taken from there the next time; ris-infer takes
    what will do, whatever the options. BUNDLE defaults to $RIS_BUNDLE, then ./ris-bundle. tensorrt
    compiles for a GPU of this machine, tensorrt-rtx for any that it supports, without one too.

    \b
    Examples:
      ris-compile ris-bundle --engine tensorrt
      ris-compile ris-bundle --engine tensorrt-rtx --max-expressions 4
    """
    if force and no_build:
        raise click.UsageError("--force compiles all graphs and --no-build none; give one of them")
    row = select(engine, compiling.device)
    opened = open_bundle(find_bundle(bundle))
    chosen = create(row.name, compiling.engine_options(row, opened, build=not no_build))
    asked = collect_compute(compute)
    report = compile_and_show(opened, row, chosen, quiet=as_json, anew=force, compute=asked)
    if as_json:
        print_json({"engine": row.name, "graphs": report}, indent=2)


def compile_and_show(
    bundle: Bundle,
    row: EngineSpec,
    engine: Engine,
    quiet: bool,
    anew: bool = False,
    compute: Compute = None,
) -> dict[str, Any]:
    """Compiles with progress and prints the table.

    Args:
        bundle: The graphs.
        row: The engine's row in the table.
        engine: An engine of that row, with its options.
        quiet: Print no table.
        anew: Compile, and measure, also what is in the cache, and replace it.
        compute: What is asked for, where the engine has a choice.

    Returns:
        The report as data, by stage.

    Raises:
        EngineError: Where the engine cannot compile one of the graphs.
    """
    start = time.perf_counter()
    with CompileProgress() as progress:
        settled = None
        if compute is not None or "compute" in row.options:
            settled = settle(bundle, row, engine.options, compute, progress, anew=anew)
        compiled = compile_bundle(bundle, row, engine, progress, anew=anew, settled=settled)
    if settled is not None:
        choice = settled.choice
        warning = "Warning: " if choice.fault else ""
        click.echo(f"{warning}compute {choice.asked}: {choice.words}", err=True)
    if not quiet:
        _print(bundle.path, row.name, compiled, time.perf_counter() - start)
    return {stage: graph.to_dict() for stage, graph in compiled.items()}


def _print(path: Path, engine: str, compiled: Mapping[str, CompiledGraph], seconds: float) -> None:
    """The table, and a line below it; `seconds` is what all of them took now."""
    graphs = compiled.values()
    if not any(graph.layers for graph in graphs):
        click.echo(f"{engine} runs the graphs of {path} as they are; there is nothing to compile.")
        return
    Console(width=110).print(_table(path, engine, compiled))
    for stage, graph in compiled.items():
        for note in graph.notes:
            click.echo(f"Warning: {stage}: {note}", err=True)
    built = sum(graph.built_now for graph in graphs)
    total = size(sum(graph.bytes for graph in graphs))
    sources = ", ".join(sorted({graph.layers_from for graph in graphs if graph.layers_from}))
    click.echo(
        f"{built} of {len(graphs)} graphs compiled in {seconds:.1f} s, {total};"
        f" precisions as the {sources} has them, mixed: with a cast"
    )


def _table(path: Path, engine: str, compiled: Mapping[str, CompiledGraph]) -> Table:
    """A row for each graph: how many of its layers have which precision, its size, its time."""
    kinds = sorted({kind for graph in compiled.values() for kind in graph.layers})
    table = Table(title=f"{path} for {engine}: layers by the precision they have")
    table.add_column("graph")
    for heading in ("asked", *kinds, "size", "compiled in"):
        table.add_column(heading, justify="right")
    for stage, graph in compiled.items():
        counts = [str(graph.layers.get(kind, 0)) for kind in kinds]
        took = f"{graph.seconds:.1f} s" if graph.built_now else "from the cache"
        table.add_row(stage, graph.asked, *counts, size(graph.bytes), took)
    return table
