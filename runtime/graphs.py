"""The five graphs of a bundle, one after the other, and what the host does between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ris.engines import HostStep, Session, Value
from ris.engines.errors import RisError
from ris.runtime.bundle import Bundle
from ris.runtime.categories import CategoryTable, read_table
from ris.runtime.interpolate import Float, resize_maps
from ris.runtime.segmentation import Timings, timed
from ris.runtime.text import ExpressionTokenizer, Tokens


@dataclass(frozen=True)
class EncodedText:
    """What the text encoder gave for N expressions."""

    expressions: tuple[str, ...]
    """What was encoded."""

    tokens: Tokens
    """Their ids."""

    features: Value
    """float32 [N, T, C], on the device where there is one."""

    timings: Timings
    """Seconds by stage."""


class Graphs:
    """The opened graphs. Several threads may use them at once."""

    sessions: dict[str, Session]
    """A session for each stage; none after `close`."""

    categories: CategoryTable | None
    """The table of a model that asks by category, None for others."""

    def __init__(self, bundle: Bundle, sessions: Mapping[str, Session]) -> None:
        manifest = bundle.manifest
        self.sessions = dict(sessions)
        self._manifest = manifest
        self._tokenize = ExpressionTokenizer(
            bundle.file(manifest.text.tokenizer), manifest.text.max_tokens
        )
        self.categories = None
        self._category_features: Float | None = None
        if (files := manifest.categories) is not None:
            self.categories, self._category_features = read_table(
                bundle.file(files.names), bundle.file(files.features)
            )

    def session(self, stage: str) -> Session:
        """The session of a stage. Raises RisError where the graphs are closed."""
        session = self.sessions.get(stage)
        if session is None:
            raise RisError("the model is closed; load the bundle again")
        return session

    def close(self) -> None:
        """Gives the engines' memory back; may be called twice."""
        for session in self.sessions.values():
            session.close()
        self.sessions.clear()

    def encode_image(self, stage: str, image: Float, timings: Timings) -> Mapping[str, Value]:
        """Runs one of the image encoders; its outputs stay on the device."""
        session = self.session(stage)
        with timed(timings, f"image.{stage}"):
            return session.run_and_keep({"image": image})

    def encode_text(self, expressions: Sequence[str]) -> EncodedText:
        """Runs the tokenizer and the text encoder, whose output stays on the device."""
        timings: Timings = {}
        with timed(timings, "tokenize"):
            tokens = self._tokenize(expressions)
        session = self.session("text_encoder")
        with timed(timings, "text_encoder"):
            features = session.run_and_keep({"input_ids": tokens.ids})["text_features"]
        return EncodedText(tuple(expressions), tokens, features, timings)

    def ask(
        self,
        image_embeddings: Value,
        clip_tokens: Value,
        text: EncodedText,
        categories: Sequence[int],
        timings: Timings,
    ) -> tuple[Float, list[float | None]]:
        """Runs fusion and mask decoder for N expressions about one image.

        Args:
            image_embeddings: What SAM's image encoder gave.
            clip_tokens: What CLIP's image encoder gave.
            text: The expressions.
            categories: The row of each expression's category in the table; empty for models that
                ask by none.
            timings: Gets the seconds of each stage.

        Returns:
            The mask logits, float32 [N, m, m], and for each expression the probability that it
            names nothing in the image, None for models without such a head.
        """
        count = len(text.expressions)
        image_index = np.zeros(count, np.int32)  # all ask the one image
        feeds: dict[str, Value] = {
            "clip_tokens": clip_tokens,
            "text_features": text.features,
            "text_mask": text.tokens.mask,
            "image_index": image_index,
        }
        if self._manifest.no_target:
            feeds["image_embeddings"] = image_embeddings
        if self._category_features is not None:
            feeds["category_feature"] = np.ascontiguousarray(
                self._category_features[list(categories)]
            )
        fused = self._fuse(feeds, timings)

        logits = self._decode(image_embeddings, fused, image_index, timings)
        return logits, _no_target_probabilities(fused.get("no_target_logits"), count)

    def _fuse(self, feeds: Mapping[str, Value], timings: Timings) -> Mapping[str, Value]:
        """Runs the fusion; of its outputs only the dense prompt visits the host."""
        link = self._manifest.dense_prompt
        spent: Timings = {}

        def interpolate(maps: Float) -> Float:
            with timed(spent, "dense_prompt"):
                return resize_maps(maps, link.target, link.target, link.interpolation)

        session = self.session("fusion")
        with timed(spent, "both"):
            step = HostStep(interpolate, (link.target, link.target))
            fused = session.run_and_keep(feeds, {"dense_prompt": step})

        timings["fusion"] = spent["both"] - spent["dense_prompt"]
        timings["dense_prompt"] = spent["dense_prompt"]
        return fused

    def _decode(
        self,
        image_embeddings: Value,
        fused: Mapping[str, Value],
        image_index: NDArray[np.int32],
        timings: Timings,
    ) -> Float:
        """Runs the mask decoder."""
        feeds: dict[str, Value] = {
            "image_embeddings": image_embeddings,
            "dense_prompt": fused["dense_prompt"],
            "sparse_prompt": fused["sparse_prompt"],
            "image_index": image_index,
        }
        session = self.session("mask_decoder")
        with timed(timings, "mask_decoder"):
            outputs = session.run(feeds)
        return outputs["mask_logits"][:, 0]


def _no_target_probabilities(value: Value | None, count: int) -> list[float | None]:
    """One for each of `count` expressions; None where the fusion gives no logits."""
    if value is None:
        return [None] * count
    return [*no_target_probabilities(value if isinstance(value, np.ndarray) else value.numpy())]


def no_target_probabilities(logits: NDArray[np.floating]) -> list[float]:
    """Softmax over logits [N, 2] of (target, no target); class 1 is "no target"."""
    difference = logits[:, 0].astype(np.float64) - logits[:, 1]
    return [float(p) for p in 1 / (1 + np.exp(difference))]
