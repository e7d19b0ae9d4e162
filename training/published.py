"""Validation on a subset of a data set's split as its papers count: the published evaluator's
truths, sizes, refusals and figures.
"""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from ris.data.datasets.refer_files import ReferFiles, as_published
from ris.engines.errors import RisError
from ris.evaluation.answers import frame_of, stored_logits
from ris.evaluation.metrics import Figures
from ris.evaluation.protocols.masks import from_logits
from ris.evaluation.protocols.questions import Question
from ris.evaluation.protocols.table import DEFAULTS
from ris.evaluation.scoring import rules_of
from ris.runtime.picture_files import load_picture
from ris.training.data import Batch
from ris.training.measure import Answer, BatchValidation
from ris.training.reading import guarded
from ris.training.refer_source import ReferSubset


class PublishedValidation(BatchValidation):
    """A fixed random subset of a split, counted by a published evaluator.

    What that evaluator does not ask does not count.

    Args:
        subset: The sentences, of the one data set.
        files: That data set.
        split: The split that the subset is of.
        tokenizer: The tokenizer of the expressions.
        protocol: The evaluator; None: the one that the data set's papers use.

    Raises:
        RisError: Where the evaluator does not count the data set, or asks nothing of the subset.
    """

    def __init__(
        self,
        subset: ReferSubset,
        files: ReferFiles,
        split: str,
        tokenizer: Tokenizer,
        protocol: str | None = None,
    ) -> None:
        super().__init__(subset, subset.steps, tokenizer)
        self.protocol = protocol or DEFAULTS[files.name]
        self._rules = rules_of(self.protocol, files.name)
        self._subset, self._files = subset, files
        with as_published(f"one of {files.name}'s files"):
            asked = guarded(self._rules.asking(split)).of(files, split).asked
        self._questions = {(q.reference_id, q.sentence_id): q for q in asked}
        if not self._questions:
            raise RisError(f"{self.protocol} asks nothing of {files.name}'s {split}")
        self.metric = "gIoU" if "gIoU" in self.metrics else "mIoU"

    @property
    def identity(self) -> str:
        return f"{super().identity}, counted by {self.protocol}"

    def score(self, figures: Figures) -> dict[str, float]:
        """The figures under the evaluator's own names; shares are percentages as it prints them."""
        return {k: float(v) for k, v in self._rules.metrics(figures).items() if v == v}

    def answer(
        self, batch: Batch, i: int, logits: NDArray[np.float32], refused: bool, number: int
    ) -> Answer | None:
        """The answer and the truth at the evaluator's size; None for what it does not ask.

        Args:
            batch: The batch.
            i: The number of the expression in it.
            logits: The mask's logits, float32 [m, m].
            refused: Whether the no-target head refuses it.
            number: The number of the question.
        """
        entry = self._subset.entry(batch.about.places[i])
        key = entry.reference.reference_id, entry.reference.sentence_id
        question: Question | None = self._questions.get(key)
        if question is None:
            return None
        stated = entry.image.height, entry.image.width
        orientation = _orientation(entry.image.path, stated)
        stored = stored_logits(logits, orientation)
        with as_published(f"one of {self._files.name}'s files"):
            truth = self._rules.truth(question, self._files)
        return Answer(
            number=number,
            kind="expression",
            mask=from_logits(stored, self._rules.truth.side, stated),
            truth=truth,
            refused=refused and self._rules.refusals,
            targeted=question.targeted,
            expression=question.text,
            picture=functools.partial(self.picture, batch, i),
            orientation=orientation,
        )


@functools.cache
def _orientation(path: Path, stated: tuple[int, int]) -> int:
    """By what a file's own frame, that of the outlines, is turned; 1 where it is not."""
    return frame_of(load_picture(path), stated, path.name)
