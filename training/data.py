"""Batches as the model takes them, from a source of samples (`samples.Source`).

Which batch a step gets depends on the source and the step alone, so that a resumed run sees what an
uninterrupted one would have seen, with any number of workers and processes.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ris.engines.errors import RisError
from ris.engines.text import reason_of
from ris.reference.dfam.categories import COCO_PANOPTIC
from ris.reference.dfam.config import ModelConfig
from ris.reference.dfam.preprocess import prepare_squares
from ris.reference.preprocess import token_ids
from ris.training.loading import AHEAD, Loading, leave_signals
from ris.training.samples import Frame, Place, RawBatch, Source
from ris.training.targets import Targets

BACKGROUND = COCO_PANOPTIC.index("background")
"""The category of an expression that has no COCO category, as in the released loader."""


@dataclass(frozen=True)
class About:
    """What is known of a batch beside its tensors."""

    expressions: tuple[str, ...]
    """The expressions' words, N."""

    kinds: tuple[str, ...]
    """The kind of each expression, for reports, N."""

    places: tuple[Place, ...]
    """Where each expression stands (`ReferSource.entry`); () for drawn scenes."""

    left_out: tuple[str, ...]
    """A sentence for each image, expression and outline that could not be used."""


@dataclass
class Kept:
    """The features of a batch's images: those that are stored, and under what the others will be.

    K of the batch's B images are stored.
    """

    keys: tuple[str, ...]
    """The key of each image, B."""

    frames: tuple[Frame, ...]
    """The frame of each image file, B."""

    rows: Tensor
    """Which images are stored, int64 [K]."""

    embeddings: Tensor
    """SAM's embeddings of these, float16 [K, C, s, s]; [0] where there are none."""

    tokens: Tensor
    """CLIP's tokens of these, float16 [K, P, w]; [0] where there are none."""


@dataclass
class Batch:
    """A group of samples as the model takes them: B images and N expressions."""

    squares: Tensor
    """The images whose features are not stored, in their order: RGB, uint8 [U, S, S, 3]."""

    input_ids: Tensor
    """The expressions' tokens, int64 [N, T], padded with 0."""

    category: Tensor
    """The category that each expression is asked with, int64 [N]."""

    targets: Targets
    """What is right."""

    about: About
    """What else is known; in a part of a batch (`split`) that of the whole."""

    config: ModelConfig
    """The model's sizes."""

    kept: Kept | None = None
    """Stored features; None where none are kept, and U is B."""

    group: int = 0
    """The number of the group within its step, over all processes."""

    @property
    def image(self) -> Tensor:
        """SAM's input, float32 [U, 3, S, S], made anew each time."""
        return prepare_squares(self.squares, self.config)[0]

    @property
    def clip_image(self) -> Tensor:
        """CLIP's input, float32 [U, 3, c, c], made anew each time."""
        return prepare_squares(self.squares, self.config)[1]

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Batch:
        """The same batch with its tensors on `device`."""

        def moved(value: Tensor) -> Tensor:
            return value.to(device, non_blocking=non_blocking)

        return replace(
            self,
            squares=moved(self.squares),
            input_ids=moved(self.input_ids),
            category=moved(self.category),
            targets=self.targets.to(device, non_blocking=non_blocking),
            kept=_each(self.kept, moved),
        )

    def pin_memory(self) -> Batch:
        """The same batch in page-locked memory; the DataLoader calls it."""
        return replace(
            self,
            squares=self.squares.pin_memory(),
            input_ids=self.input_ids.pin_memory(),
            category=self.category.pin_memory(),
            targets=self.targets.pin_memory(),
            kept=_each(self.kept, Tensor.pin_memory),
        )

    def split(self, parts: int) -> list[Batch]:
        """The batch cut by images into equal parts: `parts`, or as many as it has images.

        Only of a batch without stored features, as that of drawn scenes is.
        """
        assert self.kept is None
        numbers = torch.arange(len(self.squares))
        pieces = numbers.tensor_split(min(parts, len(numbers)))
        return [self._of_images(int(piece[0]), int(piece[-1]) + 1) for piece in pieces]

    def _of_images(self, first: int, last: int) -> Batch:
        index = self.targets.image_index
        rows = ((index >= first) & (index < last)).nonzero()[:, 0]
        return replace(
            self,
            squares=self.squares[first:last],
            input_ids=self.input_ids[rows],
            category=self.category[rows],
            targets=self.targets.part(rows, first, last),
        )


