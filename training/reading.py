"""Data sets as the model is trained on them: the sentences that the released loader reads.

docs/reference/training.md has the rules. `evaluation.protocols` holds them, as the released
evaluator reads its questions with the same loader.
"""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ris.data.datasets import ReferData, Reference, ReferImage, read_lines
from ris.data.datasets.polygons import polygons_of_three_points
from ris.data.datasets.refer import refer_image, require_folder, with_pictures
from ris.data.datasets.refer_files import (
    ReferFiles,
    as_published,
    category_of,
    read_files,
    splits_of,
)
from ris.data.samples import place_of
from ris.engines.errors import RisError, Skipped, refuse
from ris.engines.text import echoed, reason_of
from ris.evaluation.protocols import questions
from ris.evaluation.protocols.questions import Asking, Fault, Question, is_crowd
from ris.evaluation.protocols.table import PROTOCOLS
from ris.runtime.text import check_expression

HELD_OUT = 0.05
"""The share of its sentences that is held out of a file without a validation of its own."""

MOST_HELD_OUT = 500
"""So many sentences at most."""


def read_for_training(
    name: str,
    split: str,
    *,
    root: Path | None = None,
    images: Path | None = None,
    skipped: Skipped = refuse,
) -> ReferData:
    """A split of a published data set, or a JSONL file of one's own.

    Args:
        name: One of `DATASETS`, or the path of a JSONL file, which has no splits.
        split: "train", "val", ...
        root: The folder that a published set's folder is in.
        images: The folder of COCO's images; None: looked for below `root`.
        skipped: Gets a sentence for each reference, sentence, line and image that cannot be used.
            The others are read.

    Raises:
        RisError: For files that are missing or damaged, for a split that is not there, and where
            nothing is left; by default also in place of leaving something out.
    """
    if name.endswith(".jsonl"):
        data = read_lines(Path(name), skipped)
    else:
        if root is None:
            raise RisError(f"{name} needs --root, the folder of its files")
        data = _published(root, name, split, images, skipped)
    return _askable(data, skipped)


def hold_out(data: ReferData) -> tuple[ReferData, ReferData]:
    """A file of one's own without the images that are held out for validation, and these alone.

    They are drawn at random, always the same ones, as many as fit into `HELD_OUT` of the sentences
    (at least 1, at most `MOST_HELD_OUT`). Where none fits it is the one with the fewest sentences.

    Raises RisError where the file is about one image alone.
    """
    sizes = [len(image.references) for image in data.images]
    if len(sizes) < 2:
        raise RisError(
            f"{data.name} is about one image, of which nothing can be held out of training: give"
            " --validation"
        )
    wanted = min(MOST_HELD_OUT, max(1, round(HELD_OUT * sum(sizes))))
    held: set[int] = set()
    for number in np.random.default_rng(5).permutation(len(sizes)):
        if sizes[number] <= wanted:
            held.add(int(number))
            wanted -= sizes[number]
    held = held or {int(np.argmin(sizes))}
    numbered = list(enumerate(data.images))
    return (
        replace(data, images=tuple(image for i, image in numbered if i not in held)),
        replace(data, images=tuple(image for i, image in numbered if i in held)),
    )


def _published(
    root: Path, name: str, split: str, images: Path | None, skipped: Skipped
) -> ReferData:
    """What the released loader reads of a split."""
    files = read_files(root, name, images=images)
    require_folder(files, root, images)
    with as_published(f"one of {name}'s files below {root}"):
        found = _asking(name, split).of(files, split)
    for number, reason in found.left_out.items():
        where = name if reason == questions.NO_SPLIT else f"{name}, {split}"
        skipped(f"{where}: reference {number} is left out: {reason}")
    if not found.asked:
        raise RisError(_no_split(files, split))

    by_image: dict[int, list[Reference]] = defaultdict(list)
    for question in found.asked:
        by_image[question.image_id].append(_reference(question, files))
    there = tuple(refer_image(files, number, asked) for number, asked in sorted(by_image.items()))
    wanted = {i for asked in by_image.values() for one in asked for i in one.annotations}
    outlines = {number: files.annotations[number]["segmentation"] for number in wanted}
    return ReferData(name, split, with_pictures(there, files, skipped), outlines)


