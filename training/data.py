"""Batches from a source of samples.

A source is anything with `batch(step)`. Which batch it gives depends on the step alone, so that a
resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ris.reference.categories import COCO_PANOPTIC
from ris.reference.config import ModelConfig
from ris.reference.preprocess import prepare_squares, token_ids
from ris.training.targets import Targets

BACKGROUND = COCO_PANOPTIC.index("background")
"""The category of an expression that has no COCO category, as in the released loader."""


@dataclass(frozen=True)
class Example:
    """One expression about one image of a batch, and what is right."""

    image_index: int
    """Which image of the batch it is about."""

    expression: str
    """The expression's words."""

    mask: NDArray[np.bool_]
    """What it refers to, bool [S, S]; empty where that is nothing."""

    present: bool
    """Whether it refers to anything."""

    meaning: Hashable
    """Equal for two examples of a batch exactly where they mean the same thing."""

    category: int
    """The target's index in `COCO_PANOPTIC`, -1 for none."""

    kind: str
    """The kind of expression, for reports."""


@dataclass(frozen=True)
class RawBatch:
    """What a source gives: B images at the model's square of S x S pixels, and N expressions."""

    images: NDArray[np.uint8]
    """RGB, uint8 [B, S, S, 3]."""

    masks: NDArray[np.bool_]
    """What each expression refers to, bool [N, S, S]."""

    present: NDArray[np.bool_]
    """Whether it refers to anything, bool [N]."""

    image_index: NDArray[np.int64]
    """Which image it is about, int64 [N]."""

    expressions: tuple[str, ...]
    """The expressions' words, N."""

    meaning: tuple[Hashable, ...]
    """N values, equal where two expressions mean the same thing."""

    categories: NDArray[np.int64]
    """Each target's index in `COCO_PANOPTIC`, int64 [N], -1 for none."""

    kinds: NDArray[np.uint8] | None
    """The kind of thing that each pixel shows, uint8 [B, S, S] (see `Targets`), or None."""

    things: NDArray[np.uint8] | None
    """Which of the image's things each pixel shows, uint8 [B, S, S] (see `Targets`), or None."""

    expression_kinds: tuple[str, ...]
    """The kind of each expression, for reports, N."""

    image_keys: tuple[str, ...] | None = None
    """Names of the B images, under which their features are stored.

    None where images do not come again.
    """

    left_out: tuple[str, ...] = ()
    """A sentence for each image, expression and outline that could not be used."""


def raw_batch(
    images: Sequence[NDArray[np.uint8]],
    examples: Sequence[Example],
    *,
    kinds: NDArray[np.uint8] | None = None,
    things: NDArray[np.uint8] | None = None,
    image_keys: tuple[str, ...] | None = None,
) -> RawBatch:
    """A batch of these images and examples.

    Args:
        images: The B images, uint8 RGB [S, S, 3] each.
        examples: The N expressions about them, in the batch's order.
        kinds: See `RawBatch`.
        things: See `RawBatch`.
        image_keys: See `RawBatch`.
    """
    return RawBatch(
        images=np.stack(images),
        masks=np.stack([x.mask for x in examples]),
        present=np.asarray([x.present for x in examples]),
        image_index=np.asarray([x.image_index for x in examples], np.int64),
        expressions=tuple(x.expression for x in examples),
        meaning=tuple(x.meaning for x in examples),
        categories=np.asarray([x.category for x in examples], np.int64),
        kinds=kinds,
        things=things,
        expression_kinds=tuple(x.kind for x in examples),
        image_keys=image_keys,
    )


class Source(Protocol):
    """Where samples come from."""

    kinds: int
    """Kinds of things in `RawBatch.kinds`, background not counted; 0 where there are none."""

    def batch(self, step: int) -> RawBatch:
        """The batch of `step`, always the same one."""
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


