"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO as a source of training samples."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.data.datasets import ReferData, Reference, reference_mask
from ris.data.datasets.outlines import check_size
from ris.data.samples import place_of
from ris.engines.errors import RisError, Skipped
from ris.reference.categories import COCO_PANOPTIC
from ris.runtime.image import Picture, load_picture
from ris.runtime.text import check_expression
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
        """The images of `image_numbers(step)`.

        What cannot be used is left out and named. Where nothing of a batch can be used, it is the
        next one that has something.

        Raises:
            RisError: Where nothing of the whole split can be used.
        """
        left_out: list[str] = []
        for later in range(step, step + len(self)):
            found = self._batch(later, left_out.append)
            if found is not None:
                return replace(found, left_out=tuple(left_out))
        split = f"{self.data.name}'s split {self.data.split}"
        raise RisError(f"nothing of {split} can be used; the first reason: {left_out[0]}")

    def _batch(self, step: int, skipped: Skipped) -> RawBatch | None:
        """What can be used of the images of `image_numbers(step)`; None where nothing can."""
        generator = np.random.default_rng([self.seed, step, 1])
        images: list[NDArray[np.uint8]] = []
        keys: list[str] = []
        examples: list[Example] = []
        for number in self.image_numbers(step):
            image = self.data.images[number]
            try:
                picture = load_picture(image.path)
                check_size(image, picture)
            except RisError as error:
                skipped(str(error))
                continue
            own = self._examples(number, len(images), picture, generator, skipped)
            if own:
                rgb = Image.fromarray(np.asarray(picture.pixels))
                images.append(self._square(rgb, Image.Resampling.BILINEAR))
                keys.append(image.path.stem)
                examples += own
        return raw_batch(images, examples, image_keys=tuple(keys)) if images else None

    def _examples(
        self,
        number: int,
        place: int,
        picture: Picture,
        generator: np.random.Generator,
        skipped: Skipped,
    ) -> list[Example]:
        """What the batch asks about one image.

        Args:
            number: The image's number in the split.
            place: Its number in the batch.
            picture: Its pixels.
            generator: Draws the expressions.
            skipped: Gets a sentence for each expression and outline that cannot be used.
        """
        image = self.data.images[number]
        order, most = np.arange(len(image.references)), len(image.references)
        if self.shuffle:
            order, most = generator.permutation(order), self.expressions

        examples: list[Example] = []
        for which in order:
            if len(examples) == most:
                break
            reference = image.references[int(which)]
            try:
                check_expression(reference.expression)
                mask = reference_mask(self.data, image, reference, picture)
            except RisError as error:
                skipped(f"{place_of(self.data, image, reference)}: {error}")
                continue
            examples.append(self._example(place, number, reference, mask))
        return examples

    def _example(
        self, place: int, number: int, reference: Reference, mask: NDArray[np.bool_]
    ) -> Example:
        """The reference, about image `number` of the split, which is at `place` in the batch."""
        annotations, category = reference.annotations, reference.category
        return Example(
            image_index=place,
            expression=reference.expression,
            mask=self._square(Image.fromarray(mask), Image.Resampling.NEAREST),
            present=bool(annotations),
            # two expressions without a target mean the same only in the same words
            meaning=(number, annotations) if annotations else reference.expression,
            category=COCO_PANOPTIC.index(category) if category in COCO_PANOPTIC else -1,
            kind="expression",
        )

    def _square(self, picture: Image.Image, resampling: Image.Resampling) -> NDArray:
        return np.asarray(picture.resize((self.size, self.size), resampling))
