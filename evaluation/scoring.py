"""Scoring a file of answers under the published evaluators, on all cores.

Truths and masks are made in worker processes, a few references at a time, so that no more of them
is in memory than is being compared.
"""

from __future__ import annotations

import contextlib
import multiprocessing
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import groupby

import numpy as np

from ris.data.datasets.refer_files import ReferFiles, as_published, splits_of
from ris.engines.errors import RisError
from ris.engines.processor import usable_cores
from ris.evaluation.metrics import Figures, Tally
from ris.evaluation.predictions import Key, Prediction, Predictions
from ris.evaluation.protocols.counting import Counted, Metrics
from ris.evaluation.protocols.masks import from_mask
from ris.evaluation.protocols.questions import Question, Questions
from ris.evaluation.protocols.table import PROTOCOLS, Rules
from ris.evaluation.protocols.truths import OWN, Mask, Side

_AT_ONCE = 64  # questions that a worker is given

Report = Callable[[int, int], None]
"""Called with the number of answers that are counted, and of all."""


@dataclass(frozen=True)
class Scored:
    """What a file of answers scores under one evaluator."""

    protocol: str
    """The evaluator, one of `PROTOCOLS`."""

    metrics: Metrics
    """The figures, unrounded, under the names of its own output."""

    printed: list[str]
    """The lines that it prints."""

    questions: tuple[Question, ...]
    """What was asked, in its order."""

    figures: Figures
    """The answers against their truths, in that order."""

    counted: Counted
    """What each adds."""

    left_out: dict[int, str]
    """Reference id -> why the published loader drops it or stops at it."""

    stops: frozenset[int]
    """Those of them at which it stops with an error."""

    missing: tuple[tuple[int, int], ...] = ()
    """(reference id, sentence id) of the questions without an answer; each counts as an empty mask
    that is not a refusal."""

    unreadable: tuple[str, ...] = field(default=())
    """A sentence for each answer whose mask cannot be read; it counts as a missing one."""

    other_words: int = 0
    """How many of the answers are to another text than this evaluator asks."""


def protocols_of(dataset: str) -> list[str]:
    """The evaluators that can count a data set."""
    return [name for name, protocol in PROTOCOLS.items() if dataset in protocol.rules]


def rules_of(name: str, dataset: str) -> Rules:
    """The rules of an evaluator for a data set.

    Raises:
        RisError: Where there are none.
    """
    protocol = PROTOCOLS[name]
    if dataset not in protocol.rules:
        raise RisError(
            f"protocol {name} does not count {dataset}; it counts"
            f" {', '.join(protocol.rules)}, and {dataset} is counted by"
            f" {', '.join(protocols_of(dataset))}"
        )
    return protocol.rules[dataset]


def score(
    files: ReferFiles,
    split: str,
    name: str,
    predictions: Predictions,
    report: Report = lambda done, total: None,
) -> Scored:
    """What answers score under one evaluator.

    Args:
        files: The data set.
        split: As its authors name it.
        name: One of `PROTOCOLS`.
        predictions: The answers.
        report: Called as they are counted.

    Raises:
        RisError: Where the evaluator does not count the data set, or the split is not there.
    """
    rules = rules_of(name, files.name)
    with as_published(f"one of {files.name}'s files"):
        asked = rules.asking(split).of(files, split)
        require_questions(asked, files, split)

    keys = [predictions.find(q.reference_id, q.sentence_id, q.text) for q in asked.asked]
    work = _Work(files, rules, predictions)
    tally, unreadable = Tally(), []
    with as_published(f"one of {files.name}'s files"):
        for found in _compared(work, asked.asked, keys):
            tally.rows += found.rows
            unreadable += found.unreadable
            report(len(tally.rows), len(keys))

    missing = [
        (q.reference_id, q.sentence_id)
        for q, key in zip(asked.asked, keys, strict=True)
        if key is None
    ]
    scored = summed(name, rules, asked, tally.figures(), tuple(missing), tuple(unreadable))
    answered = ((q.text, key[2]) for q, key in zip(asked.asked, keys, strict=True) if key)
    other = sum(text is not None and text != asked_text for asked_text, text in answered)
    return replace(scored, other_words=other)


def require_questions(asked: Questions, files: ReferFiles, split: str) -> None:
    """Raises RisError where a split has nothing to be asked."""
    if not asked.references:
        raise RisError(f"{files.name} has no split {split!r}; it has {', '.join(splits_of(files))}")


