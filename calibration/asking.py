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
from ris.calibration.usable import prepared_by, usable
from ris.data.samples import PER_SCENE
from ris.engines.errors import RisError, Skipped
from ris.runtime import Bundle
from ris.runtime.commands.console import track
from ris.runtime.commands.options import Command, Option, add_options
from ris.runtime.host import HostSide
from ris.runtime.image import image_size, load_rgb
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

    def stream(self, bundle: Bundle, skipped: Skipped) -> tuple[Iterator[CalibrationSample], int]:
        """The samples, to be looked at once, and how many they are.

        Of an image the header is read now, and the rest when its turn comes.

        Args:
            bundle: The bundle that is calibrated.
            skipped: Gets a sentence for each line, image and expression that cannot be used.

        Raises:
            RisError: Where none is left.
        """
        if not self.images:
            return scene_samples(self.samples), -(-self.samples // PER_SCENE)
        requests = usable(self._requests(skipped), HostSide(bundle), image_size, skipped)
        return request_samples(requests, skipped), len(requests)

    def sample_set(self, bundle: Bundle | None, skipped: Skipped) -> SampleSet:
        """The samples, to be looked at more than once. Each image is read once now.

        Args:
            bundle: The bundle that is calibrated. None: a model without one; then the expressions
                are not tried.
            skipped: As for `stream`.

        Raises:
            RisError: Where none is left.
        """
        if not self.images:
            return scene_set(self.samples)
        requests = self._requests(skipped)
        host = None if bundle is None else HostSide(bundle)
        look = load_rgb if host is None else prepared_by(host)
        asked = track(requests, len(requests), "Pictures")
        return request_set(usable(asked, host, look, skipped))

    def _requests(self, skipped: Skipped) -> list[Request]:
        return collect(list(self.images), self.expressions, self.categories or None, skipped)


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
