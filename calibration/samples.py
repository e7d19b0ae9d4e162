"""What a model is calibrated with: images and expressions, drawn or the user's own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ris.calibration.scenes import make_samples, make_scene
from ris.runtime.image import load_rgb
from ris.runtime.requests import Request

PER_SCENE = 4


@dataclass(frozen=True)
class CalibrationSample:
    """One image, uint8 RGB [H, W, 3], what is asked of it, and the COCO categories for models that ask by category."""

    rgb: NDArray[np.uint8]
    expressions: tuple[str, ...]
    categories: tuple[str, ...] | None = None


def scene_samples(expressions: int, size: int = 256) -> Iterator[CalibrationSample]:
    """Drawn training scenes with that many expressions in all, the same every time."""
    number = 0
    while expressions > 0:
        scene = make_scene(number, "train", size)
        found = make_samples(scene, number, min(PER_SCENE, expressions))
        names = tuple(sample.category or "background" for sample in found)
        yield CalibrationSample(scene.image, tuple(sample.expression for sample in found), names)
        expressions -= len(found)
        number += 1


def request_samples(requests: Sequence[Request]) -> Iterator[CalibrationSample]:
    """The user's images and expressions, as `ris-infer` takes them; each image is read when its turn comes."""
    for request in requests:
        yield CalibrationSample(load_rgb(request.image), tuple(request.expressions), request.categories)
