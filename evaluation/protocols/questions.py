"""Which expressions a published evaluator asks, in which order, and what it leaves out.

The loaders read the same files and ask different things. Where a loader drops a reference or stops
with an error at it, the reference is left out here, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from ris.data.datasets.polygons import polygons_of_three_points, unusable
from ris.data.datasets.refer_files import ReferFiles, category_of, split_of


@dataclass(frozen=True)
class Question:
    """One sentence of a reference, as an evaluator asks it."""

    reference_id: int
    """`ref_id` in the file."""

    sentence_id: int
    """`sent_id` in the file."""

    image_id: int
    """The image's id in instances.json."""

    text: str
    """The expression that the model is asked."""

    category: str
    """What a model that asks by category is given; "background" where it is told nothing."""

    annotations: tuple[int, ...]
    """The ids of the objects that are meant; empty where nothing is meant."""

    targeted: bool
    """Whether something is meant; by the file, never by the mask."""


@dataclass(frozen=True)
class Questions:
    """What is asked of a split, and what is not."""

    asked: tuple[Question, ...]
    """In the order of the evaluator."""

    left_out: dict[int, str]
    """Reference id -> why the published loader drops it or stops at it."""

    stops: frozenset[int] = frozenset()
    """Those of them at which it stops with an error; it drops the others without a word."""

    references: int = 0
    """How many references the split has, left out or not."""


NO_SPLIT = "it names no split"
"""Why a reference is left out that is of no split at all."""

Fault = Callable[[Any, ReferFiles], str | None]
"""Why a loader cannot read a reference, or None where it can."""


@dataclass(frozen=True)
class Asking:
    """The rules of one loader."""

    text: Callable[[Any], str]
    """The text of a sentence: its `raw`, or its `sent`."""

    faults: tuple[Fault, ...]
    """Checked in turn; the first that says something leaves the reference out."""

    drops: tuple[Fault, ...] = ()
    """Those of the faults at which the loader drops the reference; it stops at the others."""

    exact_split: bool = False
    """Whether a reference's split must be the one asked; else "testA" also means "testAB"."""

    shorter: bool = False
    """Whether no more sentences are asked than `sent_ids` has."""

    later_truth: bool = False
    """Whether of two sentences with one id both get the truth of the later one."""

    def of(self, files: ReferFiles, split: str) -> Questions:
        """What is asked of a split; nothing where no reference has it.

        A reference without a split is left out of each: the loaders stop at it, whatever is asked.
        """
        asked: list[Question] = []
        left_out: dict[int, str] = {}
        stops: set[int] = set()
        references = 0
        for reference in files.references:
            own = split_of(reference)
            if own is None:
                left_out[int(reference["ref_id"])] = NO_SPLIT
                stops.add(int(reference["ref_id"]))
                continue
            if not in_split(own, split, self.exact_split):
                continue
            references += 1
            found = ((said, fault) for fault in self.faults if (said := fault(reference, files)))
            reason, fault = next(found, (None, None))
            if reason is None:
                asked += self._of_reference(reference, files)
                continue
            number = int(reference["ref_id"])
            left_out[number] = reason
            if fault not in self.drops:
                stops.add(number)
        if self.later_truth:
            asked = _with_later_truth(asked)
        return Questions(tuple(asked), left_out, frozenset(stops), references)

    def _of_reference(self, reference: Any, files: ReferFiles) -> Iterator[Question]:
        sentences = reference["sentences"]
        if self.shorter:
            sentences = sentences[: len(reference["sent_ids"])]
        ids = meant(reference)
        for sentence in sentences:
            yield Question(
                reference_id=int(reference["ref_id"]),
                sentence_id=int(sentence["sent_id"]),
                image_id=int(reference["image_id"]),
                text=self.text(sentence),
                category=category_of(reference, files),
                annotations=ids,
                targeted=bool(ids),
            )


def in_split(own: str, asked: str, exact: bool) -> bool:
    """Whether a reference whose split is `own` belongs to the split that is asked."""
    if exact or asked not in ("testA", "testB", "testC", "test"):
        return own == asked
    return "test" in own if asked == "test" else asked[-1] in own


def _with_later_truth(asked: list[Question]) -> list[Question]:
    """Gives each question the reference and the objects of the last one with its sentence id."""
    last = {question.sentence_id: question for question in asked}
    changed = []
    for question in asked:
        of = last[question.sentence_id]
        changed.append(
            Question(
                reference_id=of.reference_id,
                sentence_id=question.sentence_id,
                image_id=of.image_id,
                text=question.text,
                category=of.category,
                annotations=of.annotations,
                targeted=of.targeted,
            )
        )
    return changed


def given_ids(reference: Any) -> list[int]:
    """A reference's `ann_id` as a list."""
    given = reference["ann_id"]
    return [int(one) for one in given] if isinstance(given, list | tuple) else [int(given)]


def meant(reference: Any) -> tuple[int, ...]:
    """The objects that a reference means; none for -1 and for Ref-ZOM's "zero"."""
    if reference.get("source") == "zero":
        return ()
    return tuple(number for number in given_ids(reference) if number != -1)


def raw(sentence: Any) -> str:
    """The sentence as its author wrote it."""
    return str(sentence["raw"])


