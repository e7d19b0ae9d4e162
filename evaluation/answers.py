"""Asking a model everything that the published evaluators ask of a data set.

The answers go into a file in the form that `ris-eval score` reads, a line for each expression, at
every size at which an evaluator compares. An evaluation that was stopped goes on behind the last
whole line.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.data.datasets.refer_files import ReferFiles, as_published
from ris.engines.errors import ExpressionError, RisError, Skipped, refuse
from ris.engines.temporary import write_atomically
from ris.engines.text import echoed
from ris.evaluation.protocols.masks import from_logits
from ris.evaluation.protocols.questions import Question
from ris.evaluation.protocols.table import PROTOCOLS
from ris.evaluation.protocols.truths import Side
from ris.evaluation.results import writing
from ris.evaluation.run import Answer, Segmenter
from ris.evaluation.scoring import protocols_of
from ris.runtime.asking import ask_each
from ris.runtime.json_lines import read_json_lines
from ris.runtime.masks import MaskRule, encode_rle, logits_of_picture
from ris.runtime.orientation import turned, turned_size
from ris.runtime.picture_files import Picture, load_picture

Report = Callable[[int], None]
"""Called after each image with the number of answers."""

_BACK = {6: 8, 8: 6}  # the orientations that are not their own way back


@dataclass(frozen=True)
class ToAsk:
    """One image and everything that is asked of it."""

    image_id: int
    """Its id in instances.json."""

    questions: tuple[Question, ...]
    """Each sentence once for each text that some evaluator asks."""


def to_ask(files: ReferFiles, split: str, names: Sequence[str]) -> list[ToAsk]:
    """What is asked of a split by any of these evaluators, image by image."""
    found: dict[int, dict[tuple[int, int, str], Question]] = defaultdict(dict)
    for name in names:
        with as_published(f"one of {files.name}'s files"):
            asked = PROTOCOLS[name].rules[files.name].asking(split).of(files, split)
        for question in asked.asked:
            key = question.reference_id, question.sentence_id, question.text
            found[question.image_id].setdefault(key, question)
    return [ToAsk(number, tuple(questions.values())) for number, questions in found.items()]


def sides_of(dataset: str) -> list[Side]:
    """The sizes at which a data set's evaluators compare."""
    sides = {PROTOCOLS[name].rules[dataset].truth.side for name in protocols_of(dataset)}
    return sorted(sides, key=lambda side: (isinstance(side, int), side or ""))


def answer_all(
    segmenter: Segmenter,
    files: ReferFiles,
    images: Sequence[ToAsk],
    path: Path,
    report: Report = lambda done: None,
    begun: Callable[[int, int], None] = lambda done, total: None,
    skipped: Skipped = refuse,
) -> None:
    """Asks everything that the file has no answer to, and adds the answers to it.

    Args:
        segmenter: The model.
        files: The data set.
        images: What is asked.
        path: The file of answers; it may have some already.
        report: Called after each image.
        begun: Called first where the file has answers, with their number and that of all.
        skipped: Gets a sentence for each image that cannot be read and for each expression that
            cannot be asked.

    Raises:
        RisError: Where the file cannot be written, and by default in place of leaving something
            out.
    """
    done = _drop_torn_line(path)
    wanted = {_key(question) for image in images for question in image.questions}
    count = len(wanted & done)
    if count:
        begun(count, len(wanted))
    with writing(path):
        file = path.open("a", encoding="utf-8")
    with file:
        for image in images:
            if all(_key(question) in done for question in image.questions):
                continue
            try:
                picture, frame = _picture(files, image.image_id)
            except RisError as error:
                skipped(str(error))
                continue
            # all of an image together, as before the stop: so their numbers are the same
            found = _rows(segmenter, files, picture, frame, image.questions, skipped)
            rows = [row for row in found if _row_key(row) not in done]
            with writing(path):
                file.write("".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows))
                file.flush()
            count += len(rows)
            report(count)


def _key(question: Question) -> tuple[int, int, str]:
    return question.reference_id, question.sentence_id, question.text


def _row_key(row: dict[str, Any]) -> tuple[int, int, str]:
    return row["ref_id"], row["sent_id"], row["text"]


def all_answered(path: Path, images: Sequence[ToAsk]) -> bool:
    """Whether a file of answers has one to all that is asked.

    Raises RisError for a line that is none of `answer_all`'s.
    """
    done = _drop_torn_line(path)
    return all(_key(question) in done for image in images for question in image.questions)


