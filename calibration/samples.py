"""What a model is calibrated with: images and expressions, drawn or the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ris.calibration.evaluation.samples import scene_images
from ris.runtime.image import load_rgb
from ris.runtime.requests import Request


@dataclass(frozen=True)
class CalibrationSample:
    """One image, uint8 RGB [H, W, 3], what is asked of it, and the COCO categories for models that ask by category."""

    rgb: NDArray[np.uint8]
    expressions: tuple[str, ...]
    categories: tuple[str, ...] | None = None


def scene_samples(expressions: int, size: int = 256) -> Iterator[CalibrationSample]:
    """Drawn training scenes with that many expressions in all, the same every time."""
    for image in scene_images("train", expressions, size=size):
        names = tuple(truth.category or "background" for truth in image.truths)
        yield CalibrationSample(image.rgb, tuple(truth.expression for truth in image.truths), names)


def request_samples(requests: Sequence[Request]) -> Iterator[CalibrationSample]:
    """The user's images and expressions, as `ris-infer` takes them; each image is read when its turn comes."""
    for request in requests:
        yield CalibrationSample(load_rgb(request.image), tuple(request.expressions), request.categories)
