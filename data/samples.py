"""Images with expressions and their true masks, one image after another.

They are drawn scenes (`scene_images`) or come from a data set's files (`refer_images`).
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ris.data.datasets import ReferData, Reference, ReferImage, reference_mask
from ris.data.datasets.outlines import check_size, say_nothing
from ris.data.scenes import Sample, Scene, Split, make_samples, make_scene, target_mask
from ris.engines.errors import RisError, Skipped, refuse
from ris.engines.text import echoed
from ris.runtime.image import Picture, load_picture
from ris.runtime.text import check_expression

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
    """Every expression about it that can be used, with what it means."""

    left_out: tuple[str, ...] = ()
    """A sentence for each expression that cannot be used."""


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


def refer_images(
    data: ReferData,
    done: Container[str] = (),
    skipped: Skipped = refuse,
    noted: Skipped = say_nothing,
) -> Iterator[AnnotatedImage]:
    """Every image of a split with every expression that can be used.

    Args:
        data: The split.
        done: Names of images that are left out.
        skipped: Gets a sentence for each image that cannot be read or has another size than its
            outlines, and for each expression or outline that cannot be used. An image of which
            nothing is left does not come.
        noted: Gets a sentence for each outline that is used and may be a mistake.

    Raises:
        RisError: By default, in place of leaving something out.
    """
    for entry in data.images:
        if entry.name in done:
            continue
        try:
            picture = load_picture(entry.path)
            check_size(entry, picture)
        except RisError as error:
            skipped(str(error))
            continue
        left_out: list[str] = []
        truths = _refer_truths(data, entry, picture, left_out.append, noted)
        for sentence in left_out:
            skipped(sentence)
        if truths:
            rgb = np.asarray(picture.pixels)
            yield AnnotatedImage(entry.name, rgb, truths, tuple(left_out))


def _refer_truths(
    data: ReferData, entry: ReferImage, picture: Picture, skipped: Skipped, noted: Skipped
) -> tuple[Truth, ...]:
    """The expressions about an image, with what they mean in the picture as it is shown."""
    truths = []
    for reference in entry.references:
        place = place_of(data, entry, reference)
        try:
            check_expression(reference.expression)
            mask = reference_mask(data, entry, reference, picture, _at(place, noted))
        except RisError as error:
            skipped(f"{place}: {error}")
            continue
        truths.append(_refer_truth(reference, mask))
    return tuple(truths)


def _at(place: str, noted: Skipped) -> Skipped:
    return lambda said: noted(f"{place}: {said}")


def place_of(data: ReferData, entry: ReferImage, reference: Reference) -> str:
    """Where an expression stands, for people: the line, or the image and the file's own numbers."""
    if data.split == "all":
        return f"{data.name}, line {reference.reference_id}"
    name = echoed(entry.name)
    return f"{name}, sentence {reference.sentence_id} of reference {reference.reference_id}"


def _refer_truth(reference: Reference, mask: NDArray[np.bool_]) -> Truth:
    return Truth(
        expression=reference.expression,
        mask=mask,
        targeted=bool(reference.annotations),
        category=reference.category,
        kind="expression",
    )