def summed(
    name: str,
    rules: Rules,
    asked: Questions,
    figures: Figures,
    missing: tuple[tuple[int, int], ...] = (),
    unreadable: tuple[str, ...] = (),
) -> Scored:
    """The figures of answers that are compared already.

    Args:
        name: The evaluator.
        rules: Its rules for the data set.
        asked: The questions.
        figures: The answers against their truths, one for each question in order.
        missing: The questions without an answer.
        unreadable: A sentence for each answer that cannot be read.
    """
    metrics = rules.metrics(figures)
    return Scored(
        protocol=name,
        metrics=metrics,
        printed=rules.lines(metrics),
        questions=asked.asked,
        figures=figures,
        counted=rules.count(figures),
        left_out=asked.left_out,
        stops=asked.stops,
        missing=missing,
        unreadable=unreadable,
    )


@dataclass(frozen=True)
class _Work:
    """What every worker needs; it is inherited, not sent."""

    files: ReferFiles
    """The data set."""

    rules: Rules
    """The evaluator's rules for it."""

    predictions: Predictions
    """The answers."""


@dataclass(frozen=True)
class _Found:
    """What a worker made of some questions."""

    rows: list[tuple[int, int, int, bool, bool]]
    """Of a `Tally`."""

    unreadable: list[str]
    """A sentence for each answer whose mask cannot be read."""


Portion = list[tuple[Question, Key | None]]

_work: _Work  # of a worker process


def _compared(
    work: _Work, questions: Sequence[Question], keys: Sequence[Key | None]
) -> Iterator[_Found]:
    """Compares all, in order, in as many processes as there are cores."""
    portions = list(_portions(questions, keys))
    workers = min(usable_cores(), len(portions))
    if workers < 2:
        yield from (_compare(work, portion) for portion in portions)
        return
    context = multiprocessing.get_context("fork")  # the models are closed, and their threads
    with ProcessPoolExecutor(workers, context, _begin, (work,)) as pool:
        yield from pool.map(_compare_here, portions)


def _begin(work: _Work) -> None:
    global _work
    _work = work


def _compare_here(portion: Portion) -> _Found:
    return _compare(_work, portion)


def _portions(questions: Sequence[Question], keys: Sequence[Key | None]) -> Iterator[Portion]:
    """Questions with their answers' keys, a reference never cut in two."""
    portion: Portion = []
    pairs = zip(questions, keys, strict=True)
    for _, group in groupby(pairs, key=lambda pair: pair[0].reference_id):
        portion += group
        if len(portion) >= _AT_ONCE:
            yield portion
            portion = []
    if portion:
        yield portion


def _compare(work: _Work, portion: Portion) -> _Found:
    tally, unreadable = Tally(), []
    truths: dict[tuple[int, tuple[int, ...]], Mask] = {}
    for question, key in portion:
        meant = question.reference_id, question.annotations
        if meant not in truths:
            truths = {meant: work.rules.truth(question, work.files)}
        size = _size(work.files, question)
        answer = Prediction((np.zeros(size, np.bool_),), refused=False)
        if key is not None:
            try:
                answer = work.predictions.read(key, size)
            except RisError as error:
                unreadable.append(str(error))
        mask = compared_mask(answer, work.rules.truth.side, size)
        refused = answer.refused and work.rules.refusals
        tally.add(mask, truths[meant], refused, question.targeted)
    return _Found(tally.rows, unreadable)


def mask_and_truth(
    files: ReferFiles, name: str, predictions: Predictions, question: Question
) -> tuple[Mask, Mask]:
    """An answer's mask and its truth, at the size at which an evaluator compares them.

    Args:
        files: The data set.
        name: The evaluator, one of `PROTOCOLS`.
        predictions: The answers.
        question: What is asked; without an answer that can be read the mask is empty.
    """
    rules, size = rules_of(name, files.name), _size(files, question)
    key = predictions.find(question.reference_id, question.sentence_id, question.text)
    truth = rules.truth(question, files)
    if key is not None:
        with contextlib.suppress(RisError):  # `score` names it
            answer = predictions.read(key, size)
            return compared_mask(answer, rules.truth.side, size), truth
    return np.zeros_like(truth), truth


def _size(files: ReferFiles, question: Question) -> tuple[int, int]:
    """The (height, width) of a question's image."""
    image = files.images[question.image_id]
    return int(image["height"]), int(image["width"])


def compared_mask(answer: Prediction, side: Side, size: tuple[int, int]) -> Mask:
    """An answer's mask where an evaluator compares.

    Args:
        answer: The answer.
        side: Where it compares.
        size: The image's (height, width).
    """
    if side == OWN and answer.own is not None:
        return at_size((answer.own,), side, size)
    return at_size(answer.masks, side, size)


def at_size(masks: Sequence[Mask], side: Side, size: tuple[int, int]) -> Mask:
    """Of a mask at several sizes, the one that fits an evaluator best, brought to its size.

    Args:
        masks: bool [h, w] each.
        side: Where it compares.
        size: The image's (height, width).
    """
    order = {(480, 480): 2, size: 1}
    order[(side, side) if isinstance(side, int) else size] = 0
    best = min(masks, key=lambda mask: (order.get(mask.shape, 3), -mask.size))
    return from_mask(best, side, size)
