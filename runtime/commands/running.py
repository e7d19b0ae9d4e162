"""The options that say what runs a bundle, the same in every command that runs one."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ris.engines import COMPUTES, DEVICE_NAMES, ENGINE_NAMES
from ris.runtime.bundle import STAGES
from ris.runtime.commands.console import CompileProgress
from ris.runtime.loading import computes_by_stage, load
from ris.runtime.model import Model


@dataclass(frozen=True)
class Running:
    """What `running_options` gave; the fields are those of `ris.runtime.load`."""

    engine: str
    device: str
    threads: int | None
    compute: str | Mapping[str, str] | None
    overlap: bool | None = None
    low_memory: bool = False
    throughput: bool = False

    @property
    def chosen(self) -> bool:
        """Whether an engine, a device or a precision was asked for."""
        return (self.engine, self.device, self.compute) != ("auto", "auto", None)

    def load(self, bundle: str | Path, **more: Any) -> Model:
        """`ris.runtime.load`, with progress where an engine has to compile first; says what "auto"
        chose.
        """
        with CompileProgress() as progress:
            model = load(bundle, progress=progress, **vars(self), **more)
        if self.engine == "auto":
            info = next(iter(model.sessions.values()))
            click.echo(f"--engine auto: {info.engine} on {info.device}", err=True)
        return model


class _Compute(click.ParamType):
    """ "bf16" for a model as a whole, "fusion=bf16" for one of its graphs."""

    name = "[GRAPH=]PRECISION"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str | None, str]:
        graph, equals, precision = str(value).rpartition("=")
        if precision not in COMPUTES or (equals and graph not in STAGES):
            self.fail(
                f"{value!r} is neither a precision ({', '.join(COMPUTES)}) nor GRAPH=PRECISION with"
                f" one of the graphs {', '.join(STAGES)}",
                param,
                ctx,
            )
        return graph or None, precision


def _collect(given: tuple[tuple[str | None, str], ...]) -> str | Mapping[str, str] | None:
    """The last precision of a whole model, and over it those of single graphs."""
    whole = next((precision for graph, precision in reversed(given) if graph is None), None)
    single = {graph: precision for graph, precision in given if graph is not None}
    if not single:
        return whole
    return {
        stage: precision for stage, precision in computes_by_stage(whole).items() if precision
    } | single


def running_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds what says how a bundle runs; the command gets it as one argument, `running`."""
    options = (
        click.option(
            "--engine", type=click.Choice(ENGINE_NAMES), default="auto", show_default=True
        ),
        click.option(
            "--device", type=click.Choice(DEVICE_NAMES), default="auto", show_default=True
        ),
        click.option("--threads", type=click.IntRange(1), help="CPU threads. Default: all cores."),
        click.option(
            "--compute",
            type=_Compute(),
            multiple=True,
            help=(
                "What the engine computes in, where it can choose (openvino): fp32, bf16 or fp16"
                " (the image encoders and the fusion); fusion=bf16 and the like for one graph."
                " Default: the bundle's precision."
            ),
        ),
        click.option(
            "--overlap/--no-overlap",
            default=None,
            help="Run the image encoders and the text encoder side by side. Default: on GPUs only.",
        ),
        click.option(
            "--low-memory", is_flag=True, help="Give memory back after every graph's run; slower."
        ),
        click.option(
            "--throughput",
            is_flag=True,
            help=(
                "Share the cores among requests that come at once, in place of all cores for each"
                " in turn (openvino)."
            ),
        ),
    )

    @functools.wraps(command)
    def collected(
        *args: Any,
        engine: str,
        device: str,
        threads: int | None,
        compute: tuple[tuple[str | None, str], ...],
        overlap: bool | None,
        low_memory: bool,
        throughput: bool,
        **others: Any,
    ) -> Any:
        running = Running(
            engine, device, threads, _collect(compute), overlap, low_memory, throughput
        )
        return command(*args, running=running, **others)

    result: Callable[..., Any] = collected
    for option in reversed(options):
        result = option(result)
    return result
