"""The options that say what runs a bundle, the same in every command that runs one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ris.engines import COMPUTES, DEVICE_NAMES, ENGINE_NAMES
from ris.runtime.commands.console import CompileProgress
from ris.runtime.model import Model, load


@dataclass(frozen=True)
class Running:
    """What `running_options` gave; the fields are those of `ris.runtime.load`."""

    engine: str
    device: str
    threads: int | None
    compute: str | None

    @property
    def chosen(self) -> bool:
        """Whether an engine, a device or a precision was asked for."""
        return (self.engine, self.device, self.compute) != ("auto", "auto", None)

    def load(self, bundle: str | Path, **more: Any) -> Model:
        """`ris.runtime.load`, with progress where an engine has to compile first."""
        with CompileProgress() as progress:
            return load(bundle, progress=progress, **vars(self), **more)


def running_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --engine, --device, --threads and --compute; the command gets them as one argument, `running`."""
    options = (
        click.option("--engine", type=click.Choice(ENGINE_NAMES), default="auto", show_default=True),
        click.option("--device", type=click.Choice(DEVICE_NAMES), default="auto", show_default=True),
        click.option("--threads", type=click.IntRange(1), help="CPU threads. Default: all cores."),
        click.option(
            "--compute",
            type=click.Choice(COMPUTES),
            help="What the engine computes in, where it can choose (openvino). Default: the bundle's precision.",
        ),
    )

    @functools.wraps(command)
    def collected(*args: Any, engine: str, device: str, threads: int | None, compute: str | None, **others: Any) -> Any:
        return command(*args, running=Running(engine, device, threads, compute), **others)

    result: Callable[..., Any] = collected
    for option in reversed(options):
        result = option(result)
    return result