@dataclass
class Batch:
    """A batch as the model takes it: B images and N expressions."""

    image: Tensor
    """SAM's input, float32 [B, 3, S, S]."""

    clip_image: Tensor
    """CLIP's input, float32 [B, 3, c, c]."""

    input_ids: Tensor
    """The expressions' tokens, int64 [N, T], padded with 0."""

    category: Tensor
    """The category that each expression is asked with, int64 [N]."""

    targets: Targets
    """What is right."""

    raw: RawBatch
    """What the source gave; in a part of a batch (`split`) that of the whole, but for the keys."""

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        return Batch(
            image=self.image.to(device),
            clip_image=self.clip_image.to(device),
            input_ids=self.input_ids.to(device),
            category=self.category.to(device),
            targets=self.targets.to(device),
            raw=self.raw,
        )

    def split(self, parts: int) -> list[Batch]:
        """The batch cut by images into equal parts: `parts`, or as many as it has images."""
        numbers = torch.arange(len(self.image))
        pieces = numbers.tensor_split(min(parts, len(numbers)))
        return [self._of_images(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]

    def _of_images(self, first: int, last: int) -> Batch:
        index, keys = self.targets.image_index, self.raw.image_keys
        rows = ((index >= first) & (index < last)).nonzero()[:, 0]
        return Batch(
            image=self.image[first:last],
            clip_image=self.clip_image[first:last],
            input_ids=self.input_ids[rows],
            category=self.category[rows],
            targets=self.targets.part(rows, first, last),
            raw=replace(self.raw, image_keys=None if keys is None else keys[first:last]),
        )


def hide_words(
    ids: Tensor, tokenizer: Tokenizer, share: float, generator: np.random.Generator
) -> Tensor:
    """Pushes [UNK] in before a word of some expressions, in place.

    Args:
        ids: The expressions' tokens, int64 [N, T], padded with 0.
        tokenizer: The tokenizer that they come from.
        share: The share of expressions that get one.
        generator: Draws the expressions and the places.

    Returns:
        `ids` itself.
    """
    unknown = tokenizer.token_to_id("[UNK]") or 0
    lengths = (ids != 0).sum(1)
    for row in range(len(ids)):
        length = int(lengths[row])
        if generator.random() < share and 3 <= length < ids.shape[1]:
            at = int(generator.integers(1, length - 1))
            ids[row, at + 1 : length + 1] = ids[row, at:length].clone()
            ids[row, at] = unknown
    return ids


class _Steps(Dataset[Batch]):
    """The batches of steps `first` to `last` (exclusive); see `batches`."""

    def __init__(
        self,
        source: Source,
        config: ModelConfig,
        tokenizer: Tokenizer,
        first: int,
        last: int,
        unknown_words: float,
    ) -> None:
        self.source, self.config, self.tokenizer = source, config, tokenizer
        self.first, self.last, self.unknown_words = first, last, unknown_words

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, item: int) -> Batch:
        step = self.first + item
        raw = self.source.batch(step)
        image, clip_image = prepare_squares(raw.images, self.config)
        ids = token_ids(self.tokenizer, raw.expressions, self.config.max_tokens)
        if self.unknown_words:
            generator = np.random.default_rng([step, 2])
            ids = hide_words(ids, self.tokenizer, self.unknown_words, generator)
        categories = torch.from_numpy(np.where(raw.categories < 0, BACKGROUND, raw.categories))
        return Batch(image, clip_image, ids, categories, _targets(raw), raw)


def _targets(raw: RawBatch) -> Targets:
    return Targets(
        masks=torch.from_numpy(raw.masks).float(),
        present=torch.from_numpy(raw.present),
        image_index=torch.from_numpy(raw.image_index),
        same=torch.tensor([[a == b for b in raw.meaning] for a in raw.meaning]),
        kinds=None if raw.kinds is None else torch.from_numpy(raw.kinds).long(),
        things=None if raw.things is None else torch.from_numpy(raw.things).long(),
    )


def batches(
    source: Source,
    config: ModelConfig,
    tokenizer: Tokenizer,
    first: int,
    last: int,
    *,
    unknown_words: float = 0.0,
    workers: int = 1,
) -> Iterator[Batch]:
    """The batches of steps `first` to `last` (exclusive).

    Args:
        source: Where the samples come from.
        config: The model that takes the batches.
        tokenizer: Its tokenizer.
        first: The first step.
        last: The step after the last one.
        unknown_words: The share of expressions that get an unknown word (`hide_words`).
        workers: Processes that make batches ahead; 0: they are made here, one by one.
    """
    loader: DataLoader[Batch] = DataLoader(
        _Steps(source, config, tokenizer, first, last, unknown_words),
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)
