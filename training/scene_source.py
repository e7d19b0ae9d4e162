"""Drawn scenes as a source of training samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from ris.data.scenes import KINDS, WEIGHTS, Split, Wanted, make_samples, make_scene, target_mask
from ris.reference.categories import COCO_PANOPTIC
from ris.training.augment import vary, warped
from ris.training.data import RawBatch


class SceneSource:
    """`images` scenes with `expressions` expressions each; scene numbers start at `first`.

    Deterministic: scene i of a split is the same everywhere, and so are its expressions. augment:
    images are warped and varied (`augment`). mix: how often a kind of expression is tried first,
    where not as `WEIGHTS` has it.
    """

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

    def batch(self, step: int) -> RawBatch:
        """Scenes first + step * images and on."""
        images, masks, present, index, words, meaning, categories, sorts = (
            [],
            [],
            [],
            [],
            [],
            [],
            [],
            [],
        )
        kinds, things = np.zeros((2, self.images, self.size, self.size), np.uint8)
        for i in range(self.images):
            number = self.first + step * self.images + i
            scene = make_scene(number, self.split, self.size)
            if self.augment:
                rng = np.random.default_rng([number, 3])
                scene = warped(scene, rng)
                scene = replace(scene, image=vary(scene, rng))
            images.append(scene.image)
            for thing, shown in enumerate(scene.objects):
                kinds[i][shown.mask], things[i][shown.mask] = KINDS.index(shown.kind) + 1, thing + 1
            for sample in make_samples(scene, number, self.expressions, self.weights):
                masks.append(target_mask(scene, sample))
                present.append(bool(sample.targets))
                index.append(i)
                words.append(sample.expression)
                # what is not there means the same only in the same words
                meaning.append((i, sample.targets) if sample.targets else sample.expression)
                categories.append(COCO_PANOPTIC.index(sample.category) if sample.category else -1)
                sorts.append(sample.kind)
        return RawBatch(
            images=np.stack(images),
            masks=np.stack(masks),
            present=np.asarray(present),
            image_index=np.asarray(index, np.int64),
            expressions=tuple(words),
            meaning=tuple(meaning),
            categories=np.asarray(categories, np.int64),
            kinds=kinds,
            things=things,
            expression_kinds=tuple(sorts),
        )