def _each(kept: Kept | None, change: Any) -> Kept | None:
    """The features with every tensor of them changed."""
    if kept is None:
        return None
    return replace(
        kept,
        rows=change(kept.rows),
        embeddings=change(kept.embeddings),
        tokens=change(kept.tokens),
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


class _Packer(pickle.Pickler):
    """Writes tensors as NumPy's arrays. PyTorch's form is slow, and a view is its whole base."""

    def reducer_override(self, value: Any) -> Any:
        """What pickle asks for each object."""
        if isinstance(value, Tensor):
            return _tensor, (value.numpy(),)
        return NotImplemented


def _tensor(array: NDArray[Any]) -> Tensor:
    return torch.from_numpy(array)


def packed(item: Any) -> bytes:
    """A batch, or what comes in its place, as bytes for a pipe; `pickle.loads` reads them."""
    file = io.BytesIO()
    _Packer(file, pickle.HIGHEST_PROTOCOL).dump(item)
    return file.getvalue()


class _Items(Dataset[Any]):
    """The batches of steps `first` to `last` (exclusive) one after another; see `batches`.

    An item is a `Batch`, None where the source has nothing, or the RisError that was raised; any of
    them as bytes where workers hand over in pipes.
    """

    def __init__(
        self,
        source: Source,
        config: ModelConfig,
        tokenizer: Tokenizer,
        steps: range,
        loading: Loading,
    ) -> None:
        self._source, self._config, self._tokenizer = source, config, tokenizer
        self._steps, self._loading = steps, loading
        self.numbers = sorted({own // loading.parts for own in loading.own(source.groups)})

    def __len__(self) -> int:
        return len(self._steps) * len(self.numbers)

    def __getitem__(self, item: int) -> Any:
        step, place = divmod(item, len(self.numbers))
        made: Batch | RisError | None
        try:
            made = self._made(self._steps[step], self.numbers[place])
        except RisError as error:
            made = error  # the DataLoader would make a traceback of its sentence
        return packed(made) if self._loading.pipes else made

    def _made(self, step: int, number: int) -> Batch | None:
        store = self._loading.features
        raw = self._source.batch(step, number, store.read if store else None)
        if raw is None:
            return None
        ids = token_ids(self._tokenizer, raw.expressions, self._config.max_tokens)
        if self._loading.unknown_words:
            # drawn scenes, whose steps have one batch
            generator = np.random.default_rng([step, 2])
            ids = hide_words(ids, self._tokenizer, self._loading.unknown_words, generator)
        numbers = [x.category if x.category >= 0 else BACKGROUND for x in raw.examples]
        category = torch.tensor(numbers)
        return Batch(
            squares=torch.from_numpy(raw.images),
            input_ids=ids,
            category=category,
            targets=_targets(raw, category),
            about=_about(raw),
            config=self._config,
            kept=_kept(raw),
            group=number,
        )


def _about(raw: RawBatch) -> About:
    return About(
        expressions=raw.expressions,
        kinds=tuple(x.kind for x in raw.examples),
        places=tuple(x.place for x in raw.examples if x.place is not None),
        left_out=raw.left_out,
    )


def _kept(raw: RawBatch) -> Kept | None:
    if raw.keys is None:
        return None
    found = [(row, stored) for row, stored in enumerate(raw.stored) if stored is not None]
    empty = np.zeros(0, np.float16)
    embeddings = np.stack([stored.embeddings for _, stored in found]) if found else empty
    tokens = np.stack([stored.tokens for _, stored in found]) if found else empty
    return Kept(
        keys=raw.keys,
        frames=raw.frames,
        rows=torch.tensor([row for row, _ in found], dtype=torch.long),
        embeddings=torch.from_numpy(embeddings),
        tokens=torch.from_numpy(tokens),
    )


def _targets(raw: RawBatch, category: Tensor) -> Targets:
    union = torch.from_numpy(raw.masks)
    each = [
        x.objects if x.objects is not None else x.mask[None][: int(x.present)] for x in raw.examples
    ]
    # one tensor, so that workers hand over one block of memory
    objects = torch.from_numpy(np.concatenate(each)).split([len(masks) for masks in each])
    meanings = [x.meaning for x in raw.examples]
    known = any(meaning is not None for meaning in meanings)
    same = torch.tensor([[a == b for b in meanings] for a in meanings]) if known else None
    return Targets(
        union=union,
        objects=tuple(objects),
        targeted=torch.from_numpy(raw.present),
        image_index=torch.from_numpy(raw.image_index),
        category=category,
        same=same,
        kinds=None if raw.kinds is None else torch.from_numpy(raw.kinds).long(),
        things=None if raw.things is None else torch.from_numpy(raw.things).long(),
    )


def batches(
    source: Source,
    config: ModelConfig,
    tokenizer: Tokenizer,
    first: int,
    last: int,
    loading: Loading | None = None,
) -> Generator[list[Batch]]:
    """This process's groups of each step from `first` to `last` (exclusive).

    Args:
        source: Where the samples come from.
        config: The model that takes the batches.
        tokenizer: Its tokenizer.
        first: The first step.
        last: The step after the last one.
        loading: How they are made, and which are this process's; None: one worker makes all.

    Raises:
        RisError: Where the processes cannot share a step's groups evenly, where nothing of a source
            can be used, and where a worker has died.
    """
    loading = (loading or Loading()).fitting(source.batch_bytes)
    items = _Items(source, config, tokenizer, range(first, last), loading)
    loader: DataLoader[Any] = DataLoader(
        items,
        batch_size=None,
        num_workers=loading.workers,
        prefetch_factor=AHEAD if loading.workers else None,
        multiprocessing_context="fork" if loading.workers else None,
        worker_init_fn=leave_signals if loading.workers else None,
        pin_memory=loading.pinned and not loading.pipes,
    )
    own = set(loading.own(source.groups))
    found = iter(loader)
    for _ in range(first, last):
        step: list[Batch] = []
        for number in items.numbers:
            batch = _received(_next(found), loading)
            if batch is not None:
                step += _groups(batch, number, loading.parts, own)
        yield step


def _next(items: Iterator[Any]) -> Any:
    """The next item. RisError where the worker that makes it has died."""
    try:
        return next(items)
    except RuntimeError as error:
        if not str(error).startswith("DataLoader worker"):
            raise
        raise RisError(
            f"a process that makes batches has ended ({reason_of(error)}); where memory or /dev/shm"
            " ran out, fewer --workers need less"
        ) from error


def _received(item: Any, loading: Loading) -> Batch | None:
    """What a worker handed over."""
    batch: Batch | RisError | None = item
    if loading.pipes:
        batch = pickle.loads(item)  # bytes that this program wrote
    if isinstance(batch, RisError):
        raise batch
    if loading.pipes and loading.pinned and batch is not None:
        return batch.pin_memory()
    return batch


def _groups(batch: Batch, number: int, parts: int, own: set[int]) -> list[Batch]:
    """The groups of batch `number` of a step that are this process's."""
    if parts == 1:
        return [batch]
    pieces = enumerate(batch.split(parts), start=number * parts)
    return [replace(piece, group=group) for group, piece in pieces if group in own]
