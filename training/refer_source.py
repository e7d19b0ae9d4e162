"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO as a source of training samples."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from ris.data.datasets import ReferData, Reference, ReferImage, reference_mask
from ris.engines.errors import RisError
from ris.reference.categories import COCO_PANOPTIC
from ris.training.data import Example, RawBatch, raw_batch


class ReferSource:
    """Batches of a data set's images and expressions.

    Batch `step` depends on the seed and the step alone. Images and masks are brought to the model's
    square: images by Pillow's bilinear filter, masks by the nearest pixel.

    Args:
        data: The data set's split.
        size: The side of the model's square in pixels.
        images: Images in a batch; an epoch's last batch may have fewer.
        expressions: The most expressions per image.
        seed: Seed of the order of images and of the choice of expressions.
        shuffle: Whether images are shuffled every epoch. Otherwise they come in the order of the
            split, with every expression.
    """

    kinds = 0
    """No pretext labels: the encoders are pre-trained."""

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
        order = np.arange(len(self.data.images))
        if self.shuffle:
            order = np.random.default_rng([self.seed, epoch]).permutation(len(order))
        return [int(i) for i in order[inside * self.images : (inside + 1) * self.images]]

    def batch(self, step: int) -> RawBatch:
        """The images of `image_numbers(step)`. Raises RisError for an image that cannot be read."""
        generator = np.random.default_rng([self.seed, step, 1])
        numbers = self.image_numbers(step)
        images = []
        examples: list[Example] = []

        for place, number in enumerate(numbers):
            image = self.data.images[number]
            images.append(self._square(_picture(image.path), Image.Resampling.BILINEAR))
            chosen = np.arange(len(image.references))
            if self.shuffle:
                chosen = generator.permutation(chosen)[: self.expressions]
            for which in chosen:
                examples.append(self._example(place, number, image.references[int(which)]))

        keys = tuple(self.data.images[number].path.stem for number in numbers)
        return raw_batch(images, examples, image_keys=keys)

    def _example(self, place: int, number: int, reference: Reference) -> Example:
        """The reference, about image `number` of the split, which is at `place` in the batch."""
        image: ReferImage = self.data.images[number]
        mask = Image.fromarray(reference_mask(self.data, image, reference))
        annotations, category = reference.annotations, reference.category
        return Example(
            image_index=place,
            expression=reference.expression,
            mask=self._square(mask, Image.Resampling.NEAREST),
            present=bool(annotations),
            # two expressions without a target mean the same only in the same words
            meaning=(number, annotations) if annotations else reference.expression,
            category=COCO_PANOPTIC.index(category) if category in COCO_PANOPTIC else -1,
            kind="expression",
        )

    def _square(self, picture: Image.Image, resampling: Image.Resampling) -> NDArray:
        return np.asarray(picture.resize((self.size, self.size), resampling))


def _picture(path: Path) -> Image.Image:
    """The file's image in RGB, turned as its EXIF data says."""
    try:
        with Image.open(path) as opened:
            return ImageOps.exif_transpose(opened).convert("RGB")
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error}") from error
