"""The options that several doors share: the limits on a request, and where to listen."""

from __future__ import annotations

from typing import Any

import click

from ris.runtime.commands.options import Command, Option, add_options
from ris.serving.limits import Limits

host_option = click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen; 0.0.0.0 lets other machines in.",
)
"""`--host`; the command gets it as `host`."""


def limit_options(defaults: Limits, expressions_help: str) -> Option:
    """Adds the limits on a request; the command gets them as one argument, `limits`.

    defaults: the limits without an option; expressions_help: the help of --max-expressions.
    """
    options = (
        click.option(
            "--max-image-mb",
            type=click.FloatRange(0, min_open=True),
            default=defaults.image_bytes / 1e6,
            show_default=True,
        ),
        click.option(
            "--max-megapixels",
            type=click.FloatRange(0, min_open=True),
            default=defaults.pixels / 1e6,
            show_default=True,
        ),
        click.option(
            "--max-expressions",
            type=click.IntRange(1),
            default=defaults.expressions,
            show_default=True,
            help=expressions_help,
        ),
        click.option(
            "--max-queue",
            type=click.IntRange(1),
            default=defaults.waiting,
            show_default=True,
            help="Requests that may wait.",
        ),
        click.option(
            "--max-seconds",
            type=click.FloatRange(0, min_open=True),
            default=defaults.seconds,
            show_default=True,
        ),
    )

    def add(command: Command) -> Command:
        return add_options(command, options, "limits", _take_limits)

    return add


def _take_limits(given: dict[str, Any]) -> Limits:
    return Limits(
        image_bytes=round(given.pop("max_image_mb") * 1e6),
        pixels=round(given.pop("max_megapixels") * 1e6),
        expressions=given.pop("max_expressions"),
        waiting=given.pop("max_queue"),
        seconds=given.pop("max_seconds"),
    )
