"""The options that several doors share: the limits on a request, and where to listen."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import click

from ris.serving.limits import Limits

host_option = click.option(
    "--host",
    default="127.0.0.1",
    show_default=True,
    help="Where to listen; 0.0.0.0 lets other machines in.",
)
"""`--host`; the command gets it as `host`."""


def limit_options(
    defaults: Limits, expressions_help: str
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
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

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        result = _with_limits(command)
        for option in reversed(options):
            result = option(result)
        return result

    return add


def _with_limits(command: Callable[..., Any]) -> Callable[..., Any]:
    """The command called with the values of `limit_options` as one `Limits`."""

    @functools.wraps(command)
    def collected(
        *args: Any,
        max_image_mb: float,
        max_megapixels: float,
        max_expressions: int,
        max_queue: int,
        max_seconds: float,
        **others: Any,
    ) -> Any:
        limits = Limits(
            image_bytes=round(max_image_mb * 1e6),
            pixels=round(max_megapixels * 1e6),
            expressions=max_expressions,
            waiting=max_queue,
            seconds=max_seconds,
        )
        return command(*args, limits=limits, **others)

    return collected
