"""One pass of a model over samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ris.calibration.evaluation.metrics import Figures, Mask, iou
from ris.calibration.evaluation.samples import EvaluationImage
from ris.runtime import Model


@dataclass(frozen=True)
class Answer:
    """A model's mask, bool [H, W] of the image's own size, whatever the no-target head says; that head's probability,
    None without one."""

    mask: Mask
    no_target: float | None


class Segmenter(Protocol):
    """Anything that can be evaluated."""

    def answer(
        self, rgb: NDArray[np.uint8], expressions: Sequence[str], categories: Sequence[str | None]
    ) -> list[Answer]:
        """One answer an expression, in order."""
        ...


class BundleSegmenter:
    """A bundle, through the runtime."""

    def __init__(self, model: Model) -> None:
        self._model = model

    def answer(
        self, rgb: NDArray[np.uint8], expressions: Sequence[str], categories: Sequence[str | None]
    ) -> list[Answer]:
        """Encodes the image once; what has no category is asked as "background", as in training."""
        names = [name or "background" for name in categories] if self._model.categories else None
        scene = self._model.encode_image(rgb)
        found = scene.segment_many(expressions, categories=names, no_target_threshold=None)
        return [Answer(result.mask, result.no_target) for result in found]


@dataclass(frozen=True)
class Mirrored:
    """Left/right expressions, asked as they are and with the two words swapped.

    right: share of both questions together with IoU above 0.5; moved: share of the pairs whose two masks overlap by
    less than half (IoU) - a model that does not read the word answers both alike.
    """

    pairs: int
    right: float
    moved: float


@dataclass(frozen=True)
class Evaluation:
    """The metrics by kind of expression, "all" first, and the left/right test (None without such expressions)."""

    kinds: dict[str, dict[str, float]]
    mirrored: Mirrored | None


def evaluate(
    segmenter: Segmenter,
    images: Iterable[EvaluationImage],
    *,
    threshold: float = 0.5,
    report: Callable[[int, Figures], None] = lambda done, figures: None,
) -> Evaluation:
    """Asks everything of every image.

    threshold: from this no-target probability on an expression counts as refused; report: called after each image with
    the number of expressions so far and the figures over all of them.
    """
    figures: dict[str, Figures] = defaultdict(Figures)
    right: list[bool] = []
    moved: list[bool] = []
    for image in images:
        swapped = [(i, truth.mirrored) for i, truth in enumerate(image.truths) if truth.mirrored is not None]
        expressions = [t.expression for t in image.truths] + [text for _, (text, _) in swapped]
        categories = [t.category for t in image.truths] + [image.truths[i].category for i, _ in swapped]
        answers = segmenter.answer(image.rgb, expressions, categories)
        for truth, answer in zip(image.truths, answers, strict=False):
            refused = answer.no_target is not None and answer.no_target >= threshold
            for name in ("all", truth.kind):
                figures[name].add(answer.mask, truth.mask, refused, truth.targeted)
        for (i, (_, mask)), answer in zip(swapped, answers[len(image.truths) :], strict=True):
            right += [iou(answers[i].mask, image.truths[i].mask) > 0.5, iou(answer.mask, mask) > 0.5]
            moved.append(iou(answers[i].mask, answer.mask) < 0.5)
        report(len(figures["all"].ious), figures["all"])
    order = ["all", *sorted(set(figures) - {"all"})] if figures else []
    mirrored = Mirrored(len(moved), float(np.mean(right)), float(np.mean(moved))) if moved else None
    return Evaluation({name: figures[name].summary() for name in order}, mirrored)
