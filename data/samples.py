"""Images with expressions and their true masks, one image after another.

They are drawn scenes (`scene_images`) or come from a data set's files (`refer_images`).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.data.datasets import ReferData, Reference, ReferImage, reference_mask
from ris.data.scenes import Sample, Scene, Split, make_samples, make_scene, target_mask
from ris.engines.errors import RisError

PER_SCENE = 4
"""Expressions about one scene."""


@dataclass(frozen=True)
class Truth:
    """An expression and what it means."""

    expression: str
    """The text."""

    mask: NDArray[np.bool_]
    """What it means, bool [H, W], at the image's own size; all False where nothing is meant."""

    targeted: bool
    """Whether anything is meant."""

    category: str | None
    """COCO's name of what is meant; None where there is none."""

    kind: str
    """What sort of expression it is, for tables."""

    mirrored: tuple[str, NDArray[np.bool_]] | None = None
    """The expression with left and right swapped, and the mask of what that means. None for an
    expression without these words, and where the swapped one does not clearly mean another
    object."""


@dataclass(frozen=True)
class AnnotatedImage:
    """One image and all that is asked about it."""

    name: str
    """What its source calls it."""

    rgb: NDArray[np.uint8]
    """The pixels, uint8 RGB [H, W, 3]."""

    truths: tuple[Truth, ...]
    """Every expression about it, with what it means."""


def scene_images(
    split: Split,
    samples: int,
    *,
    first: int = 0,
    size: int = 256,
    done: Mapping[str, int] | None = None,
) -> Iterator[AnnotatedImage]:
    """Drawn scenes with `PER_SCENE` expressions each.

    Args:
        split: Which of the two splits to draw from.
        samples: How many expressions in all; the last scene may have fewer than the others.
        first: The number of the first scene.
        size: The side of a scene in pixels.
        done: Names of images that are left out, and how many expressions they had.
    """
    number = first - 1
    while samples > 0:
        number += 1
        name = f"{split}-{number}"
        if done and name in done:
            samples -= done[name]
            continue

        scene = make_scene(number, split, size)
        drawn = make_samples(scene, number, min(PER_SCENE, samples))
        samples -= len(drawn)
        truths = tuple(_scene_truth(scene, sample) for sample in drawn)
        yield AnnotatedImage(name, scene.image, truths)


def _scene_truth(scene: Scene, sample: Sample) -> Truth:
    mirrored = None
    if sample.mirrored is not None:
        mask = np.any([scene.objects[i].mask for i in sample.mirrored_targets], axis=0)
        mirrored = sample.mirrored, mask
    return Truth(
        expression=sample.expression,
        mask=target_mask(scene, sample),
        targeted=bool(sample.targets),
        category=sample.category,
        kind=sample.kind,
        mirrored=mirrored,
    )


def read_image(path: Path) -> NDArray[np.uint8]:
    """A data set's image, uint8 RGB [H, W, 3], as the file has it: outlines know nothing of EXIF.

    Raises:
        RisError: Where it cannot be read.
    """
    try:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RisError(f"{path} cannot be read: {error}") from error


def refer_images(data: ReferData, done: Container[str] = ()) -> Iterator[AnnotatedImage]:
    """Every image of a split with every expression, except the images named in `done`.

    Raises:
        RisError: For an image that cannot be read or has another size than its outlines.
    """
    for entry in data.images:
        if entry.name in done:
            continue
        rgb = read_image(entry.path)
        truths = tuple(_refer_truth(data, entry, reference) for reference in entry.references)
        for truth in truths:
            if truth.mask.shape != rgb.shape[:2]:
                found = "x".join(map(str, rgb.shape[:2]))
                said = "x".join(map(str, truth.mask.shape))
                raise RisError(
                    f"{entry.path} is {found} pixels (height x width), its masks are {said}"
                )
        yield AnnotatedImage(entry.name, rgb, truths)


def _refer_truth(data: ReferData, entry: ReferImage, reference: Reference) -> Truth:
    return Truth(
        expression=reference.expression,
        mask=reference_mask(data, entry, reference),
        targeted=bool(reference.annotations),
        category=reference.category,
        kind="expression",
    )
