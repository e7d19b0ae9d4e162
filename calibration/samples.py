"""What a model is calibrated with: images and expressions, drawn or the user's own."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ris.calibration.usable import refusal
from ris.data.samples import scene_images
from ris.engines.errors import ImageError, Skipped, refuse
from ris.runtime.image import load_rgb
from ris.runtime.requests import Request

EXPRESSIONS = 8
"""The most expressions that go through the graphs at once."""


@dataclass(frozen=True)
class CalibrationSample:
    """One image and what is asked of it."""

    rgb: NDArray[np.uint8]
    """The image, uint8 RGB [H, W, 3]."""

    expressions: tuple[str, ...]
    """What is asked of it."""

    categories: tuple[str, ...] | None = None
    """One COCO category per expression, for models that ask by category. None: not given."""

    truths: tuple[NDArray[np.bool_], ...] | None = None
    """The true mask of each expression, bool [H, W]. None: not known."""

    name: str = ""
    """The image for people: its file, or which scene it is."""


def scene_samples(expressions: int, size: int = 256) -> Iterator[CalibrationSample]:
    """Drawn training scenes with that many expressions in all, the same every time."""
    for number, image in enumerate(scene_images("train", expressions, size=size)):
        yield CalibrationSample(
            rgb=image.rgb,
            expressions=tuple(truth.expression for truth in image.truths),
            categories=tuple(truth.category or "background" for truth in image.truths),
            truths=tuple(truth.mask for truth in image.truths),
            name=f"scene {number}",
        )


def request_samples(
    requests: Sequence[Request], skipped: Skipped = refuse
) -> Iterator[CalibrationSample]:
    """The user's images and expressions. An image is read when its turn comes.

    skipped: gets a sentence for each image that cannot be read.
    """
    for request in requests:
        try:
            sample = _read(request)
        except ImageError as error:
            skipped(refusal(request, error))
            continue
        yield sample


def _read(request: Request) -> CalibrationSample:
    """The sample of a request. Raises ImageError."""
    rgb, name = load_rgb(request.image), str(request.image)
    return CalibrationSample(rgb, tuple(request.expressions), request.categories, name=name)


@dataclass(frozen=True)
class SampleSet:
    """Samples that can be taken again, one at a time, in any order."""

    make: tuple[Callable[[], CalibrationSample], ...]
    """One function per sample."""

    expressions: int
    """How many expressions all samples have together."""

    fingerprint: str
    """Equal for equal samples."""

    def __len__(self) -> int:
        return len(self.make)

    def __getitem__(self, i: int) -> CalibrationSample:
        return self.make[i]()


def scene_set(expressions: int) -> SampleSet:
    """`scene_samples`, drawn once and kept in memory."""
    drawn = list(scene_samples(expressions))
    count = sum(len(sample.expressions) for sample in drawn)
    make = tuple(functools.partial(_same, sample) for sample in drawn)
    return SampleSet(make, count, f"scenes {count}")


def _same(sample: CalibrationSample) -> CalibrationSample:
    return sample


def request_set(requests: Sequence[Request]) -> SampleSet:
    """`request_samples`, with at most `EXPRESSIONS` expressions in one sample.

    An image is read each time its sample is taken. Raises ImageError where one is not there.
    """
    parts = [part for request in requests for part in _parts(request)]
    make = tuple(functools.partial(_read, part) for part in parts)
    count = sum(len(request.expressions) for request in requests)
    return SampleSet(make, count, _fingerprint(requests))


def _parts(request: Request) -> Iterator[Request]:
    """The request, cut where it has more than `EXPRESSIONS` expressions."""
    for start in range(0, len(request.expressions), EXPRESSIONS):
        part = slice(start, start + EXPRESSIONS)
        categories = request.categories[part] if request.categories else None
        yield Request(request.image, request.expressions[part], categories)


def _fingerprint(requests: Sequence[Request]) -> str:
    """SHA-256 of the requests and of their files' sizes and times."""
    digest = hashlib.sha256()
    for request in requests:
        try:
            about = request.image.stat()
        except OSError as error:
            raise ImageError(f"{request.image} cannot be read: {error.strerror}") from None
        digest.update(repr((request, about.st_size, about.st_mtime_ns)).encode())
    return digest.hexdigest()
