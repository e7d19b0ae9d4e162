"""The runtime itself: open a bundle, encode an image once, ask it as often as you like.

    model = load("ris-bundle")
    scene = model.encode_image("photo.jpg")
    result = scene.segment("left man")
    result.mask  # bool [H, W]

Thread rule: a Model and its Scenes may be used from several threads at once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np

from ris.engines import HostStep, Session, SessionInfo, Value
from ris.engines.errors import ExpressionError, RisError
from ris.runtime.bundle import Bundle
from ris.runtime.categories import AUTO, CategoryTable, Guess
from ris.runtime.image import ImageLike, load_picture, prepare_image
from ris.runtime.interpolate import Float, resize_maps
from ris.runtime.masks import mask_from_logits, mask_score
from ris.runtime.segmentation import Segmentation, Timings, timed
from ris.runtime.text import ExpressionTokenizer, Tokens


@dataclass(frozen=True)
class EncodedText:
    """What the text encoder gave for some expressions: features float32 [N, T, C], on the device
    where there is one.
    """

    expressions: tuple[str, ...]
    tokens: Tokens
    features: Value
    timings: Timings


class Scene:
    """An encoded image. Keeps the encoders' outputs, on the device where there is one, so that each
    further expression skips them.

    height, width: of the image after its EXIF orientation; timings: seconds spent on the image.
    """

    def __init__(
        self,
        model: Model,
        height: int,
        width: int,
        image_embeddings: Value,
        clip_tokens: Value,
        timings: Timings,
        text: EncodedText | None = None,
    ) -> None:
        self._model, self._text = model, text
        self.height, self.width = height, width
        self.image_embeddings, self.clip_tokens = image_embeddings, clip_tokens
        self.timings = timings

    def segment(
        self,
        expression: str,
        *,
        category: str | None = None,
        no_target_threshold: float | None = 0.5,
    ) -> Segmentation:
        """The mask of one expression; `segment_many` says what can go wrong."""
        categories = None if category is None else [category]
        return self.segment_many(
            [expression], categories=categories, no_target_threshold=no_target_threshold
        )[0]

    def segment_many(
        self,
        expressions: Sequence[str],
        *,
        categories: Sequence[str] | None = None,
        no_target_threshold: float | None = 0.5,
    ) -> list[Segmentation]:
        """The masks of several expressions, `max_expressions` of them at a time.

        categories: the object's category name for each expression, for a model that asks by
        category; "auto" guesses it from the expression (and does nothing for other models).
        no_target_threshold: from this probability on, 0 to 1, the mask is empty; None: never.
        Raises ExpressionError.
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
        asked = self._model._categories_to_ask(expressions, categories)
        results: list[Segmentation] = []
        step = self._model.max_expressions
        for start in range(0, len(expressions), step):
            part = slice(start, start + step)
            results += self._model._ask(self, expressions[part], asked[part], no_target_threshold)
        return results


