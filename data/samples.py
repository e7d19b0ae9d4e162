"""Images with expressions and their true masks, one image after another, from drawn scenes or a
data set's files.
"""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.data.datasets import ReferData, reference_mask
from ris.data.scenes import Split, make_samples, make_scene, target_mask
from ris.engines.errors import RisError

PER_SCENE = 4


@dataclass(frozen=True)
class Truth:
    """An expression and what it means: bool [H, W] of the image's own size.

    kind: what sort of expression, for tables. mirrored: the same with left and right swapped and
    the mask of what that means, where that is something else.
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


def scene_images(
    split: Split,
    samples: int,
    *,
    first: int = 0,
    size: int = 256,
    done: Mapping[str, int] | None = None,
) -> Iterator[EvaluationImage]:
    """Scenes from number `first` on with `PER_SCENE` expressions each, `samples` expressions in
    all.

    done: names of images that are left out, and how many expressions they had.
    """
    number = first - 1
    while samples > 0:
        number += 1
        name = f"{split}-{number}"
        if done and name in done:
            samples -= done[name]
            continue
        scene = make_scene(number, split, size)
        truths = []
        for sample in make_samples(scene, number, min(PER_SCENE, samples)):
            mirrored = None
            if sample.mirrored is not None:
                mask = np.any([scene.objects[i].mask for i in sample.mirrored_targets], axis=0)
                mirrored = sample.mirrored, mask
            mask = target_mask(scene, sample)
            truths.append(
                Truth(
                    sample.expression,
                    mask,
                    bool(sample.targets),
                    sample.category,
                    sample.kind,
                    mirrored,
                )
            )
        samples -= len(truths)
        yield EvaluationImage(name, scene.image, tuple(truths))


def read_image(path: Path) -> NDArray[np.uint8]:
    """A data set's image as the file has it, uint8 RGB [H, W, 3]: outlines know nothing of EXIF.
    Raises RisError.
    """
    try:
        with Image.open(path) as opened:
            return np.asarray(opened.convert("RGB"))
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RisError(f"{path} cannot be read: {error}") from error


def refer_images(data: ReferData, done: Container[str] = ()) -> Iterator[EvaluationImage]:
    """Every image of a split with every expression, but for those of these names.

    Raises RisError for an image that cannot be read or has another size than its outlines.
    """
    for entry in data.images:
        if entry.name in done:
            continue
        rgb = read_image(entry.path)
        truths = tuple(
            Truth(
                r.expression,
                reference_mask(data, entry, r),
                bool(r.annotations),
                r.category,
                "expression",
            )
            for r in entry.references
        )
        for truth in truths:
            if truth.mask.shape != rgb.shape[:2]:
                found, said = (
                    "x".join(map(str, rgb.shape[:2])),
                    "x".join(map(str, truth.mask.shape)),
                )
                raise RisError(
                    f"{entry.path} is {found} pixels (height x width), its masks are {said}"
                )
        yield EvaluationImage(entry.name, rgb, truths)
