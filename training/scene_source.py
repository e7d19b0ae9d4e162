"""Drawn scenes as a source of training samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ris.data.scenes import (
    KINDS,
    WEIGHTS,
    Sample,
    Scene,
    Split,
    Wanted,
    make_samples,
    make_scene,
    target_mask,
)
from ris.reference.dfam.categories import COCO_PANOPTIC
from ris.training.augment import vary, warped
from ris.training.samples import Example, RawBatch, Stored, squares


class SceneSource:
    """Batches of drawn scenes. Scene i of a split, and what is asked about it, is always the same.

    Args:
        split: The split whose glyphs and backgrounds are drawn.
        size: The side of the images in pixels.
        images: Scenes in a batch.
        expressions: Expressions per scene.
        first: The number of the first scene of batch 0.
        augment: Whether images are warped and varied (`augment`).
        mix: How often a kind of expression is tried first, where not as often as `WEIGHTS` say.
    """

    groups = 1
    """The scenes of a step come together, and may be cut into parts (`loading.Loading`)."""

    def __init__(
        self,
        split: Split,
        size: int,
        images: int,
        expressions: int,
        first: int = 0,
        augment: bool = False,
        mix: Mapping[Wanted, float] | None = None,
    ) -> None:
        self.split, self.size, self.augment = split, size, augment
        self.weights = WEIGHTS | dict(mix or {})
        self.images, self.expressions, self.first = images, expressions, first
        self.kinds = len(KINDS)

    @property
    def identity(self) -> str:
        """See `Source`; the recipe has their numbers."""
        return f"drawn scenes ({self.split})"

    @property
    def batch_bytes(self) -> int:
        """See `Source`."""
        # RGB and two int64 maps an image, two masks an expression
        return self.images * self.size**2 * (3 + 16 + 2 * self.expressions)

    def batch(self, step: int, number: int = 0, stored: Stored | None = None) -> RawBatch:
        """The `images` scenes from number first + step * images on.

        Args:
            step: The step.
            number: 0, as a step has one batch.
            stored: Not asked: scenes do not come again.
        """
        images = []
        examples: list[Example] = []
        kinds, things = np.zeros((2, self.images, self.size, self.size), np.uint8)

        for i in range(self.images):
            which = self.first + step * self.images + i
            scene = self._scene(which)
            images.append(scene.image)
            for thing, shown in enumerate(scene.objects, start=1):
                kinds[i][shown.mask] = KINDS.index(shown.kind) + 1
                things[i][shown.mask] = thing
            samples = make_samples(scene, which, self.expressions, self.weights)
            examples += [_example(i, scene, sample) for sample in samples]

        return RawBatch(squares(images, self.size), tuple(examples), kinds=kinds, things=things)

    def _scene(self, number: int) -> Scene:
        scene = make_scene(number, self.split, self.size)
        if not self.augment:
            return scene
        rng = np.random.default_rng([number, 3])
        scene = warped(scene, rng)
        return replace(scene, image=vary(scene, rng))


def _example(place: int, scene: Scene, sample: Sample) -> Example:
    return Example(
        image_index=place,
        expression=sample.expression,
        mask=target_mask(scene, sample),
        present=bool(sample.targets),
        # two expressions without a target mean the same only in the same words
        meaning=(place, sample.targets) if sample.targets else sample.expression,
        category=COCO_PANOPTIC.index(sample.category) if sample.category else -1,
        kind=sample.kind,
    )
