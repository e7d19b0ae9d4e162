"""Batches from a source of samples. A source is anything with `batch(step)`; which batch it gives
depends on the step alone, so that a resumed run sees what an uninterrupted one would have seen.
"""

from __future__ import annotations

from collections.abc import Iterator
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


@dataclass(frozen=True)
class RawBatch:
    """What a source gives, for B images at the model's square and N expressions.

    images uint8 [B, S, S, 3]; masks bool [N, S, S]; present bool [N]; image_index int64 [N];
    expressions N strings; meaning N hashable values, equal where two expressions mean the same
    thing; categories int64 [N], -1 for none; kinds and things uint8 [B, S, S] or None, see
    `Targets`; expression_kinds N names for reports; image_keys B names of images that come again,
    for stored features, or None.
    """

    images: NDArray[np.uint8]
    masks: NDArray[np.bool_]
    present: NDArray[np.bool_]
    image_index: NDArray[np.int64]
    expressions: tuple[str, ...]
    meaning: tuple[object, ...]
    categories: NDArray[np.int64]
    kinds: NDArray[np.uint8] | None
    things: NDArray[np.uint8] | None
    expression_kinds: tuple[str, ...]
    image_keys: tuple[str, ...] | None = None


class Source(Protocol):
    """Where samples come from."""

    kinds: int

    def batch(self, step: int) -> RawBatch:
        """The batch of `step`, always the same one."""
        ...


@dataclass
class Batch:
    """A batch as the model takes it; see `Targets` and `RawBatch`."""

    image: Tensor
    clip_image: Tensor
    input_ids: Tensor
    category: Tensor
    targets: Targets
    raw: RawBatch

    def to(self, device: torch.device) -> Batch:
        """The same batch with its tensors on `device`."""
        moved = {
            k: v.to(device) if isinstance(v, Tensor) else v for k, v in vars(self.targets).items()
        }
        return Batch(
            image=self.image.to(device),
            clip_image=self.clip_image.to(device),
            input_ids=self.input_ids.to(device),
            category=self.category.to(device),
            targets=Targets(**moved),
            raw=self.raw,
        )

    def split(self, parts: int) -> list[Batch]:
        """The batch cut by images into `parts` equal ones (fewer where there are not that many
        images).
        """
        cut = []
        for images in torch.arange(len(self.image)).tensor_split(min(parts, len(self.image))):
            first, last = int(images[0]), int(images[-1]) + 1
            index = self.targets.image_index
            rows = ((index >= first) & (index < last)).nonzero()[:, 0]
            targets = Targets(
                masks=self.targets.masks[rows],
                present=self.targets.present[rows],
                image_index=index[rows] - first,
                same=self.targets.same[rows][:, rows],
                kinds=None if self.targets.kinds is None else self.targets.kinds[first:last],
                things=None if self.targets.things is None else self.targets.things[first:last],
            )
            keys = self.raw.image_keys
            raw = replace(self.raw, image_keys=None if keys is None else keys[first:last])
            image, clip_image = self.image[first:last], self.clip_image[first:last]
            cut.append(
                Batch(image, clip_image, self.input_ids[rows], self.category[rows], targets, raw)
            )
        return cut


def hide_words(
    ids: Tensor, tokenizer: Tokenizer, share: float, generator: np.random.Generator
) -> Tensor:
    """Some expressions get a word they do not know: [UNK] pushed in before one of their words. In
    place.
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
    def __init__(
        self,
        source: Source,
        config: ModelConfig,
        tokenizer: Tokenizer,
        first: int,
        last: int,
        unknown: float,
    ) -> None:
        self.source, self.config, self.tokenizer = source, config, tokenizer
        self.first, self.last, self.unknown = first, last, unknown

    def __len__(self) -> int:
        return self.last - self.first

    def __getitem__(self, item: int) -> Batch:
        step = self.first + item
        raw = self.source.batch(step)
        image, clip_image = prepare_squares(raw.images, self.config)
        ids = token_ids(self.tokenizer, raw.expressions, self.config.max_tokens)
        if self.unknown:
            ids = hide_words(ids, self.tokenizer, self.unknown, np.random.default_rng([step, 2]))
        # what names no COCO thing is asked as the released loader asks it
        categories = torch.from_numpy(np.where(raw.categories < 0, BACKGROUND, raw.categories))
        same = torch.tensor([[a == b for b in raw.meaning] for a in raw.meaning])
        targets = Targets(
            masks=torch.from_numpy(raw.masks).float(),
            present=torch.from_numpy(raw.present),
            image_index=torch.from_numpy(raw.image_index),
            same=same,
            kinds=None if raw.kinds is None else torch.from_numpy(raw.kinds).long(),
            things=None if raw.things is None else torch.from_numpy(raw.things).long(),
        )
        return Batch(image, clip_image, ids, categories, targets, raw)


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
    """The batches of steps `first` to `last` (exclusive), made ahead by worker processes."""
    steps = _Steps(source, config, tokenizer, first, last, unknown_words)
    loader: DataLoader[Batch] = DataLoader(
        steps,
        batch_size=None,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        multiprocessing_context="fork" if workers else None,
    )
    return iter(loader)
