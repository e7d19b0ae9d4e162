"""How well a model does on what it is validated on, and pictures of its answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ris.engines.errors import Skipped
from ris.evaluation.metrics import SCENES, Figures, Tally
from ris.reference.dfam.model import RISModel
from ris.runtime.masks import mask_from_logits
from ris.runtime.orientation import turned_mask
from ris.runtime.picture_files import load_picture
from ris.training.data import Batch, batches
from ris.training.forward import ask
from ris.training.loading import Loading
from ris.training.pictures import Tile, sheet
from ris.training.refer_source import ReferSubset
from ris.training.samples import Source
from ris.training.step import Encode

TILES = 12
"""Answers that a validation shows."""


@dataclass(frozen=True)
class Answer:
    """One answer, beside what is right."""

    number: int
    """The number of the question."""

    kind: str
    """The kind of expression, for reports."""

    mask: NDArray[np.bool_]
    """The answer, bool [H, W], whatever the no-target head says."""

    truth: NDArray[np.bool_]
    """What is meant, bool [H, W]."""

    refused: bool
    """Whether the no-target head says that nothing is meant."""

    targeted: bool
    """Whether anything is meant."""

    expression: str
    """The question."""

    picture: Callable[[], NDArray[np.uint8]]
    """Gives the picture as it is shown, uint8 [h, w, 3]."""

    orientation: int = 1
    """EXIF's, by which the masks' frame is turned to be shown; 1 where it is not."""


@dataclass(frozen=True)
class Share:
    """Which part of the questions a process asks."""

    index: int = 0
    """The number of the process."""

    count: int = 1
    """How many processes ask."""

    def of(self, total: int) -> range:
        """Its part of so many."""
        return range(total * self.index // self.count, total * (self.index + 1) // self.count)


@dataclass(frozen=True)
class Asker:
    """Who asks: the model, and how its images are encoded."""

    model: RISModel
    """The model, in evaluation mode."""

    encode: Encode
    """Its image encoders, or what they have stored."""

    loading: Loading
    """How batches are made."""

    share: Share
    """Which part of the questions is this process's."""


class Validation(Protocol):
    """What a model is validated on: the same questions each time."""

    metric: str
    """The figure that says which weights are best, unless another is asked for; more is better."""

    steps: int
    """Batches of all questions."""

    @property
    def identity(self) -> str:
        """What is asked and who counts it, in words: figures of two identities do not compare."""
        ...

    @property
    def metrics(self) -> tuple[str, ...]:
        """The names of the figures."""
        ...

    def answers(self, asker: Asker, skipped: Skipped) -> Iterator[Answer]:
        """The answers to the process's share of the questions.

        skipped: gets a sentence for each question that cannot be asked.
        """
        ...

    def score(self, figures: Figures) -> dict[str, float]:
        """The figures by name; those that no answer counts for are left out."""
        ...


@dataclass(frozen=True)
class Validated:
    """What a validation found."""

    figures: dict[str, dict[str, float]]
    """Figures by name, by kind of expression and, under "all", over everything."""

    picture: NDArray[np.uint8] | None
    """The first answers of the main process, uint8 RGB [H, W, 3]; None without any."""


@torch.no_grad()
def validate(
    asker: Asker, validation: Validation, accelerator: Accelerator, skipped: Skipped
) -> Validated:
    """Asks the model everything, each process its share.

    Args:
        asker: The model; it is left in training mode if it was.
        validation: The questions.
        accelerator: The device, its precision, and the other processes.
        skipped: Gets a sentence for each sample that cannot be used.
    """
    was_training = asker.model.training
    asker.model.eval()
    tally = Tally()
    about: list[tuple[int, str]] = []
    tiles: list[Tile] = []
    try:
        with accelerator.autocast():
            for answer in validation.answers(asker, skipped):
                tally.add(answer.mask, answer.truth, answer.refused, answer.targeted)
                about.append((answer.number, answer.kind))
                if len(tiles) < TILES:
                    tiles.append(_tile(answer))
    finally:
        asker.model.train(was_training)

    rows = [(*key, row) for key, row in zip(about, tally.rows, strict=True)]
    found: list[tuple[int, str, tuple[int, int, int, bool, bool]]] = gather_object(rows)
    tallies: dict[str, Tally] = defaultdict(Tally)
    for _, kind, row in sorted(found):
        for name in ("all", kind):
            tallies[name].rows.append(row)
    names = ("all", *sorted(set(tallies) - {"all"}))
    if len(names) == 2:  # one kind alone is all
        names = ("all",)
    figures = {name: validation.score(tallies[name].figures()) for name in names}
    return Validated(figures, sheet(tiles) if tiles else None)


