"""How options that several commands share are added: declared once, given as one argument."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import click

from ris.engines import DEVICE_NAMES
from ris.engines.devices import require_device
from ris.engines.errors import EngineError

Command = Callable[..., Any]
"""A function that click makes a command of."""

Option = Callable[[Command], Command]
"""What `click.option(...)` returns."""


class DeviceName(click.ParamType):
    """One of `DEVICE_NAMES`, or a numbered GPU."""

    name = "device"

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        return f"[{'|'.join(DEVICE_NAMES)}|cuda:N]"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            require_device(str(value), DEVICE_NAMES)
        except EngineError as error:
            self.fail(str(error), param, ctx)
        return str(value)


def add_options(
    command: Command,
    options: Sequence[Option],
    argument: str,
    take: Callable[[dict[str, Any]], Any],
) -> Command:
    """The command with these options, which it gets as one argument.

    Args:
        command: The command's function.
        options: The options, in the order of the help text.
        argument: The name of the command's argument for them.
        take: Makes this argument of all options that were given, and removes what it takes.
    """

    @functools.wraps(command)
    def collected(*args: Any, **given: Any) -> Any:
        taken = take(given)
        return command(*args, **{argument: taken}, **given)

    result: Command = collected
    for option in reversed(options):
        result = option(result)
    return result
