"""One pass of a model over samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.data.samples import EvaluationImage, Truth
from ris.evaluation.features import FeatureCache
from ris.evaluation.metrics import Figures, Mask
from ris.evaluation.results import Answered, ImageResult, ResultsFolder, Swapped, figures_of
from ris.runtime import Model
from ris.runtime.masks import encode_rle, mask_from_logits

AT = ("image", "model", "480")
"""Where masks are compared: at the image's own size; at the model's square, as its released code
does; at 480x480, as LAVT does. Squares: truths are resized by nearest neighbour, as there."""


@dataclass(frozen=True)
class Answer:
    """A model's mask logits, float32 [m, m], whatever the no-target head says; that head's
    probability, None without one."""

    logits: NDArray[np.float32]
    no_target: float | None


class Segmenter(Protocol):
    """Anything that can be evaluated. square: side of the model's square image, pixels; threshold:
    of the logits.
    """

    square: int
    threshold: float

    def answer(
        self, rgb: NDArray[np.uint8], expressions: Sequence[str], categories: Sequence[str | None]
    ) -> list[Answer]:
        """One answer an expression, in order."""
        ...


class BundleSegmenter:
    """A bundle, through the runtime; with a cache, images that it has are not encoded again."""

    def __init__(self, model: Model, cache: FeatureCache | None = None) -> None:
        self._model, self._cache = model, cache
        manifest = model.bundle.manifest
        self.square, self.threshold = manifest.preprocess.sam.size, manifest.postprocess.threshold

    def answer(
        self, rgb: NDArray[np.uint8], expressions: Sequence[str], categories: Sequence[str | None]
    ) -> list[Answer]:
        """Encodes the image once; what has no category is asked as "background", as in training."""
        names = [name or "background" for name in categories] if self._model.categories else None
        scene = (
            self._cache.encode(self._model, rgb) if self._cache else self._model.encode_image(rgb)
        )
        found = scene.segment_many(expressions, categories=names, no_target_threshold=None)
        return [Answer(result.logits, result.no_target) for result in found]


@dataclass(frozen=True)
class Mirrored:
    """Left/right expressions, asked as they are and with the two words swapped.

    right: share of both questions together with IoU above 0.5; moved: share of the pairs whose two
    masks overlap by less than half (IoU) - a model that does not read the word answers both alike.
    """

    pairs: int
    right: float
    moved: float


@dataclass(frozen=True)
class Evaluation:
    """The metrics by kind of expression, "all" first, and the left/right test (None without such
    expressions).

    at: one of `AT`; protocol: one of `metrics.PROTOCOLS`.
    """

    kinds: dict[str, dict[str, float]]
    mirrored: Mirrored | None
    protocol: str
    at: str


def _size(at: str, square: int, truth: Mask) -> tuple[int, int]:
    """The height and width of the comparison."""
    if at == "image":
        return truth.shape[0], truth.shape[1]
    side = square if at == "model" else int(at)
    return side, side


def _resized(truth: Mask, size: tuple[int, int]) -> Mask:
    if truth.shape == size:
        return truth
    small = Image.fromarray(truth.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
    return np.asarray(small).astype(np.bool_)


def _answered(
    segmenter: Segmenter, truth: Truth, answer: Answer, other: Answer | None, at: str
) -> Answered:
    """other: the answer to the swapped expression, where there is one."""
    size = _size(at, segmenter.square, truth.mask)
    mask, right = (
        mask_from_logits(answer.logits, *size, segmenter.threshold),
        _resized(truth.mask, size),
    )
    swapped = None
    if truth.mirrored is not None and other is not None:
        theirs, meant = (
            mask_from_logits(other.logits, *size, segmenter.threshold),
            _resized(truth.mirrored[1], size),
        )
        swapped = Swapped(
            truth.mirrored[0],
            int((theirs & meant).sum()),
            int(theirs.sum()),
            int(meant.sum()),
            int((mask & theirs).sum()),
        )
    return Answered(
        expression=truth.expression,
        kind=truth.kind,
        targeted=truth.targeted,
        intersection=int((mask & right).sum()),
        predicted=int(mask.sum()),
        truth=int(right.sum()),
        no_target=answer.no_target,
        height=size[0],
        width=size[1],
        mask=encode_rle(mask)["counts"],
        truth_mask=encode_rle(right)["counts"],
        swapped=swapped,
    )


def ask_image(segmenter: Segmenter, image: EvaluationImage, at: str) -> ImageResult:
    """Everything that is asked of one image."""
    pairs = [
        (i, truth.mirrored[0]) for i, truth in enumerate(image.truths) if truth.mirrored is not None
    ]
    expressions = [t.expression for t in image.truths] + [text for _, text in pairs]
    categories = [t.category for t in image.truths] + [image.truths[i].category for i, _ in pairs]
    answers = segmenter.answer(image.rgb, expressions, categories)
    count = len(image.truths)
    others = {i: answer for (i, _), answer in zip(pairs, answers[count:], strict=True)}
    return ImageResult(
        image.name,
        tuple(
            _answered(segmenter, truth, answers[i], others.get(i), at)
            for i, truth in enumerate(image.truths)
        ),
    )


def evaluate(
    segmenter: Segmenter,
    images: Iterable[EvaluationImage],
    *,
    threshold: float = 0.5,
    at: str = "image",
    protocol: str = "scenes",
    folder: ResultsFolder | None = None,
    report: Callable[[int, Callable[[], Figures]], None] = lambda count, figures: None,
) -> Evaluation:
    """Asks everything of every image.

    threshold: from this no-target probability on an expression counts as refused. folder: where
    each image's answers are written; what it has already is taken from there, and `images` should
    leave it out. report: called after each image with the number of expressions so far and what
    gives their figures.
    """
    answers = (
        [answer for result in folder.done.values() for answer in result.answers] if folder else []
    )

    def figures() -> Figures:
        return figures_of(answers, threshold)

    for image in images:
        result = ask_image(segmenter, image, at)
        if folder is not None:
            folder.add(result)
        answers += result.slim().answers
        report(len(answers), figures)
    return summarise(answers, threshold, protocol, at)


def summarise(answers: Sequence[Answered], threshold: float, protocol: str, at: str) -> Evaluation:
    """The metrics of these answers."""
    kinds: dict[str, list[Answered]] = defaultdict(list)
    for answer in answers:
        kinds["all"].append(answer)
        kinds[answer.kind].append(answer)
    order = ["all", *sorted(set(kinds) - {"all"})] if kinds else []
    scores = {name: figures_of(kinds[name], threshold).score(protocol) for name in order}
    return Evaluation(scores, _mirrored(answers), protocol, at)


def _mirrored(answers: Sequence[Answered]) -> Mirrored | None:
    right: list[bool] = []
    moved: list[bool] = []
    for answer in answers:
        if answer.swapped is not None:
            s = answer.swapped
            right += [
                _above_half(answer.intersection, answer.predicted, answer.truth),
                _above_half(s.intersection, s.predicted, s.truth),
            ]
            union = answer.predicted + s.predicted - s.shared
            moved.append(2 * s.shared < union)
    return Mirrored(len(moved), float(np.mean(right)), float(np.mean(moved))) if moved else None


def _above_half(intersection: int, predicted: int, truth: int) -> bool:
    return 2 * intersection > predicted + truth - intersection
