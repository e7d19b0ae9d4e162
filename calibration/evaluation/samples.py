"""Images with expressions and their true masks, one image after another, from drawn scenes or a data set's files."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ris.calibration.datasets import ReferData, reference_mask
from ris.calibration.scenes import Split, make_samples, make_scene, target_mask
from ris.engines.errors import RisError

PER_SCENE = 4


@dataclass(frozen=True)
class Truth:
    """An expression and what it means: bool [H, W] of the image's own size.

    kind: what sort of expression, for tables. mirrored: the same with left and right swapped and the mask of what that
    means, where that is something else.
    """

    expression: str
    mask: NDArray[np.bool_]
    targeted: bool
    category: str | None
    kind: str
    mirrored: tuple[str, NDArray[np.bool_]] | None = None


@dataclass(frozen=True)
class EvaluationImage:
    """One image, uint8 RGB [H, W, 3], and all that is asked about it."""

    name: str
    rgb: NDArray[np.uint8]
    truths: tuple[Truth, ...]


def scene_images(split: Split, samples: int, *, first: int = 0, size: int = 256) -> Iterator[EvaluationImage]:
    """Scenes from number `first` on with `PER_SCENE` expressions each, `samples` expressions in all."""
    number = first
    while samples > 0:
        scene = make_scene(number, split, size)
        truths = []
        for sample in make_samples(scene, number, min(PER_SCENE, samples)):
            mirrored = None
            if sample.mirrored is not None:
                mask = np.any([scene.objects[i].mask for i in sample.mirrored_targets], axis=0)
                mirrored = sample.mirrored, mask
            mask = target_mask(scene, sample)
            truths.append(Truth(sample.expression, mask, bool(sample.targets), sample.category, sample.kind, mirrored))
        samples -= len(truths)
        yield EvaluationImage(f"{split}-{number}", scene.image, tuple(truths))
        number += 1


def refer_images(data: ReferData) -> Iterator[EvaluationImage]:
    """Every image of a split with every expression. Raises RisError for an image that cannot be read."""
    for entry in data.images:
        try:
            with Image.open(entry.path) as opened:
                rgb = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
        except OSError as error:
            raise RisError(f"{entry.path} cannot be read: {error}") from error
        truths = tuple(
            Truth(r.expression, reference_mask(data, entry, r), bool(r.annotations), r.category, "expression")
            for r in entry.references
        )
        yield EvaluationImage(entry.path.name, rgb, truths)
