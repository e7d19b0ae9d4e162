"""Bytes and expressions in, answers out: what every door does with a request.

Triton's model, a batch worker and the page all ask through an `Answerer`.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import EngineError, ExpressionError
from ris.engines.text import reason_of
from ris.runtime import Model, Scene, Segmentation
from ris.runtime.asking import segment_each
from ris.runtime.categories import AUTO
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.serving.limits import Deadline, Limits


class SceneCache:
    """The last `capacity` encoded images, by content.

    Threads that ask for one image at once encode it once.
    """

    hits: int
    """How often an image was there already."""

    misses: int
    """How often an image had to be encoded."""

    def __init__(self, capacity: int) -> None:
        self.hits = self.misses = 0
        self._capacity = capacity
        self._scenes: OrderedDict[bytes, Future[Scene]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._scenes)

    def get(self, key: bytes, encode: Callable[[], Scene]) -> tuple[Scene, bool]:
        """The scene, and whether it was there already.

        An error that `encode` raises is raised in all threads that wait for the scene.
        """
        future, found = self._find(key)
        if not found:
            try:
                future.set_result(encode())
            except BaseException as error:
                self._forget(key, future)
                future.set_exception(error)
                raise
        return future.result(), found

    def kept(self, key: bytes) -> Scene | None:
        """The scene, where it is there already; nobody waits for one that is being encoded."""
        with self._lock:
            future = self._scenes.get(key)
            if future is None or not future.done() or future.exception():
                return None
            self._scenes.move_to_end(key)
            self.hits += 1
        return future.result()

    def _find(self, key: bytes) -> tuple[Future[Scene], bool]:
        """The key's future, and whether it was there; a new one is the caller's to fulfil."""
        with self._lock:
            future = self._scenes.get(key)
            if future is not None:
                self._scenes.move_to_end(key)
                self.hits += 1
                return future, True

            future = self._scenes[key] = Future()
            self.misses += 1
            while len(self._scenes) > self._capacity:
                self._scenes.popitem(last=False)
            return future, False

    def _forget(self, key: bytes, future: Future[Scene]) -> None:
        with self._lock:
            # the key may have been dropped and asked for anew meanwhile
            if self._scenes.get(key) is future:
                del self._scenes[key]


@dataclass(frozen=True, eq=False)
class Decoded:
    """An image that was decoded ahead of its turn."""

    pixels: NDArray[np.uint8]
    """uint8 RGB [H, W, 3]."""

    key: bytes
    """The SHA-256 of the file's bytes."""

    seconds: float
    """What decoding took."""


@contextmanager
def _engine_faults() -> Iterator[None]:
    """Turns what a library raises while the model runs into an EngineError.

    No image and no expression is to blame for it.
    """
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        raise EngineError(f"the engine failed: {reason_of(error)}") from error


def gradient_picture() -> NDArray[np.uint8]:
    """A picture of smooth colours, uint8 RGB [64, 96, 3], to see whether a model answers at all."""
    x = np.linspace(0, 255, 96, dtype=np.uint8)
    red, green = np.tile(x, (64, 1)), np.tile(x[::-1], (64, 1))
    blue = np.tile(x[:64, None], (1, 96))
    return np.stack([red, green, blue], axis=2)


