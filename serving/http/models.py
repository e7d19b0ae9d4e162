"""The model that answers now, and its successor: a reload that loses no request."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np

from ris.engines.errors import BundleError, ExpressionError, RisError
from ris.runtime import Model
from ris.runtime.categories import AUTO
from ris.serving.answering import Answerer
from ris.serving.limits import Limits

OpenModel = Callable[[], Model]
"""Opens the bundle anew, from wherever it is found."""


class Served:
    """A model with its encoded images, and how many questions it is answering."""

    def __init__(self, answerer: Answerer, scene_bytes: int) -> None:
        """scene_bytes: what an encoded image takes, on the host or on the device."""
        self.answerer, self.scene_bytes = answerer, scene_bytes
        self.users = 0
        self.retired = False


class Models:
    """Hands out the model. Belongs to one event loop; models are opened and closed in threads."""

    def __init__(
        self, open_model: OpenModel, limits: Limits, cached_images: int, form: str | None = None
    ) -> None:
        """Over a bundle that `load` opens.

        Args:
            open_model: Opens it.
            limits: What a request may be.
            cached_images: Encoded images that are kept.
            form: The form of questions that name none. None: the model's own choice.
        """
        self._open_model, self._limits, self._cached = open_model, limits, cached_images
        self._form = form
        self._served: Served | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self._lock = asyncio.Lock()

    @property
    def current(self) -> Answerer | None:
        """The model that new questions go to; None before `load` and after `close`."""
        return self._served.answerer if self._served else None

    @property
    def scene_bytes(self) -> int:
        """Bytes of an encoded image."""
        return self._served.scene_bytes if self._served else 0

    async def load(self) -> None:
        """Opens the bundle, asks the model once, and only then hands new questions to it.

        The one before answers what it has begun, and is closed. Until then both are in memory.

        Raises:
            RisError: Where the bundle cannot be opened, or is not asked in the form that this
                server was given; the one before goes on.
        """
        async with self._lock:
            opened = await asyncio.to_thread(self._opened)
            before, self._served = self._served, opened
            if before:
                self._retire(before)

    def _opened(self) -> Served:
        model = self._open_model()
        try:
            try:
                answerer = Answerer(model, self._limits, self._cached, self._form)
            except ExpressionError as error:  # the bundle's fault, and not a question's
                raise BundleError(f"the bundle does not fit --form: {error}") from None
            # engines allocate and compile at the first question, and a broken device shows there
            categories = [model.categories[0]] if model.categories else None
            scene = model.encode_image(np.zeros((64, 64, 3), np.uint8))
            scene.segment_many(["left man"], categories=categories, form=answerer.form)
        except BaseException:
            model.close()
            raise
        size = sum(math.prod(v.shape) * v.dtype.itemsize for v in scene.values.values())
        return Served(answerer, size)

    @contextmanager
    def lease(self) -> Iterator[Answerer]:
        """The model for one question; it is not closed before the end of the block."""
        served = self._served
        if served is None:
            raise RisError("no model is loaded")
        served.users += 1
        try:
            yield served.answerer
        finally:
            served.users -= 1
            if served.retired and not served.users:
                self._close_in_a_thread(served)

    def _retire(self, served: Served) -> None:
        served.retired = True
        if not served.users:
            self._close_in_a_thread(served)

    def _close_in_a_thread(self, served: Served) -> None:
        closing = asyncio.ensure_future(asyncio.to_thread(served.answerer.model.close))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Closes every model; those that answer finish first."""
        if self._served:
            served, self._served = self._served, None
            self._retire(served)
        if self._closing:
            await asyncio.wait(self._closing)


def categories_for(
    answerer: Answerer, categories: list[str] | None, count: int
) -> list[str] | None:
    """The categories to ask: those that were given, or "auto" for models that ask by category."""
    if categories is None:
        return [AUTO] * count if answerer.model.categories else None
    return categories