def sent(sentence: Any) -> str:
    """The sentence in lower case without punctuation, and without white space around it."""
    return str(sentence["sent"]).strip()


def lower_sent(sentence: Any) -> str:
    """The same in lower case, whatever the file has."""
    return sent(sentence).lower()


# --- what the loaders stop at or drop, one rule a function ---


def unknown_annotation(reference: Any, files: ReferFiles) -> str | None:
    """An object that instances.json does not have; -1 is one too."""
    unknown = [number for number in given_ids(reference) if number not in files.annotations]
    return f"annotation {unknown[0]} is not in instances.json" if unknown else None


def unknown_object(reference: Any, files: ReferFiles) -> str | None:
    """As `unknown_annotation`, where -1 means no target."""
    unknown = [n for n in given_ids(reference) if n != -1 and n not in files.annotations]
    return f"annotation {unknown[0]} is not in instances.json" if unknown else None


def without_sentence_ids(reference: Any, files: ReferFiles) -> str | None:
    """A reference that has no `sent_ids`."""
    return None if "sent_ids" in reference else "it has no sent_ids"


def without_source(reference: Any, files: ReferFiles) -> str | None:
    """A reference that has no `source`."""
    return None if "source" in reference else "it has no source"


def without_object(reference: Any, files: ReferFiles) -> str | None:
    """A reference of no object, where that is not how "no target" is written."""
    if reference.get("source") == "zero" or given_ids(reference):
        return None
    return "its ann_id is empty"


def mixed_no_target(reference: Any, files: ReferFiles) -> str | None:
    """A reference that means an object and nothing at once."""
    ids = given_ids(reference)
    return "its ann_id has -1 beside objects" if -1 in ids and len(ids) > 1 else None


def other_split(asked: str) -> Fault:
    """A reference of a wider split than the one that is asked."""

    def fault(reference: Any, files: ReferFiles) -> str | None:
        own = str(reference["split"])
        return None if own == asked else f"its split is {own}"

    return fault


def empty_box(reference: Any, files: ReferFiles) -> str | None:
    """An object whose bounding box is not four numbers."""
    for number in meant(reference):
        if len(files.annotations[number].get("bbox", ())) != 4:
            return f"annotation {number} has no bounding box"
    return None


def other_image(reference: Any, files: ReferFiles) -> str | None:
    """An object of another image than the reference's."""
    for number in meant(reference):
        if files.annotations[number]["image_id"] != reference["image_id"]:
            return f"annotation {number} belongs to another image"
    return None


def unreadable_layers(reference: Any, files: ReferFiles) -> str | None:
    """An outline that pycocotools refuses when its layers are decoded as they are."""
    for number in meant(reference):
        outline = files.annotations[number].get("segmentation")
        if isinstance(outline, dict):
            return f"annotation {number} is a run-length code that is not in a list"
        if not isinstance(outline, list) or not outline:
            return f"annotation {number} has no outline"
        if isinstance(outline[0], list) and len(outline[0]) < 5:
            return f"the first polygon of annotation {number} has {len(outline[0])} numbers"
    return None


def unreadable_layers_if_any(reference: Any, files: ReferFiles) -> str | None:
    """The same, where an object without an outline has no pixels."""
    outlines = (files.annotations[number].get("segmentation") for number in meant(reference))
    return unreadable_layers(reference, files) if all(outlines) else None


def not_numbers(reference: Any, files: ReferFiles) -> str | None:
    """A polygon with a coordinate that is no finite number, or millions of pixels away."""
    for number in meant(reference):
        outline = files.annotations[number].get("segmentation")
        polygons = outline if isinstance(outline, list) else []
        said = unusable([polygon for polygon in polygons if isinstance(polygon, list)])
        if said is not None:
            return f"annotation {number}: {said}"
    return None


def empty_outline(reference: Any, files: ReferFiles) -> str | None:
    """An object, not a crowd, whose list of polygons is empty."""
    for number in meant(reference):
        if not files.annotations[number].get("segmentation"):
            return f"annotation {number} has no outline"
    return None


def only_crowds(reference: Any, files: ReferFiles) -> str | None:
    """Objects of which none is left without the crowds."""
    ids = meant(reference)
    if ids and all(is_crowd(files, number) for number in ids):
        return "it means crowds alone"
    return None


def no_polygon(reference: Any, files: ReferFiles) -> str | None:
    """An object, not a crowd, without a polygon of an even number of at least 6 numbers."""
    for number in meant(reference):
        outline = files.annotations[number]["segmentation"]
        if is_crowd(files, number) or not isinstance(outline, list):
            continue
        if not polygons_of_three_points(outline):
            return f"annotation {number} has no polygon of three points"
    return None


def run_length_code(reference: Any, files: ReferFiles) -> str | None:
    """An object, not a crowd, that is a run-length code in place of polygons."""
    for number in meant(reference):
        if not is_crowd(files, number) and isinstance(
            files.annotations[number]["segmentation"], dict
        ):
            return f"annotation {number} is a run-length code"
    return None


def is_crowd(files: ReferFiles, number: int) -> bool:
    """Whether the annotation stands for a group that is not told apart."""
    return bool(files.annotations[number].get("iscrowd", 0))
