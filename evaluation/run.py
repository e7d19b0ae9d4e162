"""One pass of a model over samples."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.data.samples import AnnotatedImage, Truth
from ris.engines.errors import ExpressionError, Skipped, refuse
from ris.engines.text import echoed
from ris.evaluation.features import FeatureCache
from ris.evaluation.metrics import SCENES, Figures, Mask
from ris.evaluation.results import Answered, ImageResult, ResultsFolder, Swapped, figures_of
from ris.runtime import Model
from ris.runtime.asking import ask_each
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.runtime.masks import MaskRule, encode_rle, mask_from_logits

AT = ("image", "model", "480")
"""Where the masks of scenes and of people's own pictures are compared: at the image's own size, at
the model's square, at 480x480. In a square, truths are resized by nearest neighbour."""

Report = Callable[[int, Callable[[], Figures]], None]
"""Called with the number of expressions so far, and a function that gives their figures."""


@dataclass(frozen=True)
class Answer:
    """What a model says to one expression."""

    logits: NDArray[np.float32]
    """The mask's logits, float32 [m, m], whatever the no-target head says."""

    no_target: float | None
    """The no-target head's probability; None for a model without that head."""


class Segmenter(Protocol):
    """Anything that can be evaluated."""

    square: int
    """The side of the model's largest square image, pixels."""

    rule: MaskRule
    """The way from its logits to a mask."""

    def answer(
        self, rgb: NDArray[np.uint8], expressions: Sequence[str], categories: Sequence[str | None]
    ) -> list[Answer]:
        """One answer for each expression, in order.

        rgb: uint8 [H, W, 3]. categories: COCO's name of what each expression means, or None.
        """
        ...


class BundleSegmenter:
    """A bundle, through the runtime; images that the cache has are not encoded again."""

    def __init__(
        self,
        model: Model,
        cache: FeatureCache | None = None,
        draws: Draws = ONE_DRAW,
        form: str | None = None,
    ) -> None:
        """Takes an opened bundle.

        Args:
            model: The bundle.
            cache: Encoded images, where they are kept.
            draws: The random numbers, for a model that draws any.
            form: As for `Scene.segment_many`.
        """
        self._model, self._cache, self._draws, self._form = model, cache, draws, form
        manifest = model.bundle.manifest
        self.square = manifest.side
        self.rule = manifest.mask_rule

    def answer(
        self, rgb: NDArray[np.uint8], expressions: Sequence[str], categories: Sequence[str | None]
    ) -> list[Answer]:
        """Encodes the image once; what has no category is asked as "background", as in training."""
        names = None
        if self._model.categories:
            names = [name or "background" for name in categories]
        if self._cache:
            scene = self._cache.encode(self._model, rgb)
        else:
            scene = self._model.encode_image(rgb)
        found = scene.segment_many(
            expressions,
            categories=names,
            no_target_threshold=None,
            seed=self._draws.seed,
            draws=self._draws.count,
            form=self._form,
        )
        return [Answer(result.logits, result.no_target) for result in found]


@dataclass(frozen=True)
class Mirrored:
    """Left/right expressions, asked as they are and with the two words swapped.

    A model that does not read the word answers both alike.
    """

    pairs: int
    """How many expressions were asked both ways."""

    right: float
    """The share of the answers, of both ways together, with IoU above 0.5."""

    moved: float
    """The share of the pairs whose two masks overlap by less than half (IoU)."""


@dataclass(frozen=True)
class Evaluation:
    """What a model scores."""

    kinds: dict[str, dict[str, float]]
    """Kind of expression, "all" first -> metric -> value."""

    mirrored: Mirrored | None
    """The left/right test; None without such expressions."""

    at: str
    """Where masks were compared, one of `AT`."""


def _size(at: str, square: int, truth: Mask) -> tuple[int, int]:
    """The height and width at which masks are compared, for one of `AT`."""
    if at == "image":
        return truth.shape[0], truth.shape[1]
    side = square if at == "model" else int(at)
    return side, side


def _resized(truth: Mask, size: tuple[int, int]) -> Mask:
    """The truth at this height and width."""
    if truth.shape == size:
        return truth
    small = Image.fromarray(truth.astype(np.uint8)).resize(size[::-1], Image.Resampling.NEAREST)
    return np.asarray(small).astype(np.bool_)


def _answered(
    segmenter: Segmenter, truth: Truth, answer: Answer, other: Answer | None, at: str
) -> Answered:
    """One answer against its truth; `other` is the answer to the swapped expression, or None."""
    height, width = size = _size(at, segmenter.square, truth.mask)
    rule, picture = segmenter.rule, truth.mask.shape
    mask = mask_from_logits(answer.logits, height, width, rule, picture)
    right = _resized(truth.mask, size)

    swapped = None
    if truth.mirrored is not None and other is not None:
        text, meant = truth.mirrored
        theirs = mask_from_logits(other.logits, height, width, rule, picture)
        swapped = _swapped(text, theirs, _resized(meant, size), mask)

    return Answered(
        expression=truth.expression,
        kind=truth.kind,
        targeted=truth.targeted,
        intersection=int((mask & right).sum()),
        predicted=int(mask.sum()),
        truth=int(right.sum()),
        no_target=answer.no_target,
        height=height,
        width=width,
        mask=encode_rle(mask)["counts"],
        truth_mask=encode_rle(right)["counts"],
        swapped=swapped,
    )


