"""Bytes and expressions in, answers out: what Triton's model, a batch worker and the page do with a
request.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future

from ris.engines.errors import ExpressionError
from ris.runtime.model import Model, Scene, Segmentation
from ris.serving.limits import Deadline, Limits


class SceneCache:
    """The last `capacity` encoded images, by content. Threads that ask for one image at once encode
    it once.
    """

    def __init__(self, capacity: int) -> None:
        self.hits = self.misses = 0
        self._capacity = capacity
        self._scenes: OrderedDict[bytes, Future[Scene]] = OrderedDict()
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._scenes)

    def get(self, key: bytes, encode: Callable[[], Scene]) -> tuple[Scene, bool]:
        """The scene, and whether it was there already. What `encode` raises goes to all who wait
        for it.
        """
        with self._lock:
            future = self._scenes.get(key)
            found = future is not None
            if future is None:
                future = self._scenes[key] = Future()
                self.misses += 1
                while len(self._scenes) > self._capacity:
                    self._scenes.popitem(last=False)
            else:
                self._scenes.move_to_end(key)
                self.hits += 1
        if not found:
            try:
                future.set_result(encode())
            except BaseException as error:
                with self._lock:
                    if self._scenes.get(key) is future:
                        del self._scenes[key]
                future.set_exception(error)
                raise
        return future.result(), found


class Answerer:
    """A model behind limits, with a cache of encoded images. May be used from several threads."""

    def __init__(self, model: Model, limits: Limits | None = None, cached_images: int = 16) -> None:
        self.model = model
        self.limits = limits or Limits()
        self.cache = SceneCache(cached_images)

    def scene(self, image: bytes) -> tuple[Scene, bool]:
        """The encoded image of a file's bytes, and whether it came from the cache. Raises
        ImageError, LimitError.
        """
        if len(image) > self.limits.image_bytes:
            self.limits.decode(image)  # says so
        key = hashlib.sha256(image).digest()
        return self.cache.get(key, lambda: self._encode(image))

    def _encode(self, image: bytes) -> Scene:
        start = time.perf_counter()
        rgb = self.limits.decode(image)
        loaded = time.perf_counter() - start
        scene = self.model.encode_image(rgb)
        scene.timings["image.load"] = loaded  # of the file; `encode_image` was handed pixels
        return scene

    def ask(
        self,
        scene: Scene,
        expressions: Sequence[str],
        categories: Sequence[str] | None = None,
        no_target_threshold: float | None = 0.5,
        deadline: Deadline | None = None,
    ) -> list[Segmentation | ExpressionError]:
        """An answer to each expression, or why it cannot be asked. Raises LimitError when time is
        up.
        """
        answers: list[Segmentation | ExpressionError] = []
        step = self.model.max_expressions
        for start in range(0, len(expressions), step):
            if deadline:
                deadline.check()
            part = expressions[start : start + step]
            asked = None if categories is None else categories[start : start + step]
            try:
                answers += scene.segment_many(
                    part, categories=asked, no_target_threshold=no_target_threshold
                )
            except ExpressionError as error:
                if len(part) == 1:
                    answers.append(error)
                    continue
                for i, text in enumerate(
                    part
                ):  # one bad expression must not cost the others their answers
                    answers += self.ask(
                        scene, [text], asked and [asked[i]], no_target_threshold, deadline
                    )
        return answers
