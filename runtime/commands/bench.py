"""`ris-bench`: how fast a bundle runs here. Thin over `run_plan` and `compare`.

Beside it, as asked for: PyTorch, and the machine's own speed.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.markdown import Markdown

from ris import pip_install
from ris.engines import COMPUTES, ENGINE_NAMES, select
from ris.engines.errors import RisError
from ris.engines.processor import core_limit
from ris.runtime.bench.compare import compare as compare_reports
from ris.runtime.bench.plan import Alternative, Plan, Workload
from ris.runtime.bench.report import BenchReport, read_report
from ris.runtime.bench.run import run_plan
from ris.runtime.bench.show import markdown, plot
from ris.runtime.bundle import Bundle, open_bundle
from ris.runtime.choice import CHOICES
from ris.runtime.commands.console import (
    DefaultGroup,
    RisCommand,
    StepProgress,
    disk_errors,
    find_bundle,
    require_writable,
)
from ris.runtime.commands.named_files import with_named
from ris.runtime.commands.options import DeviceName
from ris.runtime.commands.running import collect_compute
from ris.runtime.commands.weight_files import require_flag, weight_file_options
from ris.runtime.hub.address import is_address
from ris.runtime.image import load_rgb
from ris.runtime.parity import load_golden
from ris.runtime.reference import require_pytorch

EXPRESSIONS = ("left man", "second car from the right")
"""The expression of the first mask, and the next one."""

EAGER, COMPILED = "PyTorch eager", "torch.compile"
"""The names of PyTorch's alternatives in the report, to which the precision is added."""

_PRECISION_WORDS = {"fp32": "FP32", "bf16": "bf16"}

_SWITCHES = {
    "overlap": bool,
    "low_memory": bool,
    "throughput": bool,
    "cuda_graphs": bool,
    "max_expressions": int,
}
"""The options of `ris.runtime.load` that --engine takes as NAME=NUMBER, and their types."""


@click.group(cls=DefaultGroup)
def main() -> None:
    """Says how fast a bundle runs here.

    `ris-bench run --help` and `ris-bench compare --help` have the options.

    \b
    Examples:
      ris-bench ris-bundle                 the same as ris-bench run ris-bundle
      ris-bench compare before.json after.json
    """


