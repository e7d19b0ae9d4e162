"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO as a source of training samples."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageOps

from ris.data.datasets import ReferData, reference_mask
from ris.engines.errors import RisError
from ris.reference.categories import COCO_PANOPTIC
from ris.training.data import RawBatch


class ReferSource:
    """`images` images a batch with up to `expressions` of their expressions each, the images
    shuffled every epoch; without `shuffle` in the order of the split, with every expression.

    Batch `step` depends on the seed and the step alone. Images and masks are brought to the model's
    square: Pillow's bilinear filter and the nearest pixel.
    """

    kinds = 0  # no pretext labels: the encoders come trained

    def __init__(
        self,
        data: ReferData,
        size: int,
        images: int,
        expressions: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
    ) -> None:
        self.data, self.size, self.images, self.expressions = data, size, images, expressions
        self.seed, self.shuffle = seed, shuffle

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-len(self.data.images) // self.images)

    def image_numbers(self, step: int) -> list[int]:
        """Which images of the split batch `step` shows."""
        epoch, inside = divmod(step, len(self))
        count = len(self.data.images)
        order = (
            np.random.default_rng([self.seed, epoch]).permutation(count)
            if self.shuffle
            else np.arange(count)
        )
        return [int(i) for i in order[inside * self.images : (inside + 1) * self.images]]

    def batch(self, step: int) -> RawBatch:
        """The images of `image_numbers(step)`. Raises RisError for an image that cannot be read."""
        generator = np.random.default_rng([self.seed, step, 1])
        images, masks, present, index, words, meaning, categories = [], [], [], [], [], [], []
        for place, number in enumerate(self.image_numbers(step)):
            entry = self.data.images[number]
            try:
                with Image.open(entry.path) as opened:
                    picture = ImageOps.exif_transpose(opened).convert("RGB")
            except OSError as error:
                raise RisError(f"{entry.path} cannot be read: {error}") from error
            images.append(
                np.asarray(picture.resize((self.size, self.size), Image.Resampling.BILINEAR))
            )
            chosen = np.arange(len(entry.references))
            if self.shuffle:
                chosen = generator.permutation(chosen)[: self.expressions]
            for which in chosen:
                reference = entry.references[int(which)]
                mask = Image.fromarray(reference_mask(self.data, entry, reference))
                masks.append(
                    np.asarray(mask.resize((self.size, self.size), Image.Resampling.NEAREST))
                )
                present.append(bool(reference.annotations))
                index.append(place)
                words.append(reference.expression)
                meaning.append(
                    (number, reference.annotations)
                    if reference.annotations
                    else reference.expression
                )
                name = reference.category
                categories.append(COCO_PANOPTIC.index(name) if name in COCO_PANOPTIC else -1)
        return RawBatch(
            images=np.stack(images),
            masks=np.stack(masks),
            present=np.asarray(present),
            image_index=np.asarray(index, np.int64),
            expressions=tuple(words),
            meaning=tuple(meaning),
            categories=np.asarray(categories, np.int64),
            kinds=None,
            things=None,
            expression_kinds=("expression",) * len(words),
            image_keys=tuple(self.data.images[i].path.stem for i in self.image_numbers(step)),
        )