def _drop_torn_line(path: Path) -> set[tuple[int, int, str]]:
    """Removes what a killed process left behind the last whole line; the keys of the others."""
    if not path.exists():
        return set()
    with writing(path):
        data = path.read_bytes()
        whole = data[: data.rfind(b"\n") + 1]
        if len(whole) < len(data):
            write_atomically(path, lambda file: file.write(whole))
    keys = set()
    for line in read_json_lines(path):
        try:
            keys.add(_row_key(line.value))
        except (KeyError, TypeError) as error:
            raise RisError(
                f"{path}, line {line.number} is none of ris-eval's; choose another --out, or give"
                " --restart"
            ) from error
    return keys


@dataclass(frozen=True)
class _Frame:
    """The frame of the stored pixels, in which the data set's outlines are."""

    orientation: int
    """By which it is turned to be shown; 1 where it is not."""

    size: tuple[int, int]
    """Its (height, width)."""


def _picture(files: ReferFiles, image_id: int) -> tuple[Picture, _Frame]:
    """An image of the data set. Raises RisError where it cannot be read."""
    with as_published(f"image {image_id} of {files.name}'s instances.json"):
        entry = files.images[image_id]
        stated, name = (int(entry["height"]), int(entry["width"])), str(entry["file_name"])
    picture = load_picture(files.image_file(image_id))
    return picture, _Frame(frame_of(picture, stated, name), stated)


def _rows(
    segmenter: Segmenter,
    files: ReferFiles,
    picture: Picture,
    frame: _Frame,
    asked: Sequence[Question],
    skipped: Skipped,
) -> Iterator[dict[str, Any]]:
    """The lines of one image."""
    rgb = np.asarray(picture.pixels)

    def ask(numbers: Sequence[int]) -> list[Answer]:
        questions = [asked[i] for i in numbers]
        return segmenter.answer(rgb, [q.text for q in questions], [q.category for q in questions])

    for question, answer in zip(asked, ask_each(ask, range(len(asked))), strict=True):
        if isinstance(answer, ExpressionError):
            skipped(
                f"sentence {question.sentence_id} of reference {question.reference_id},"
                f' "{echoed(question.text)}": {answer}'
            )
            continue
        rule, shown = segmenter.rule, (picture.height, picture.width)
        logits = logits_of_picture(answer.logits, rule, shown)
        answer = replace(answer, logits=stored_logits(logits, frame.orientation))
        rule = replace(rule, letterbox=None)
        yield _row(question, answer, frame.size, rule, sides_of(files.name))


def frame_of(picture: Picture, stated: tuple[int, int], name: str) -> int:
    """The orientation by which the file's own frame, the outlines', is turned; 1 where it is not.

    Raises RisError where the data set states another size than the picture has.
    """
    shown = picture.height, picture.width
    if stated == turned_size(*shown, picture.orientation):
        return picture.orientation
    if stated == shown:
        return 1
    raise RisError(
        f"{echoed(name)} is {shown[1]}x{shown[0]}, the data set says {stated[1]}x{stated[0]}"
    )


def _row(
    question: Question,
    answer: Answer,
    size: tuple[int, int],
    rule: MaskRule,
    sides: Sequence[Side],
) -> dict[str, Any]:
    """The line of an answer.

    Args:
        question: What was asked.
        answer: What the model said, of the picture as it is stored.
        size: The picture's (height, width) as it is stored.
        rule: The way from logits to a mask.
        sides: The sizes of the masks.
    """
    masks = {
        "image" if side is None else str(side): dict(
            encode_rle(from_logits(answer.logits, side, size, rule))
        )
        for side in sides
    }
    row: dict[str, Any] = {
        "ref_id": question.reference_id,
        "sent_id": question.sentence_id,
        "image_id": question.image_id,
        "text": question.text,
        "mask": masks,
    }
    if answer.no_target is not None:
        row["no_target"] = answer.no_target
    return row


def stored_logits(logits: NDArray[np.float32], orientation: int) -> NDArray[np.float32]:
    """Logits of the picture that is shown, as ones of the stored pixels."""
    if orientation == 1:
        return logits
    back = _BACK.get(orientation, orientation)
    return np.asarray(turned(Image.fromarray(logits), back))
