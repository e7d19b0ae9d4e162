"""What a source of samples gives: images and sentences in NumPy's arrays, before the model's form.

A sample is one sentence about one image, with what it means.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Frame = tuple[int, int, int]
"""An image file's height and width as it is shown, and its EXIF orientation."""

Place = tuple[int, int, int]
"""A sentence: the numbers of its data set in the run, of its image there, and of its reference."""


@dataclass(frozen=True)
class StoredImage:
    """What is stored of one image: the frozen encoders' outputs."""

    embeddings: NDArray[np.float16]
    """SAM's, float16 [C, s, s]."""

    tokens: NDArray[np.float16]
    """CLIP's, float16 [P, w]."""

    frame: Frame
    """Of the image's file, whose pixels need not be decoded again."""


Stored = Callable[[str], StoredImage | None]
"""What is stored under a key; None where that is nothing."""


@dataclass(frozen=True)
class Example:
    """One sentence about one image of a batch, and what is right."""

    image_index: int
    """Which image of the batch it is about."""

    expression: str
    """The sentence's words."""

    mask: NDArray[np.bool_]
    """What it refers to, bool [S, S]; empty where that is nothing."""

    present: bool
    """Whether it refers to anything."""

    category: int
    """The target's index in `COCO_PANOPTIC`, -1 for none."""

    kind: str
    """The kind of expression, for reports."""

    objects: NDArray[np.bool_] | None = None
    """Each object that it refers to, bool [n, S, S]; None: the mask is one object."""

    meaning: Hashable = None
    """Equal for two examples of a batch exactly where they mean the same thing.

    For the demo's losses; None for all of a batch whose source does not know.
    """

    place: Place | None = None
    """Where the sentence stands; None for drawn scenes."""


@dataclass(frozen=True)
class RawBatch:
    """B images at the model's square of S x S pixels, and N sentences about them."""

    images: NDArray[np.uint8]
    """RGB of the images whose features are not stored, in their order, uint8 [U, S, S, 3]."""

    examples: tuple[Example, ...]
    """The N sentences."""

    kinds: NDArray[np.uint8] | None = None
    """The kind of thing that each pixel shows, uint8 [B, S, S] (see `Targets`), or None."""

    things: NDArray[np.uint8] | None = None
    """Which of the image's things each pixel shows, uint8 [B, S, S] (see `Targets`), or None."""

    keys: tuple[str, ...] | None = None
    """Hashes of the B image files, under which their features are stored.

    None where images do not come again.
    """

    frames: tuple[Frame, ...] = ()
    """Those of the B image files, where there are keys."""

    stored: tuple[StoredImage | None, ...] = ()
    """What was found under each of the keys; () where nothing was looked for."""

    left_out: tuple[str, ...] = ()
    """A sentence for each image, expression and outline that could not be used."""

    @property
    def masks(self) -> NDArray[np.bool_]:
        """What each sentence refers to, bool [N, S, S]."""
        return np.stack([x.mask for x in self.examples])

    @property
    def present(self) -> NDArray[np.bool_]:
        """Whether it refers to anything, bool [N]."""
        return np.asarray([x.present for x in self.examples])

    @property
    def image_index(self) -> NDArray[np.int64]:
        """Which image each sentence is about, int64 [N]."""
        return np.asarray([x.image_index for x in self.examples], np.int64)

    @property
    def expressions(self) -> tuple[str, ...]:
        """The sentences' words, N."""
        return tuple(x.expression for x in self.examples)


class Source(Protocol):
    """Where samples come from. Which batch it gives depends on the step and the number alone."""

    kinds: int
    """Kinds of things in `RawBatch.kinds`, background not counted; 0 where there are none."""

    groups: int
    """Batches of a step, which may be made apart."""

    @property
    def identity(self) -> str:
        """What it holds, in words: the same wherever the same samples come in the same order."""
        ...

    @property
    def batch_bytes(self) -> int:
        """Bytes of the images and masks of one batch, about."""
        ...

    def batch(self, step: int, number: int = 0, stored: Stored | None = None) -> RawBatch | None:
        """Batch `number` of `step`, always the same one; None where nothing of it can be used.

        Args:
            step: The step.
            number: Which of the step's batches, below `groups`.
            stored: Finds the features of an image that need not be encoded.
        """
        ...


@dataclass(frozen=True)
class Sources:
    """Where the samples of a run come from."""

    training: Source
    """What the whole model trains on."""

    validation: Source
    """What it is measured on."""

    validation_steps: int = 25
    """How many batches of it."""

    lessons: Source | None = None
    """What the encoders alone train on in a recipe's lessons; None: a run without lessons."""


def squares(images: Sequence[NDArray[np.uint8]], size: int) -> NDArray[np.uint8]:
    """The images as one array, uint8 [U, size, size, 3]; U may be 0."""
    return np.stack(images) if images else np.zeros((0, size, size, 3), np.uint8)
