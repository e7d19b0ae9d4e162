"""What a model is calibrated with: images and expressions, drawn or the user's own."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ris.data.samples import scene_images
from ris.engines.errors import ImageError
from ris.runtime.image import load_rgb
from ris.runtime.requests import Request

EXPRESSIONS = 8
"""The most expressions that go through the graphs at once."""


@dataclass(frozen=True)
class CalibrationSample:
    """One image, uint8 RGB [H, W, 3], what is asked of it, and the COCO categories for models that
    ask by category.

    truths: what each expression means, bool [H, W], where that is known.
    """

    rgb: NDArray[np.uint8]
    expressions: tuple[str, ...]
    categories: tuple[str, ...] | None = None
    truths: tuple[NDArray[np.bool_], ...] | None = None


def scene_samples(expressions: int, size: int = 256) -> Iterator[CalibrationSample]:
    """Drawn training scenes with that many expressions in all, the same every time."""
    for image in scene_images("train", expressions, size=size):
        names = tuple(truth.category or "background" for truth in image.truths)
        masks = tuple(truth.mask for truth in image.truths)
        yield CalibrationSample(
            image.rgb, tuple(truth.expression for truth in image.truths), names, masks
        )


def request_samples(requests: Sequence[Request]) -> Iterator[CalibrationSample]:
    """The user's images and expressions, as `ris-infer` takes them; each image is read when its
    turn comes.
    """
    for request in requests:
        yield CalibrationSample(
            load_rgb(request.image), tuple(request.expressions), request.categories
        )


@dataclass(frozen=True)
class SampleSet:
    """Samples that can be looked at again, one at a time, in any order.

    make: one function a sample; expressions: of all samples together; fingerprint: equal for equal
    samples.
    """

    make: tuple[Callable[[], CalibrationSample], ...]
    expressions: int
    fingerprint: str

    def __len__(self) -> int:
        return len(self.make)

    def __getitem__(self, i: int) -> CalibrationSample:
        return self.make[i]()


def scene_set(expressions: int) -> SampleSet:
    """`scene_samples`, drawn once."""
    drawn = list(scene_samples(expressions))
    count = sum(len(sample.expressions) for sample in drawn)
    make = tuple(functools.partial(_same, sample) for sample in drawn)
    return SampleSet(make, count, f"scenes {count}")


def _same(sample: CalibrationSample) -> CalibrationSample:
    return sample


def request_set(requests: Sequence[Request]) -> SampleSet:
    """`request_samples`, at most `EXPRESSIONS` of an image at a time; an image is read whenever it
    is looked at.

    Raises ImageError where one is not there.
    """
    told = hashlib.sha256()
    parts: list[Request] = []
    for request in requests:
        for start in range(0, len(request.expressions), EXPRESSIONS):
            part = slice(start, start + EXPRESSIONS)
            names = request.categories[part] if request.categories else None
            parts.append(Request(request.image, request.expressions[part], names))
        try:
            about = request.image.stat()
        except OSError as error:
            raise ImageError(f"{request.image} cannot be read: {error.strerror}") from None
        told.update(repr((request, about.st_size, about.st_mtime_ns)).encode())
    make = tuple((lambda r=part: next(request_samples([r]))) for part in parts)
    return SampleSet(make, sum(len(request.expressions) for request in requests), told.hexdigest())