def _tile(answer: Answer) -> Tile:
    mask = answer.mask & (not answer.refused)
    words = f"{answer.expression} - nothing" if answer.refused else answer.expression
    shown, truth = (turned_mask(one, answer.orientation) for one in (mask, answer.truth))
    return Tile(answer.picture(), shown, truth, words)


class BatchValidation:
    """The first batches of a source, at the model's square, counted as the scenes are.

    Args:
        source: Where the samples come from.
        steps: How many of its steps are asked.
        tokenizer: The tokenizer of the expressions.
    """

    metric = "miou"

    def __init__(self, source: Source, steps: int, tokenizer: Tokenizer) -> None:
        self.source, self.steps, self.tokenizer = source, steps, tokenizer

    @property
    def identity(self) -> str:
        return f"{self.steps} batches of {self.source.identity}"

    @property
    def metrics(self) -> tuple[str, ...]:
        pair = np.array([1, 1])
        some = Figures(pair, pair, pair, pair > 1, np.array([True, False]))
        return tuple(self.score(some))

    def score(self, figures: Figures) -> dict[str, float]:
        """As drawn scenes are counted."""
        return SCENES.score(figures)

    def answers(self, asker: Asker, skipped: Skipped) -> Iterator[Answer]:
        """The answers to each batch's expressions."""
        device = next(asker.model.parameters()).device
        own = asker.share.of(self.steps)
        config = asker.model.config
        number = own.start << 20
        for groups in batches(
            self.source, config, self.tokenizer, own.start, own.stop, asker.loading
        ):
            for batch in groups:
                for sentence in batch.about.left_out:
                    skipped(sentence)
                logits, refused = _asked(asker, batch.to(device))
                for i, low in enumerate(logits):
                    answer = self.answer(batch, i, low, bool(refused[i]), number)
                    number += 1
                    if answer is not None:
                        yield answer

    def answer(
        self, batch: Batch, i: int, logits: NDArray[np.float32], refused: bool, number: int
    ) -> Answer | None:
        """One answer beside what is right; None where the expression does not count.

        Args:
            batch: The batch.
            i: The number of the expression in it.
            logits: The mask's logits, float32 [m, m].
            refused: Whether the no-target head refuses it.
            number: The number of the question.
        """
        truth = batch.targets.union[i].numpy()
        return Answer(
            number=number,
            kind=batch.about.kinds[i],
            mask=mask_from_logits(logits, *truth.shape),
            truth=truth,
            refused=refused,
            targeted=bool(batch.targets.targeted[i]),
            expression=batch.about.expressions[i],
            picture=partial(self.picture, batch, i),
        )

    def picture(self, batch: Batch, i: int) -> NDArray[np.uint8]:
        """The picture of expression `i` of a batch, uint8 [h, w, 3]."""
        if isinstance(self.source, ReferSubset):  # whose batches lack images with stored features
            place = batch.about.places[i]
            return np.asarray(load_picture(self.source.entry(place).image.path).pixels)
        image: NDArray[np.uint8] = batch.squares[int(batch.targets.image_index[i])].numpy()
        return image


def _asked(asker: Asker, batch: Batch) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Mask logits [N, m, m] of a batch's expressions, and whether they are refused, [N]."""
    model, index = asker.model, batch.targets.image_index
    encoded = asker.encode(model, batch)
    out = ask(model, *encoded, batch.input_ids, index, batch.category)
    logits: NDArray[np.float32] = out.mask_logits[:, 0].float().cpu().numpy()
    if out.no_target_logits is None:
        return logits, np.zeros(len(logits), np.bool_)
    decided = out.no_target_logits
    return logits, (decided[:, 1] > decided[:, 0]).cpu().numpy()
