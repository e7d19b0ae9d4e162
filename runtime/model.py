"""A bundle's model: encode an image once, ask it as often as you like."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from ris.engines import Session, SessionInfo
from ris.engines.devices import CUDA, kind_of
from ris.engines.errors import ExpressionError
from ris.engines.gate import Gate
from ris.engines.heap import HEAP
from ris.runtime.bundle import Bundle
from ris.runtime.categories import Guess, categories_to_ask
from ris.runtime.choice import Choice
from ris.runtime.drawn import Draws
from ris.runtime.graphs import EncodedText, Graphs, Values
from ris.runtime.image import ImageLike, load_picture
from ris.runtime.interpolate import Float
from ris.runtime.masks import mask_from_logits, mask_score
from ris.runtime.segmentation import Segmentation, Timings, timed

_BYTES_PER_PIXEL = 4  # three of the picture, one of its mask


class Scene:
    """An encoded image, as `Model.encode_image` returns it.

    It keeps what the stages that run once an image gave, on the device where there is one, so that
    asking an expression runs the other stages alone. Several threads may ask at once.
    """

    height: int
    """The height of the image in pixels, after its EXIF orientation."""

    width: int
    """The width of the image in pixels, after its EXIF orientation."""

    values: Values
    """What questions take of the image, by the names of the manifest's values.

    Where no stage runs once an image, these are the host's images, and a question costs the whole
    network.
    """

    timings: Timings
    """Seconds that were spent on the image, by stage."""

    def __init__(
        self,
        model: Model,
        height: int,
        width: int,
        values: Values,
        timings: Timings,
        text: EncodedText | None = None,
    ) -> None:
        """Keeps an encoded image; `Model.encode_image` makes it.

        Args:
            model: The model that is asked.
            height: The height of the image in pixels.
            width: The width of the image in pixels.
            values: What questions take of the image.
            timings: Seconds that were spent on the image, by stage.
            text: The expressions that were encoded with the image. None: each question encodes its
                own.
        """
        self._model = model
        self._text = text
        self.height = height
        self.width = width
        self.values = values
        self.timings = timings

    def segment(
        self,
        expression: str,
        *,
        category: str | None = None,
        no_target_threshold: float | None = 0.5,
        seed: int | None = None,
        draws: int | None = None,
        form: str | None = None,
    ) -> Segmentation:
        """The mask of one expression.

        Args:
            expression: What to find, such as "left man".
            category: As for `segment_many`, for one expression.
            no_target_threshold: As for `segment_many`.
            seed: As for `segment_many`.
            draws: As for `segment_many`.
            form: As for `segment_many`.

        Raises:
            ExpressionError: Where the model cannot be asked the expression or the category.
            RisError: Where the model draws nothing, and a seed or draws are given.
        """
        return self.segment_many(
            [expression],
            categories=None if category is None else [category],
            no_target_threshold=no_target_threshold,
            seed=seed,
            draws=draws,
            form=form,
        )[0]

    def segment_many(
        self,
        expressions: Sequence[str],
        *,
        categories: Sequence[str] | None = None,
        no_target_threshold: float | None = 0.5,
        seed: int | None = None,
        draws: int | None = None,
        form: str | None = None,
    ) -> list[Segmentation]:
        """The masks of several expressions, `max_expressions` of them at a time.

        Args:
            expressions: What to find, such as "left man".
            categories: The COCO category of each expression's object, for a model that asks by
                category. "auto" guesses it from the expression; other models ignore "auto" and take
                no other name.
            no_target_threshold: Above this no-target probability, 0 to 1, the mask is empty.
                None: never.
            seed: What a model that takes random numbers gets them from. None: the bundle's own
                seed. An expression's answer does not depend on what else is asked, but for the
                rounding of its logits.
            draws: Over how many draws, 1 to 1000, the mask logits of such a model are averaged.
                None: one draw. What does not depend on the numbers runs once.
            form: The form that the expressions are asked in, for a model that has some, such as
                "phrase" or "sentence". None: the model's own choice.

        Returns:
            An answer for each expression, in their order.

        Raises:
            ExpressionError: Where the model cannot be asked one of the expressions or categories.
            EngineError: After `Model.close`, and where an engine fails.
            RisError: Where the model draws nothing, and a seed or draws are given.
        """
        if isinstance(expressions, str):
            raise ExpressionError(
                "segment_many takes a list of expressions; for a single one use segment"
            )
        if no_target_threshold is not None and not 0 <= no_target_threshold <= 1:
            raise ExpressionError(
                "no_target_threshold is a probability from 0 to 1, or None for never; got"
                f" {no_target_threshold}"
            )
        numbers = Draws(seed, draws)
        numbers.check(self._model.bundle.manifest.host.drawn)
        asked = categories_to_ask(self._model._table, expressions, categories)

        results: list[Segmentation] = []
        model, step = self._model, self._model.max_expressions
        with model._gate:
            for start in range(0, len(expressions), step):
                part = slice(start, start + step)
                results += model._ask(
                    self, expressions[part], asked[part], no_target_threshold, numbers, form
                )
        return results


class Model:
    """A bundle's opened graphs and what links them, as `load` returns it.

    Close it, or use it in a `with` block. Several threads may use it at once. In the child of a
    fork it answers on one core, or refuses; better load the bundle in each process that asks.
    """

    bundle: Bundle
    """The bundle that was opened."""

    max_expressions: int
    """The most expressions that go through the graphs at once."""

    choice: Choice | None
    """What it computes in and why; None where others run the graphs."""

    def __init__(
        self,
        bundle: Bundle,
        sessions: Mapping[str, Session],
        max_expressions: int,
        overlap: bool | None = None,
        choice: Choice | None = None,
    ) -> None:
        """Links opened graphs; `load` opens them.

        Args:
            bundle: The bundle that was opened.
            sessions: A session for each stage. The model closes them.
            max_expressions: The most expressions that go through the graphs at once.
            overlap: Run graphs that do not depend on each other side by side. None: on GPUs alone.
            choice: What it computes in and why.

        Raises:
            BundleError: Where the tokenizer or the table of categories cannot be read.
        """
        self.bundle = bundle
        self.max_expressions = max_expressions
        self.choice = choice
        self._overlap = overlap
        self._gate = Gate("the model is closed; load the bundle again")
        self._graphs = Graphs(bundle, sessions)
        self._table = self._graphs.host.categories

    @property
    def categories(self) -> list[str]:
        """The names that a model which asks by category knows; empty for others."""
        return list(self._table.names) if self._table else []

    @property
    def trained(self) -> bool:
        """False where the weights are made up and the masks mean nothing."""
        return self.bundle.manifest.source.trained

    @property
    def sessions(self) -> dict[str, SessionInfo]:
        """What really runs each graph, by stage."""
        return {stage: session.info for stage, session in self._graphs.sessions.items()}

    @property
    def open_sessions(self) -> Mapping[str, Session]:
        """The sessions themselves by stage, for parity checks and benchmarks."""
        return self._graphs.sessions

    @property
    def overlap(self) -> bool:
        """Whether graphs that do not depend on each other run side by side."""
        if self._overlap is not None:
            return self._overlap
        stages = self.bundle.wiring.image_stages
        return bool(stages) and all(
            kind_of(self._graphs.session(stage).info.device) == CUDA for stage in stages
        )

    def segment(
        self,
        image: ImageLike,
        expression: str,
        *,
        category: str | None = None,
        no_target_threshold: float | None = 0.5,
        seed: int | None = None,
        draws: int | None = None,
        form: str | None = None,
    ) -> Segmentation:
        """The mask of one expression in one image.

        For several expressions, encode the image once with `encode_image`.

        Args:
            image: As for `encode_image`.
            expression: What to find, such as "left man".
            category: The COCO category of the object, for a model that asks by category, or "auto"
                to guess it from the expression.
            no_target_threshold: Above this no-target probability, 0 to 1, the mask is empty.
                None: never.
            seed: As for `Scene.segment_many`.
            draws: As for `Scene.segment_many`.

        Raises:
            ImageError: Where the image cannot be read.
            RisError: Where the model draws nothing, and a seed or draws are given.
            ExpressionError: Where the model cannot be asked the expression or the category.
            EngineError: After `close`, and where an engine fails.
        """
        with self._gate:
            scene = self.encode_image(image, expressions=[expression])
            return scene.segment(
                expression,
                category=category,
                no_target_threshold=no_target_threshold,
                seed=seed,
                draws=draws,
                form=form,
            )

    def encode_image(
        self, image: ImageLike, *, expressions: Sequence[str] = (), draft: bool = False
    ) -> Scene:
        """Runs the stages that need no expression, the image encoders, once.

        Args:
            image: A path, the bytes of an image file, an open file of them, a PIL image, or an
                array: uint8 [H, W] grey, [H, W, 3] RGB or [H, W, 4] RGBA.
            expressions: What will be asked first, if known. Where graphs run side by side, its text
                is encoded meanwhile.
            draft: Decode a large JPEG file at a half, a quarter or an eighth of its size. This is
                faster and changes what the encoders see by a level or two. The scene keeps the
                image's own size.

        Raises:
            ImageError: Where the image cannot be read.
            EngineError: After `close`, and where an engine fails.
        """
        with self._gate:
            return self._encode(image, expressions, draft)

    def _encode(self, image: ImageLike, expressions: Sequence[str], draft: bool) -> Scene:
        """`encode_image`, inside the gate."""
        timings: Timings = {}
        with timed(timings, "image.load"):
            picture = load_picture(image, self.bundle.manifest.side if draft else None)
        with timed(timings, "image.prepare"):
            size = picture.height, picture.width
            images = self._graphs.host.images(picture.pixels, size)

        text = None
        if self.overlap:
            ahead = tuple(expressions[: self.max_expressions])
            # each graph on its own stream
            with ThreadPoolExecutor(len(self.bundle.wiring.image_stages) + 1) as pool:
                encode = self._graphs.encode_text_ahead
                waiting = pool.submit(encode, ahead) if ahead else None
                values = self._graphs.encode_image(images, timings, pool)
                text = waiting.result() if waiting else None
        else:
            values = self._graphs.encode_image(images, timings)

        HEAP.used(picture.height * picture.width * _BYTES_PER_PIXEL)
        return Scene(self, picture.height, picture.width, values, timings, text)

    def close(self) -> None:
        """Waits for questions that have begun, then gives the memory back; may be called twice.

        Every later question is an `EngineError`. A thread that is asking may close as well; the
        memory is then given back after its question.
        """
        self._gate.close(self._graphs.close)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _ask(
        self,
        scene: Scene,
        expressions: Sequence[str],
        asked: Sequence[Guess | None],
        no_target_threshold: float | None,
        draws: Draws,
        form: str | None,
    ) -> list[Segmentation]:
        """Asks a scene expressions that go through the graphs together.

        Args:
            scene: The encoded image.
            expressions: What to find.
            asked: The category of each expression, None for models that ask by none.
            no_target_threshold: As for `Scene.segment_many`.
            draws: The random numbers, for models that draw any.
            form: As for `Scene.segment_many`.
        """
        text = scene._text
        if form is None:
            form = self.bundle.manifest.host.text.form
        if text is None or (text.expressions, text.form) != (tuple(expressions), form):
            text = self._graphs.encode_text(expressions, form)
        timings = dict(text.timings)
        rows = [self._table.row(guess.category) for guess in asked if guess] if self._table else []
        logits, probabilities = self._graphs.ask(scene.values, text, rows, timings, draws)

        results = []
        for expression, guess, low, probability, notes in zip(
            expressions, asked, logits, probabilities, text.tokens.notes, strict=True
        ):
            own: Timings = {stage: seconds / len(expressions) for stage, seconds in timings.items()}
            absent = _is_absent(probability, no_target_threshold)
            with timed(own, "mask"):
                mask, score = self._mask(scene, low, absent)
            results.append(
                Segmentation(
                    expression=expression,
                    mask=mask,
                    logits=low,
                    score=score,
                    no_target=probability,
                    is_no_target=absent,
                    category=guess.category if guess else None,
                    timings=scene.timings | own,
                    notes=(*notes, *_guess_notes(guess)),
                    category_word=guess.word if guess else None,
                    form=form,
                    draws=draws.of(self.bundle.manifest.host.drawn),
                    rule=self.bundle.manifest.mask_rule,
                )
            )
        return results

    def _mask(self, scene: Scene, logits: Float, absent: bool) -> tuple[NDArray[np.bool_], float]:
        """The mask of the image's own size, and its score."""
        if absent:
            return np.zeros((scene.height, scene.width), np.bool_), 0.0
        rule = self.bundle.manifest.mask_rule
        mask = mask_from_logits(logits, scene.height, scene.width, rule)
        return mask, mask_score(logits, rule, mask.shape)


def _is_absent(probability: float | None, threshold: float | None) -> bool:
    return probability is not None and threshold is not None and probability > threshold


def _guess_notes(guess: Guess | None) -> tuple[str, ...]:
    if guess is None or not guess.word:
        return ()
    return (f"guessed the category {guess.category} from {guess.word!r}",)