class Model:
    """Five opened graphs and what links them. Made by `load`; close it, or use it in a `with`
    block.

    overlap: whether the image encoders, and text that is known with the image, run side by side;
    None: on GPUs.
    """

    def __init__(
        self,
        bundle: Bundle,
        sessions: Mapping[str, Session],
        max_expressions: int,
        overlap: bool | None = None,
    ) -> None:
        manifest = bundle.manifest
        self.bundle = bundle
        self.max_expressions = max_expressions
        self._overlap = overlap
        self._sessions = dict(sessions)
        self._tokenize = ExpressionTokenizer(
            bundle.file(manifest.text.tokenizer), manifest.text.max_tokens
        )
        self._table: CategoryTable | None = None
        self._category_features: Float | None = None
        if manifest.categories is not None:
            self._table = CategoryTable.read(bundle.file(manifest.categories.names))
            self._category_features = np.load(
                bundle.file(manifest.categories.features), allow_pickle=False
            )

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
        """What really runs each graph."""
        return {stage: session.info for stage, session in self._sessions.items()}

    @property
    def open_sessions(self) -> Mapping[str, Session]:
        """The sessions themselves, for parity checks and benchmarks."""
        return self._sessions

    def encode_image(
        self, image: ImageLike, *, expressions: Sequence[str] = (), draft: bool = False
    ) -> Scene:
        """Runs the two image encoders once.

        image: a path, a PIL image, or a uint8 array [H, W], [H, W, 3] RGB or [H, W, 4] RGBA. Raises
        ImageError. expressions: those that will be asked first, if known: where stages overlap,
        their text is encoded meanwhile. draft: a large JPEG is decoded at a half, a quarter or an
        eighth of its size, which is faster and changes what the encoders see by a level or two; the
        scene keeps the image's own size.
        """
        timings: Timings = {}
        preprocess = self.bundle.manifest.preprocess
        with timed(timings, "image.load"):
            picture = load_picture(image, preprocess.sam.size if draft else None)
        with timed(timings, "image.prepare"):
            sam_image, clip_image = prepare_image(picture.pixels, preprocess)
        jobs = {"sam_image_encoder": sam_image, "clip_image_encoder": clip_image}
        text = None
        if self.overlap:
            with ThreadPoolExecutor(len(jobs) + 1) as pool:  # each graph on its own stream
                ahead = tuple(expressions[: self.max_expressions])
                waiting = pool.submit(self._encode_text, ahead) if ahead else None
                encoded = list(
                    pool.map(lambda stage: self._encode(stage, jobs[stage], timings), jobs)
                )
                text = waiting.result() if waiting else None
        else:
            encoded = [self._encode(stage, jobs[stage], timings) for stage in jobs]
        embeddings, tokens = encoded[0]["image_embeddings"], encoded[1]["clip_tokens"]
        return Scene(self, picture.height, picture.width, embeddings, tokens, timings, text)

    @property
    def overlap(self) -> bool:
        """Whether stages that do not depend on each other run side by side."""
        if self._overlap is not None:
            return self._overlap
        return all(
            self._session(stage).info.device == "cuda"
            for stage in ("sam_image_encoder", "clip_image_encoder")
        )

    def segment(
        self,
        image: ImageLike,
        expression: str,
        *,
        category: str | None = None,
        no_target_threshold: float | None = 0.5,
    ) -> Segmentation:
        """One image, one expression. For several expressions encode the image once:
        `encode_image`.
        """
        scene = self.encode_image(image, expressions=[expression])
        return scene.segment(expression, category=category, no_target_threshold=no_target_threshold)

    def _session(self, stage: str) -> Session:
        session = self._sessions.get(stage)
        if session is None:
            raise RisError("the model is closed; load the bundle again")
        return session

    def _encode(self, stage: str, image: Float, timings: Timings) -> Mapping[str, Value]:
        """Runs an image encoder; its outputs stay where they are."""
        session = self._session(stage)
        with timed(timings, f"image.{stage}"):
            return session.run_and_keep({"image": image})

    def _run(self, stage: str, feeds: Mapping[str, Value], timings: Timings) -> dict[str, Float]:
        session = self._session(stage)
        with timed(timings, stage):
            return session.run(feeds)

    def _encode_text(self, expressions: Sequence[str]) -> EncodedText:
        timings: Timings = {}
        with timed(timings, "tokenize"):
            tokens = self._tokenize(expressions)
        session = self._session("text_encoder")
        with timed(timings, "text_encoder"):
            features = session.run_and_keep({"input_ids": tokens.ids})["text_features"]
        return EncodedText(tuple(expressions), tokens, features, timings)

    def _fuse(self, feeds: Mapping[str, Value], timings: Timings) -> Mapping[str, Value]:
        """Runs the fusion; of what it gives, only the dense prompt visits the host, which
        interpolates it.
        """
        link = self.bundle.manifest.dense_prompt

        spent: Timings = {}

        def interpolate(maps: Float) -> Float:
            with timed(spent, "dense_prompt"):
                return resize_maps(maps, link.target, link.target, link.interpolation)

        session = self._session("fusion")
        with timed(spent, "both"):
            step = HostStep(interpolate, (link.target, link.target))
            fused = session.run_and_keep(feeds, {"dense_prompt": step})
        timings["fusion"] = spent["both"] - spent["dense_prompt"]
        timings["dense_prompt"] = spent["dense_prompt"]
        return fused

    def _ask(
        self,
        scene: Scene,
        expressions: Sequence[str],
        asked: Sequence[Guess | None],
        no_target_threshold: float | None,
    ) -> list[Segmentation]:
        """One pass of the expression graphs; asked: the known category of each, None for models
        without.
        """
        manifest = self.bundle.manifest
        text = scene._text
        if text is None or text.expressions != tuple(expressions):
            text = self._encode_text(expressions)
        tokens, timings = text.tokens, dict(text.timings)
        index = np.zeros(len(expressions), np.int32)
        feeds: dict[str, Value] = {
            "clip_tokens": scene.clip_tokens,
            "text_features": text.features,
            "text_mask": tokens.mask,
            "image_index": index,
        }
        if manifest.no_target:
            feeds["image_embeddings"] = scene.image_embeddings
        if self._category_features is not None and self._table is not None:
            rows = [self._table.row(guess.category) for guess in asked if guess is not None]
            feeds["category_feature"] = np.ascontiguousarray(self._category_features[rows])
        fused = self._fuse(feeds, timings)
        feeds = {
            "image_embeddings": scene.image_embeddings,
            "dense_prompt": fused["dense_prompt"],
            "sparse_prompt": fused["sparse_prompt"],
            "image_index": index,
        }
        logits = self._run("mask_decoder", feeds, timings)["mask_logits"][:, 0]
        probabilities = _no_target_probabilities(fused.get("no_target_logits"), len(expressions))
        results = []
        for expression, guess, low, probability, notes in zip(
            expressions, asked, logits, probabilities, tokens.notes, strict=True
        ):
            own: Timings = {stage: seconds / len(expressions) for stage, seconds in timings.items()}
            absent = (
                probability is not None
                and no_target_threshold is not None
                and probability >= no_target_threshold
            )
            with timed(own, "mask"):
                threshold = manifest.postprocess.threshold
                if absent:
                    mask, score = np.zeros((scene.height, scene.width), np.bool_), 0.0
                else:
                    mask = mask_from_logits(low, scene.height, scene.width, threshold)
                    score = mask_score(low, threshold)
            name, word = (guess.category, guess.word) if guess else (None, None)
            if word:
                notes = (*notes, f"guessed the category {name} from {word!r}")
            results.append(
                Segmentation(
                    expression,
                    mask,
                    low,
                    score,
                    probability,
                    absent,
                    name,
                    scene.timings | own,
                    notes,
                    word,
                )
            )
        return results

    def _categories_to_ask(
        self, expressions: Sequence[str], categories: Sequence[str] | None
    ) -> list[Guess | None]:
        """A known category for each expression, guessed for "auto"; None for each where the model
        has none.
        """
        if self._table is None:
            if any(name != AUTO for name in categories or ()):
                raise ExpressionError("this model does not ask by category; leave the category out")
            return [None] * len(expressions)
        if categories is None:
            raise ExpressionError(
                "this model asks by category: name each object's COCO category too (--category"
                " person), or have it guessed (--category auto)"
            )
        if len(categories) != len(expressions):
            raise ExpressionError(
                f"{len(expressions)} expressions need as many categories, got {len(categories)}"
            )
        table = self._table
        return [
            table.guess(text) if name == AUTO else table.known(name)
            for name, text in zip(categories, expressions, strict=True)
        ]

    def close(self) -> None:
        """Gives the engines' memory back; may be called twice."""
        for session in self._sessions.values():
            session.close()
        self._sessions.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


def _no_target_probabilities(value: Value | None, count: int) -> list[float | None]:
    """Softmax over (target, no target); class 1 is "no target"."""
    if value is None:
        return [None] * count
    logits = value if isinstance(value, np.ndarray) else value.numpy()
    difference = logits[:, 0].astype(np.float64) - logits[:, 1]
    return [float(p) for p in 1 / (1 + np.exp(difference))]