def _swapped(text: str, mask: Mask, truth: Mask, unswapped: Mask) -> Swapped:
    """The answer `mask` to a swapped expression; `unswapped` answers the expression as it was."""
    return Swapped(
        expression=text,
        intersection=int((mask & truth).sum()),
        predicted=int(mask.sum()),
        truth=int(truth.sum()),
        shared=int((unswapped & mask).sum()),
    )


def ask_image(segmenter: Segmenter, image: AnnotatedImage, at: str) -> ImageResult:
    """Everything that is asked of one image, without what cannot be; `at` is one of `AT`."""

    def ask(numbers: Sequence[int]) -> list[Answered]:
        return _ask(segmenter, image.rgb, [image.truths[i] for i in numbers], at)

    answers: list[Answered] = []
    left_out = list(image.left_out)
    found = ask_each(ask, range(len(image.truths)))
    for truth, answer in zip(image.truths, found, strict=True):
        if isinstance(answer, ExpressionError):
            left_out.append(f'{echoed(image.name)}: "{echoed(truth.expression)}": {answer}')
        else:
            answers.append(answer)
    return ImageResult(image.name, tuple(answers), tuple(left_out))


def _ask(
    segmenter: Segmenter, rgb: NDArray[np.uint8], truths: Sequence[Truth], at: str
) -> list[Answered]:
    """The answers to these expressions and their mirrored ones, of one image."""
    swaps = [(i, truth.mirrored[0]) for i, truth in enumerate(truths) if truth.mirrored is not None]
    expressions = [truth.expression for truth in truths] + [text for _, text in swaps]
    categories = [truth.category for truth in truths] + [truths[i].category for i, _ in swaps]
    answers = segmenter.answer(rgb, expressions, categories)

    of_swaps = answers[len(truths) :]
    others = {i: answer for (i, _), answer in zip(swaps, of_swaps, strict=True)}
    return [
        _answered(segmenter, truth, answers[i], others.get(i), at) for i, truth in enumerate(truths)
    ]


def evaluate(
    segmenter: Segmenter,
    images: Iterable[AnnotatedImage],
    *,
    threshold: float = 0.5,
    at: str = "image",
    folder: ResultsFolder | None = None,
    report: Report = lambda count, figures: None,
    skipped: Skipped = refuse,
) -> Evaluation:
    """Asks everything of every image.

    Args:
        segmenter: The model.
        images: What is asked; without the images that `folder` has already.
        threshold: Above this no-target probability an expression counts as refused.
        at: Where masks are compared, one of `AT`.
        folder: Where each image's answers are written; those that it has already count too.
        report: Called after each image.
        skipped: Gets a sentence for each expression that could not be asked, those of `folder` too.

    Raises:
        RisError: Where the folder cannot be written, and by default in place of leaving an
            expression out.
    """
    answers: list[Answered] = []

    def take(result: ImageResult) -> None:
        for sentence in result.left_out:
            skipped(sentence)
        answers.extend(result.slim().answers)

    for done in folder.done.values() if folder is not None else ():
        take(done)

    def figures() -> Figures:
        return figures_of(answers, threshold)

    for image in images:
        result = ask_image(segmenter, image, at)
        if folder is not None:
            folder.add(result)
        take(result)
        report(len(answers), figures)

    return summarise(answers, threshold, at)


def summarise(answers: Sequence[Answered], threshold: float, at: str) -> Evaluation:
    """The metrics of these answers.

    Args:
        answers: What the model said.
        threshold: Above this no-target probability an expression counts as refused.
        at: Where masks were compared, one of `AT`.
    """
    kinds: dict[str, list[Answered]] = defaultdict(list)
    for answer in answers:
        kinds["all"].append(answer)
        kinds[answer.kind].append(answer)
    order = ["all", *sorted(set(kinds) - {"all"})] if kinds else []
    scores = {name: SCENES.score(figures_of(kinds[name], threshold)) for name in order}
    return Evaluation(scores, _mirrored(answers), at)


def _mirrored(answers: Sequence[Answered]) -> Mirrored | None:
    right: list[bool] = []
    moved: list[bool] = []
    for answer in answers:
        swapped = answer.swapped
        if swapped is None:
            continue
        right.append(_above_half(answer.intersection, answer.predicted, answer.truth))
        right.append(_above_half(swapped.intersection, swapped.predicted, swapped.truth))
        union = answer.predicted + swapped.predicted - swapped.shared
        moved.append(2 * swapped.shared < union)
    if not moved:
        return None
    return Mirrored(len(moved), float(np.mean(right)), float(np.mean(moved)))


def _above_half(intersection: int, predicted: int, truth: int) -> bool:
    """Whether the IoU is above 0.5, in whole numbers."""
    return 2 * intersection > predicted + truth - intersection
