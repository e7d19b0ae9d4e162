"""The answer to an expression, and the clock that its timings come from."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import RisError
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.runtime.interpolate import Float
from ris.runtime.masks import PLAIN, MaskRule, Rle, encode_rle, resize_logits, resize_values
from ris.runtime.outlines import Box, Polygon, box_of, polygons_of

Timings = dict[str, float]
"""Seconds by stage."""


@contextmanager
def timed(timings: Timings, name: str) -> Iterator[None]:
    """Adds the seconds of the block to `timings[name]`."""
    start = time.perf_counter()
    yield
    timings[name] = timings.get(name, 0.0) + time.perf_counter() - start


@dataclass(frozen=True)
class Segmentation:
    """The answer to an expression, as `Scene.segment` returns it."""

    expression: str
    """What was asked."""

    mask: NDArray[np.bool_]
    """bool [H, W] of the image's own size; all False where the model says "no target"."""

    logits: Float
    """float32 [m, m]: the low-resolution mask logits, before any no-target decision.

    Of several draws, their mean.
    """

    score: float
    """The mean foreground probability over the mask, 0 for an empty one."""

    no_target: float | None
    """The probability that the expression names nothing in the image.

    None where the model has no such head.
    """

    is_no_target: bool
    """Whether the mask is empty because that probability reached the threshold."""

    category: str | None
    """The COCO category that was asked; None for models that do not ask by category."""

    timings: Timings = field(repr=False)
    """Seconds by stage.

    `image.*` were spent once for all expressions of the scene. The others are this expression's
    share of what its batch took.
    """

    notes: tuple[str, ...] = ()
    """What the user should know, for instance which words the model does not know."""

    category_word: str | None = None
    """The expression's word that the category was guessed from; None where it was given."""

    form: str | None = None
    """The form that the expression was asked in; None for models that ask it as it is."""

    draws: Draws = ONE_DRAW
    """The random numbers that it was made with; both None for models that draw none."""

    rule: MaskRule = field(default=PLAIN, repr=False)
    """The way from the logits to the mask."""

    def rle(self) -> Rle:
        """The mask in COCO's compressed run-length encoding."""
        return encode_rle(self.mask)

    @property
    def box(self) -> Box | None:
        """The box round the mask: x, y, width and height in pixels, as COCO has it.

        None where the mask is empty.
        """
        return box_of(self.mask)

    def polygons(self, tolerance: float = 0.0) -> list[Polygon]:
        """The outlines of the mask: a polygon, with its holes, for each part of it.

        They run along the edges of the pixels, so that filling them gives the mask again. Parts
        that touch at a corner alone are two.

        Args:
            tolerance: How far, in pixels, a ring may be from that edge, so that it has fewer points
                (Douglas and Peucker); 1 makes straight lines of most steps. 0: exact.

        Raises:
            RisError: For a tolerance that is negative or no number.
        """
        return polygons_of(self.mask, tolerance)

    def to_supervision(self, class_id: int = 0) -> Any:
        """The answer as `supervision.Detections`: one detection, none where the mask is empty.

        `xyxy` is the box, `mask` the mask, `confidence` the score, and `data["class_name"]` the
        category that was asked, or else the expression. `Detections.merge` joins several answers.

        Args:
            class_id: The detection's class.

        Raises:
            RisError: Where the package supervision is not installed.
        """
        try:
            supervision = importlib.import_module("supervision")
        except ImportError:
            raise RisError(
                "to_supervision needs the package supervision: pip install supervision"
            ) from None
        x, y, width, height = self.box or (0, 0, 0, 0)
        count = int(self.box is not None)
        return supervision.Detections(
            xyxy=np.array([[x, y, x + width, y + height]], np.float32)[:count],
            mask=self.mask[None][:count],
            confidence=np.array([self.score], np.float32)[:count],
            class_id=np.array([class_id])[:count],
            data={"class_name": np.array([self.category or self.expression])[:count]},
        )

    def full_logits(self) -> Float:
        """The mask logits at the image's own size, float32 [H, W]."""
        height, width = self.mask.shape
        return resize_logits(self.logits, height, width, self.rule)

    def full_values(self) -> Float:
        """What the mask is above the threshold of, float32 [H, W] of the image's own size.

        These are the mask logits, or their probabilities where the model's answer is of those
        (`rule.of`, `rule.threshold`).
        """
        height, width = self.mask.shape
        return resize_values(self.logits, height, width, self.rule)