def _no_split(files: ReferFiles, split: str) -> str:
    """What to say where a split has nothing, with the way out where it was to validate on."""
    splits = splits_of(files)
    there = echoed(", ".join(splits))
    if split == "train":
        return f"{files.name} has nothing to train on in {split!r}; it has {there}"
    others = (one for one in splits if one != "train")
    example = f"{files.name}:{echoed(next(others, 'test'))}"
    return (
        f"{files.name} has nothing to validate on in {split!r}; it has {there}: give --validation"
        f" with the split or the data set to validate on, such as {example}"
    )


def _asking(name: str, split: str) -> Asking:
    """The rules of the released loader, which reads `raw`; one bad reference stops nothing."""
    rules = PROTOCOLS["released"].rules[name].asking(split)
    faults = rules.faults
    if name == "grefcoco":  # there an object without polygons goes, and the others stay
        faults = tuple(fault for fault in faults if fault is not questions.no_polygon)
        faults = (*faults, _nothing_left)
    return guarded(replace(rules, text=_raw, faults=faults, later_truth=False))


def guarded(rules: Asking) -> Asking:
    """The rules of a loader; a reference that they cannot look at is left out, and stops nothing.

    What the loader drops and what it stops at is no longer told apart.
    """
    malformed = functools.partial(_malformed, rules.text)
    return replace(rules, faults=(malformed, *(_guarded(fault) for fault in rules.faults)))


def _raw(sentence: Any) -> str:
    return str(sentence["raw"] if "raw" in sentence else sentence["sent"])


def _malformed(text: Callable[[Any], str], reference: Any, files: ReferFiles) -> str | None:
    """A reference that has not the published form."""
    try:
        int(reference["ref_id"])
        if int(reference["image_id"]) not in files.images:
            return f"image {reference['image_id']} is not in instances.json"
        image = files.images[int(reference["image_id"])]
        if not (str(image["file_name"]) and image["width"] > 0 and image["height"] > 0):
            return f"image {reference['image_id']} has no size"
        for sentence in reference["sentences"]:
            text(sentence)
            int(sentence["sent_id"])
        category_of(reference, files)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        return _other_form(error)
    return None


def _guarded(fault: Fault) -> Fault:
    """The rule; what it cannot look at is a fault."""

    def checked(reference: Any, files: ReferFiles) -> str | None:
        try:
            return fault(reference, files)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
            return _other_form(error)

    return checked


def _other_form(error: Exception) -> str:
    return f"it has not the published form ({type(error).__name__}: {reason_of(error)})"


def _nothing_left(reference: Any, files: ReferFiles) -> str | None:
    """Objects of which none is left without crowds and those that have no polygon."""
    ids = questions.meant(reference)
    return "none of its objects has an outline" if ids and not list(_kept(ids, files)) else None


def _kept(ids: tuple[int, ...], files: ReferFiles) -> Iterator[int]:
    """The objects that are targets: no crowds, and none without a polygon of three points."""
    for number in dict.fromkeys(ids):
        outline = files.annotations[number]["segmentation"]
        polygons = isinstance(outline, list) and not any(isinstance(one, dict) for one in outline)
        if is_crowd(files, number) or (polygons and not polygons_of_three_points(outline)):
            continue
        yield number


def _reference(question: Question, files: ReferFiles) -> Reference:
    return Reference(
        expression=question.text,
        annotations=tuple(_kept(question.annotations, files)),
        category=question.category,
        reference_id=question.reference_id,
        sentence_id=question.sentence_id,
    )


def _askable(data: ReferData, skipped: Skipped) -> ReferData:
    """The data set without sentences that no model can be asked."""
    images = []
    for image in data.images:
        kept = tuple(one for one in image.references if _fits(data, image, one, skipped))
        if kept:
            images.append(replace(image, references=kept))
    if not images:
        raise RisError(f"{data.name} has no sentence that can be used")
    return replace(data, images=tuple(images))


def _fits(data: ReferData, image: ReferImage, reference: Reference, skipped: Skipped) -> bool:
    try:
        check_expression(reference.expression)
    except RisError as error:
        skipped(f"{place_of(data, image, reference)}: {error}")
        return False
    return True
