"""The options that say what runs a bundle, the same in every command that runs one."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click

from ris.engines import COMPUTES, ENGINE_NAMES, select
from ris.engines.devices import CUDA, kind_of
from ris.engines.errors import EngineError
from ris.runtime.choice import AUTO, CHOICES
from ris.runtime.commands.console import CompileProgress, find_bundle
from ris.runtime.commands.options import Command, DeviceName, add_options
from ris.runtime.computing import WHOLE, Compute
from ris.runtime.loading import load
from ris.runtime.model import Model


@dataclass(frozen=True)
class Running:
    """What `running_options` gave; the fields are those of `ris.runtime.load`."""

    engine: str
    """One of `ENGINE_NAMES`; "auto" for the first that runs here."""

    device: str
    """One of `DEVICE_NAMES`; "auto" for the engine's first."""

    threads: int | None
    """CPU threads. None: all cores."""

    compute: Compute
    """What the engine computes in, for the model or by graph. None: as `load` has it."""

    overlap: bool | None = None
    """Run graphs that do not depend on each other side by side. None: on GPUs alone."""

    low_memory: bool = False
    """Give memory back after every graph's run; slower."""

    throughput: bool = False
    """Share the cores among requests that come at once."""

    def find_bundle(self, given: str | None) -> Path:
        """The bundle to use, as `console.find_bundle` finds it.

        Raises EngineError, before anything is downloaded, where the engine cannot run here.
        """
        row, kind = select(self.engine, self.device), kind_of(self.device)
        reason = row.unusable() or (row.lacks_cuda() if kind == CUDA else None)
        if kind not in ("auto", *row.devices):
            reason = f"it has no device {self.device!r}; it has {', '.join(row.devices)}"
        if reason:
            raise EngineError(f"engine {row.name!r} cannot run here: {reason}")
        return find_bundle(given)

    def load(self, bundle: str | Path, **more: Any) -> Model:
        """`ris.runtime.load`, with progress where an engine compiles first.

        Prints what "auto" chose. Raises RisError as `load` does.
        """
        with CompileProgress() as progress:
            model = load(bundle, progress=progress, **vars(self), **more)
        if self.engine == "auto":
            info = next(iter(model.sessions.values()))
            took = f", {model.choice.taken}" if model.choice and model.choice.taken else ""
            click.echo(f"--engine auto: {info.engine} on {info.device}{took}", err=True)
        return model


class _Compute(click.ParamType):
    """ "bf16" for a model as a whole, "GRAPH=bf16" for one of its graphs.

    Which graphs there are, the bundle says when it is opened.
    """

    name = "[GRAPH=]PRECISION"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str | None, str]:
        """The graph, None for all, and its precision."""
        graph, equals, precision = str(value).rpartition("=")
        known = COMPUTES if graph else CHOICES
        if precision not in known or bool(equals) != bool(graph):
            self.fail(
                f"{value!r} is neither a precision ({', '.join(CHOICES)}) nor GRAPH=PRECISION",
                param,
                ctx,
            )
        return graph or None, precision


compute_option = click.option(
    "--compute",
    type=_Compute(),
    multiple=True,
    help="What the engine computes in, where it can choose (openvino): fp32, bf16 or fp16 "
    "(the graphs that are worth it, as the bundle says); GRAPH=bf16 and the like for one "
    f"graph; {AUTO}: bf16 on a CPU that multiplies it faster, where the bundle's masks bear "
    f"it, else fp32. Default: $RIS_COMPUTE, then {AUTO}.",
)
"""`--compute`; `collect_compute` makes a `Compute` of what it gives."""

_RUNNING_OPTIONS = (
    click.option(
        "--engine",
        type=click.Choice(ENGINE_NAMES),
        default="auto",
        show_default=True,
    ),
    click.option(
        "--device",
        type=DeviceName(),
        default="auto",
        show_default=True,
    ),
    click.option(
        "--threads",
        type=click.IntRange(1),
        help="CPU threads. Default: all usable cores.",
    ),
    compute_option,
    click.option(
        "--overlap/--no-overlap",
        default=None,
        help="Run graphs that do not wait for each other, such as encoders of the image and of the "
        "text, side by side. Default: on GPUs only.",
    ),
    click.option(
        "--low-memory",
        is_flag=True,
        help="Give memory back after every graph's run; slower.",
    ),
    click.option(
        "--throughput",
        is_flag=True,
        help="Share the cores among requests that come at once, "
        "in place of all cores for each in turn (openvino).",
    ),
)


def running_options(command: Command) -> Command:
    """Adds what says how a bundle runs; the command gets it as one argument, `running`."""
    return add_options(command, _RUNNING_OPTIONS, "running", _take_running)


def _take_running(given: dict[str, Any]) -> Running:
    taken = {field.name: given.pop(field.name) for field in fields(Running)}
    return Running(**(taken | {"compute": collect_compute(taken["compute"])}))


def collect_compute(given: tuple[tuple[str | None, str], ...]) -> Compute:
    """The last precision of a whole model, and over it those of single graphs."""
    whole = next((precision for graph, precision in reversed(given) if graph is None), None)
    single = {graph: precision for graph, precision in given if graph is not None}
    if not single:
        return whole
    return single if whole is None else {WHOLE: whole, **single}


def as_arguments(running: Running) -> list[str]:
    """The options that say the same to another command; `collect_compute` backwards."""
    arguments = ["--engine", running.engine, "--device", running.device]
    if running.threads is not None:
        arguments += ["--threads", str(running.threads)]
    compute = {WHOLE: running.compute} if isinstance(running.compute, str) else running.compute
    for graph, precision in (compute or {}).items():
        arguments += ["--compute", precision if graph == WHOLE else f"{graph}={precision}"]
    if running.overlap is not None:
        arguments.append("--overlap" if running.overlap else "--no-overlap")
    arguments += ["--low-memory"] * running.low_memory + ["--throughput"] * running.throughput
    return arguments
