"""The options that `ris-calibrate ranges` and `ris-calibrate int8` share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import click

from ris.calibration.samples import (
    CalibrationSample,
    SampleSet,
    request_samples,
    request_set,
    scene_samples,
    scene_set,
)
from ris.data.samples import PER_SCENE
from ris.engines.errors import RisError
from ris.runtime.commands.options import Command, Option, add_options
from ris.runtime.requests import Request, collect

threads_option = click.option(
    "--threads", type=click.IntRange(1), help="CPU threads. Default: all usable cores."
)
"""`--threads`; the command gets it as `threads`."""


@dataclass(frozen=True)
class Asked:
    """What `sample_options` gave: the images and expressions to calibrate with."""

    images: tuple[str, ...]
    """Image files, folders and JSONL files. Empty: drawn scenes instead."""

    expressions: tuple[str, ...]
    """What to ask of image files and folders; JSONL files have their own expressions."""

    categories: tuple[str, ...]
    """One COCO category per expression, for models that ask by category. Empty: not given."""

    samples: int
    """Without images: how many expressions of drawn scenes."""

    def check(self) -> None:
        """Raises RisError where there are expressions and no image to ask them of."""
        if self.expressions and not self.images:
            raise RisError("--expression is asked of IMAGES; give some")

    def requests(self) -> list[Request]:
        """The user's images and expressions. Raises ImageError, ExpressionError, RisError."""
        return collect(list(self.images), self.expressions, self.categories or None)

    def stream(self) -> tuple[Iterator[CalibrationSample], int]:
        """The samples, to be looked at once, and how many they are."""
        if not self.images:
            return scene_samples(self.samples), -(-self.samples // PER_SCENE)
        requests = self.requests()
        return request_samples(requests), len(requests)

    def sample_set(self) -> SampleSet:
        """The samples, to be looked at more than once."""
        return request_set(self.requests()) if self.images else scene_set(self.samples)


def sample_options(default: int) -> Option:
    """IMAGES and the options about samples; the command gets them as one argument, `asked`.

    default: of `--samples`.
    """
    options = (
        click.argument("images", nargs=-1, type=click.Path()),
        click.option(
            "-e",
            "--expression",
            "expressions",
            multiple=True,
            help="What to ask of IMAGES; may be repeated.",
        ),
        click.option(
            "--category",
            "categories",
            multiple=True,
            help="For models that ask by category; once per expression.",
        ),
        click.option(
            "--samples",
            type=click.IntRange(1),
            default=default,
            show_default=True,
            help="Without IMAGES: scenes' expressions.",
        ),
    )

    def add(command: Command) -> Command:
        return add_options(command, options, "asked", _take_asked)

    return add


def _take_asked(given: dict[str, Any]) -> Asked:
    return Asked(**{field.name: given.pop(field.name) for field in fields(Asked)})