@main.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.option(
    "--engine",
    "engines",
    multiple=True,
    metavar="ENGINE[:COMPUTE][,GRAPH=COMPUTE...][,SWITCH=VALUE...][@BUNDLE]",
    help="A way of running it; may be repeated: openvino, openvino:bf16, "
    "openvino:bf16,GRAPH=fp32, openvino:bf16@other-bundle. Switches: overlap, low_memory, "
    "throughput and cuda_graphs (0 or 1), max_expressions. Default: auto.",
)
@click.option(
    "--device",
    type=DeviceName(),
    default="auto",
    show_default=True,
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="CPU threads, of PyTorch too. Default: all usable cores.",
)
@click.option(
    "--image",
    type=click.Path(path_type=Path),
    help="Default: noise of 1024x1024 pixels.",
)
@click.option(
    "--runs",
    type=click.IntRange(1),
    default=5,
    show_default=True,
    help="Rounds, after one to warm up.",
)
@click.option(
    "--anew",
    is_flag=True,
    help="New processes for every round; two of the same bundle may differ.",
)
@click.option(
    "--cold",
    type=click.IntRange(0),
    default=3,
    show_default=True,
    help="Cold starts of each way.",
)
@click.option(
    "--batches",
    type=click.IntRange(0),
    default=0,
    show_default=True,
    help="Rounds of 1 to 8 images and 1 to 64 expressions together, of the fastest way.",
)
@click.option(
    "--pytorch",
    is_flag=True,
    help="PyTorch eager takes its turns too; needs the [export] extra.",
)
@click.option(
    "--torch-compile",
    is_flag=True,
    help="So does PyTorch with torch.compile, which needs a C++ compiler.",
)
@click.option(
    "--pytorch-precision",
    "pytorch_precisions",
    type=click.Choice(tuple(_PRECISION_WORDS)),
    multiple=True,
    help="What PyTorch multiplies in, bf16 by autocast; may be repeated. Default: fp32.",
)
@weight_file_options("--pytorch")
@click.option(
    "--limit",
    type=click.FloatRange(1),
    default=900.0,
    show_default=True,
    help="Seconds after which a way that does not answer is left out.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    metavar="PREFIX",
    help="Write PREFIX.json, PREFIX.md and PREFIX.png (needs the [eval] extra).",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def run(
    bundle: str | None,
    runs: int,
    cold: int,
    batches: int,
    limit: float,
    anew: bool,
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Times BUNDLE: cold start, first mask, next expression, stages, peak memory, and the floor.

    Every way of running it has a process of its own, and they take turns. The floor is the model's
    matrix products at the rate at which this machine multiplies large matrices, measured in the
    same rounds. PyTorch beside a bundle that was made from a checkpoint needs that checkpoint, the
    very file. BUNDLE defaults to $RIS_BUNDLE, then ./ris-bundle, then the built-in demo.

    \b
    Examples:
      ris-bench ris-bundle
      ris-bench ris-bundle --engine onnxruntime --engine openvino:bf16 --pytorch --out bench/here
      ris-bench full-size --engine openvino:bf16 --engine openvino@full-size-int8 --batches 2
      ris-bench full-size --engine onnxruntime --engine onnxruntime@full-size-fp16 --anew --runs 9
      ris-bench ris-bundle --pytorch --checkpoint model_final.pth
    """
    request = Request(**given)
    request.check()
    if out is not None:
        _require_files(out)
    path = find_bundle(bundle)
    opened = open_bundle(path)
    alternatives = request.alternatives(path)
    _require_one_model(path, opened, alternatives)

    workload = request.workload(opened)
    plan = Plan(rounds=runs, cold_starts=cold, batches=batches, limit=limit, anew=anew)
    with StepProgress("Bench", plan.steps(alternatives)) as progress:
        report = run_plan(opened, alternatives, workload, plan, progress, _say_failed)

    try:
        if out is not None:
            _write(report, out)
    finally:  # what was measured is shown though a disk is full
        _show(report, as_json)


def _show(report: BenchReport, as_json: bool) -> None:
    """Prints the report."""
    if as_json:
        click.echo(report.to_json(), nl=False)
    else:
        Console(width=140).print(Markdown(markdown(report)))


def _say_failed(name: str, reason: str) -> None:
    click.echo(f"Not measured: {name}: {reason}", err=True)


@dataclass(frozen=True)
class Request:
    """What the command line asked to run, besides how often."""

    engines: tuple[str, ...]
    """The ways of running a bundle, as `parse_engine` reads them; empty for "auto"."""

    device: str
    """One of `DEVICE_NAMES`."""

    threads: int | None
    """CPU threads of each process. None: all usable cores."""

    image: Path | None
    """The image. None: noise."""

    pytorch: bool
    """PyTorch takes its turns, too."""

    torch_compile: bool
    """So does PyTorch with torch.compile."""

    pytorch_precisions: tuple[str, ...]
    """What PyTorch multiplies in, of "fp32" and "bf16"; empty for "fp32"."""

    files: dict[str, Path | None]
    """The weight files of the PyTorch model, by the names of `WeightFiles`."""

    @property
    def usable_threads(self) -> int | None:
        """The threads of every way and of the floor: under a container's quota all stay within."""
        return self.threads or core_limit()

    def check(self) -> None:
        """Raises RisError for weight files without PyTorch, and where PyTorch is not installed."""
        with_pytorch = self.pytorch or self.torch_compile
        require_flag(self.files, "--pytorch or --torch-compile", with_pytorch)
        if self.pytorch_precisions and not with_pytorch:
            raise RisError("--pytorch-precision is for --pytorch and --torch-compile")
        if with_pytorch:
            require_pytorch("--pytorch")
        for text in self.engines:
            _require_known(text, self.device)

    def alternatives(self, bundle: Path) -> list[Alternative]:
        """The ways of running the bundle, PyTorch first.

        Raises RisError for an --engine that cannot be read or is given twice.
        """
        given = with_named(self.files)
        files = {name: str(file) if file else None for name, file in given.items()}
        found = []
        forms = [EAGER] * self.pytorch + [COMPILED] * self.torch_compile
        asked = self.pytorch_precisions or ("fp32",)
        for form, (precision, word) in product(forms, _PRECISION_WORDS.items()):
            if precision in asked:
                named = Alternative(f"{form} {word}", "pytorch", str(bundle), files=files)
                found.append(replace(named, compile=form == COMPILED, precision=precision))
        for text in self.engines or ("auto",):
            found.append(parse_engine(text, bundle, self.device, self.usable_threads))

        names = [alternative.name for alternative in found]
        if repeated := sorted({name for name in names if names.count(name) > 1}):
            raise RisError(f"--engine {', '.join(repeated)} is given twice")
        return found

    def workload(self, bundle: Bundle) -> Workload:
        """What each of them is asked.

        Raises ImageError or BundleError where the image or the bundle's reference cannot be read.
        """
        rgb = _noise() if self.image is None else load_rgb(self.image)
        categories: tuple[str, ...] = ()
        if bundle.manifest.categories:
            categories = tuple(map(str, load_golden(bundle)["categories"][:2]))
        return Workload(rgb, EXPRESSIONS, categories, self.usable_threads)


def parse_engine(text: str, bundle: Path, device: str, threads: int | None) -> Alternative:
    """`ENGINE[:COMPUTE][,GRAPH=COMPUTE...][,SWITCH=VALUE...][@BUNDLE]` as an alternative.

    Args:
        text: What --engine was given.
        bundle: The bundle where `text` names none.
        device: One of `DEVICE_NAMES`.
        threads: CPU threads. None: all cores.

    Raises:
        RisError: Where there is no such engine, precision or switch.
    """
    rest, _, other = text.partition("@")
    first, *switches = rest.split(",")
    engine, _, compute = first.partition(":")
    chosen = _require_known(text, device)
    options: dict[str, Any] = {"engine": chosen, "device": device, "threads": threads}
    by_graph = []
    for switch in switches:
        name, _, value = switch.partition("=")
        if name not in _SWITCHES and name and value in COMPUTES:
            by_graph.append((name, value))
        elif name in _SWITCHES and value.isdigit():
            options[name] = _SWITCHES[name](int(value))
        else:
            raise RisError(
                f"--engine {text}: {switch!r} is not one of {', '.join(_SWITCHES)} with =NUMBER,"
                f" nor a graph with ={', ='.join(COMPUTES)}"
            )
    if compute or by_graph:
        whole = [(None, compute)] if compute else []
        options["compute"] = collect_compute((*whole, *by_graph))
    shown = text.replace("auto", chosen, 1) if engine == "auto" else text
    if is_address(other):  # a round must not wait for a Hub
        other = str(find_bundle(other))
    return Alternative(shown, "bundle", other or str(bundle), options)


def _require_known(text: str, device: str) -> str:
    """The engine of a way, by its name where "auto" takes one.

    Raises RisError where there is no such engine or precision, or the engine is not installed.
    """
    engine, _, compute = text.partition("@")[0].partition(",")[0].partition(":")
    if engine not in ENGINE_NAMES:
        raise RisError(
            f"--engine {text}: there is no engine {engine!r};"
            f" this version has {', '.join(ENGINE_NAMES)}"
        )
    if compute and compute not in CHOICES:
        raise RisError(
            f"--engine {text}: there is no precision {compute!r}; known are {', '.join(CHOICES)}"
        )
    return select(engine, device).name


def _require_one_model(path: Path, bundle: Bundle, alternatives: Sequence[Alternative]) -> None:
    """Raises RisError where an alternative's bundle is of another architecture than `bundle`."""
    for other in {a.bundle for a in alternatives} - {str(path)}:
        manifest = open_bundle(other).manifest
        if (manifest.family, manifest.model) != (bundle.manifest.family, bundle.manifest.model):
            raise RisError(
                f"{other} is of another architecture than {path};"
                " only bundles of one model are compared"
            )


def _noise() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)


def _require_files(out: Path) -> None:
    """Raises RisError where the report's files cannot be written."""
    if not out.name:
        raise RisError(f"--out {out}: give what the files' names begin with, such as bench/here")
    if importlib.util.find_spec("matplotlib") is None:
        raise RisError(f"--out draws a plot, which needs matplotlib: {pip_install('eval')}")
    for file in _files_of(out):
        require_writable(file)


def _files_of(out: Path) -> list[Path]:
    """The report as JSON, as Markdown and as a plot."""
    return [out.with_name(f"{out.name}.{kind}") for kind in ("json", "md", "png")]


def _write(report: BenchReport, out: Path) -> None:
    """Writes the report as JSON, Markdown and a plot, and says where."""
    data, text, picture = _files_of(out)
    with disk_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        data.write_text(report.to_json(), encoding="utf-8")
        text.write_text(markdown(report), encoding="utf-8")
        plot(report, picture)
    for file in (data, text, picture):
        click.echo(f"wrote {file}", err=True)


@main.command(cls=RisCommand)
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
def compare(first: Path, second: Path) -> None:
    """Says what became faster or slower from FIRST to SECOND.

    Both are files of ris-bench --out or --json. Refuses reports of different inputs: image,
    expressions, model or threads.

    \b
    Examples:
      ris-bench compare bench/before.json bench/after.json
    """
    names = (str(first), str(second))
    table = compare_reports(read_report(first), read_report(second), names)
    Console(width=140).print(Markdown(table))