class Answerer:
    """A model behind limits, with a cache of encoded images. Several threads may use it."""

    form: str | None
    """The form of questions that name none; None where the model asks every expression as it is."""

    def __init__(
        self,
        model: Model,
        limits: Limits | None = None,
        cached_images: int = 16,
        form: str | None = None,
    ) -> None:
        """Over an open model.

        Args:
            model: The model that is asked.
            limits: What a request may be. None: `Limits()`.
            cached_images: Encoded images that are kept.
            form: The form of questions that name none. None: the model's own choice.

        Raises:
            ExpressionError: Where the model has no such form.
        """
        text = model.bundle.manifest.host.text
        text.form_named(form)  # raises for an unknown one
        self.form = text.form if form is None else form
        self.model = model
        self.limits = limits or Limits()
        self.cache = SceneCache(cached_images)

    def decode(self, image: bytes) -> Decoded:
        """The pixels of an image file, for `scene`; another thread may make them meanwhile.

        Raises ImageError for what is no image, LimitError for one that is too large.
        """
        start = time.perf_counter()
        pixels = self.limits.decode(image)
        seconds = time.perf_counter() - start
        return Decoded(pixels, hashlib.sha256(image).digest(), seconds)

    def scene(self, image: bytes | Decoded) -> tuple[Scene, bool]:
        """The encoded image of a file's bytes, and whether it came from the cache.

        Raises:
            ImageError: For what is no image.
            LimitError: For one that is too large.
            EngineError: Where the engine fails.
        """
        if isinstance(image, Decoded):
            return self.cache.get(image.key, lambda: self._encode(image))
        return self.cache.get(self.key_of(image), lambda: self._encode(self.decode(image)))

    def key_of(self, image: bytes) -> bytes:
        """What the cache knows a file by, its SHA-256.

        Raises LimitError for a file that is too large, before it is hashed.
        """
        self.limits.check_file_size(image)
        return hashlib.sha256(image).digest()

    def _encode(self, image: Decoded) -> Scene:
        with _engine_faults():
            scene = self.model.encode_image(image.pixels)
        scene.timings["image.load"] = image.seconds  # `encode_image` was handed pixels
        return scene

    def ask(
        self,
        scene: Scene,
        expressions: Sequence[str],
        categories: Sequence[str] | None = None,
        no_target_threshold: float | None = 0.5,
        deadline: Deadline | None = None,
        draws: Draws = ONE_DRAW,
        form: str | None = None,
    ) -> list[Segmentation | ExpressionError]:
        """An answer to each expression, or the error that says why it cannot be asked.

        Args:
            scene: An encoded image, as `scene` returns it.
            expressions: Any number; they go through the model in groups that it can take.
            categories: One for each expression, for models that ask by category.
            no_target_threshold: Above this no-target probability the mask is empty. None: never.
            deadline: Checked before each group. None: the request may take any time.
            draws: The random numbers, for models that draw any.
            form: The form that the expressions are asked in, for models that have some. None: that
                of the answerer.

        Raises:
            LimitError: When the time is up.
            EngineError: Where the engine fails.
            RisError: For a seed where the model draws nothing.
        """
        threshold = no_target_threshold
        return list(self.each(scene, expressions, categories, threshold, deadline, draws, form))

    def each(
        self,
        scene: Scene,
        expressions: Sequence[str],
        categories: Sequence[str] | None = None,
        no_target_threshold: float | None = 0.5,
        deadline: Deadline | None = None,
        draws: Draws = ONE_DRAW,
        form: str | None = None,
    ) -> Iterator[Segmentation | ExpressionError]:
        """What `ask` returns, an answer after the other.

        A caller that keeps what it needs of each holds the masks of one pass of the model, and not
        those of all expressions.

        Args:
            scene: As for `ask`.
            expressions: As for `ask`.
            categories: As for `ask`.
            no_target_threshold: As for `ask`.
            deadline: As for `ask`.
            draws: As for `ask`.
            form: As for `ask`.

        Raises:
            RisError: As `ask`.
        """
        check = deadline.check if deadline else lambda: None
        step = self.model.max_expressions
        asked_in = self.form if form is None else form
        for start in range(0, len(expressions), step):
            part = slice(start, start + step)
            own = None if categories is None else categories[part]
            with _engine_faults():
                texts, threshold = expressions[part], no_target_threshold
                answers = segment_each(scene, texts, own, threshold, step, check, draws, asked_in)
            answers.reverse()
            while answers:
                yield answers.pop()  # and holds it no longer

    def is_well(self) -> bool:
        """Whether the engine answers about a picture that nothing is wrong with.

        Asked after an engine failed: some failures are of one question alone, such as too little
        memory for it, and some are of the device, which then fails at everything.
        """
        try:
            scene = self.model.encode_image(gradient_picture())
            category = AUTO if self.model.categories else None
            scene.segment("left man", category=category, form=self.form)
        except Exception:
            return False
        return True
