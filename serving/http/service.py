"""A question to its answers: cache, queue, deadline, threads. Every router asks here."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ris.engines.errors import EngineError, ExpressionError, ImageError, RisError
from ris.runtime import Scene, Segmentation
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.runtime.segmentation import timed
from ris.serving.answering import Answerer
from ris.serving.http.metrics import Metrics
from ris.serving.http.models import Models, OpenModel, categories_for
from ris.serving.http.settings import HttpSettings
from ris.serving.http.turns import Door, Turns
from ris.serving.limits import Deadline, LimitError

T = TypeVar("T")

_log = logging.getLogger("ris.http")
_BROKEN_AFTER = 3
"""So many failures of the engine, one after the other, and the server says that it is not live."""


@dataclass(frozen=True)
class Question:
    """One image, and what is looked for in it."""

    expressions: Sequence[str]
    """What is looked for."""

    image: bytes | None = None
    """An image file. None: the image is named by `image_id`."""

    image_id: str | None = None
    """The SHA-256 of a file that was asked about before, in hexadecimal digits."""

    categories: Sequence[str] | None = None
    """One for each expression, for models that ask by category. None: guessed."""

    no_target_threshold: float | None = 0.5
    """Above this no-target probability the mask is empty. None: never."""

    draws: Draws = ONE_DRAW
    """The random numbers, for models that draw any."""

    form: str | None = None
    """The form that the expressions are asked in, for models that have some. None: the server's."""

    seconds: float | None = None
    """How long the answer may take. None, and at most: `Limits.seconds`."""


@dataclass(frozen=True)
class Answered(Generic[T]):
    """The answers to a question."""

    answers: list[T | ExpressionError]
    """One for each expression; an error where it cannot be asked."""

    image_id: str
    """What the image may be named by in the next question."""

    height: int
    """The image's height in pixels."""

    width: int
    """The image's width in pixels."""

    from_cache: bool
    """Whether the image had been encoded already."""

    seconds: dict[str, float]
    """Seconds by stage, of all expressions together; `queue` is the waiting."""


class _Watch(Deadline):
    """A deadline that comes at once when nobody waits for the answer any more."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.gone = threading.Event()

    def check(self) -> None:
        """Raises LimitError once the time is up, or the client gone."""
        if self.gone.is_set():
            raise LimitError("nobody waits for the answer any more", 499)
        super().check()


@dataclass(frozen=True)
class _Job(Generic[T]):
    """A question on its way through the threads."""

    question: Question
    """The question."""

    answerer: Answerer
    """The model that answers it."""

    key: bytes
    """The SHA-256 of its image."""

    scene: Scene | None
    """The encoded image, where it was kept."""

    watch: _Watch
    """When to give up."""

    render: Callable[[Segmentation], T]
    """What is made of each answer, in the same thread."""

    def work(self) -> tuple[list[T | ExpressionError], Scene, dict[str, float]]:
        """Runs in a thread."""
        self.watch.check()
        seconds: dict[str, float] = {}
        if self.scene is None:
            assert self.question.image is not None
            scene, known = self.answerer.scene(self.question.image)
            if not known:
                seconds.update(scene.timings)
        else:
            scene = self.scene

        answers: list[T | ExpressionError] = []
        texts, step = self.question.expressions, self.answerer.model.max_expressions
        categories = categories_for(self.answerer, self._categories(), len(texts))
        for start in range(0, len(texts), step):
            part = slice(start, start + step)
            found = self.answerer.ask(
                scene,
                texts[part],
                categories[part] if categories else None,
                self.question.no_target_threshold,
                self.watch,
                self.question.draws,
                self.question.form,
            )
            # masks of one group at a time: the written answers are much smaller
            answers += self._rendered(found, seconds)
        return answers, scene, seconds

    def _categories(self) -> list[str] | None:
        given = self.question.categories
        return None if given is None else list(given)

    def _rendered(
        self, found: list[Segmentation | ExpressionError], seconds: dict[str, float]
    ) -> list[T | ExpressionError]:
        rendered: list[T | ExpressionError] = []
        for answer in found:
            if isinstance(answer, ExpressionError):
                rendered.append(answer)
                continue
            self.watch.check()  # polygons of a torn mask take seconds
            for stage, own in answer.timings.items():
                if not stage.startswith("image."):
                    seconds[stage] = seconds.get(stage, 0.0) + own
            with timed(seconds, "write"):
                rendered.append(self.render(answer))
        return rendered


class Service:
    """A bundle that many ask at once. Belongs to the event loop that `start` runs in."""

    def __init__(
        self,
        open_model: OpenModel,
        settings: HttpSettings | None = None,
        metrics: Metrics | None = None,
    ) -> None:
        """open_model: opens the bundle, now and at each reload."""
        self.settings = settings or HttpSettings()
        self.metrics = metrics or Metrics()
        self.draining = False
        self.failure: RisError | None = None  # why `start` did not work
        limits = self.settings.limits
        cached, form = self.settings.cached_images, self.settings.form
        self.models = Models(open_model, limits, cached, form)
        self.door = Door(
            limits.waiting + self.settings.parallel,
            self.settings.body_bytes,
            self.settings.per_client,
        )
        # what to do where the engine fails at everything, such as ending the process
        self.when_broken: Callable[[], None] = lambda: None
        self._turns: Turns | None = None
        self._faults = 0
        self._examining: asyncio.Task[None] | None = None
        self._examined_from: float | None = None
        self._readers = ThreadPoolExecutor(2, "ris-read")
        self._askers = ThreadPoolExecutor(self.settings.parallel, "ris-ask")

    # Its life

    async def start(self) -> None:
        """Opens the model. Raises RisError where that does not work."""
        try:
            await self.models.load()
        except RisError as error:
            self.failure = error
            raise
        together = self.answerer.model.max_expressions
        self._turns = Turns(self.settings.parallel, self.settings.picture_ceiling(together))
        self.metrics.watch(self)
        _log.info("serving", extra={"fields": self._said(together)})

    def _said(self, together: int) -> dict[str, object]:
        """What the log says at the start."""
        model = self.answerer.model
        ceiling = self.settings.ceiling(together, self.models.scene_bytes)
        return {
            "family": model.bundle.manifest.family,
            "computes": model.choice.words if model.choice else None,
            "expressions_together": together,
            "memory_ceiling_mb": round(ceiling / 1e6),
        }

    async def reload(self) -> None:
        """Opens the bundle anew; no request is lost, and the old model answers what it began.

        Raises:
            RisError: Where it cannot be opened. The old one goes on.
        """
        try:
            await self.models.load()
        except BaseException:
            self.metrics.reloads.labels("failed").inc()
            raise
        self._faults = 0
        self.metrics.reloads.labels("done").inc()

    async def close(self) -> None:
        """Ends the threads and closes the model, after what they have begun."""
        self.draining = True
        await asyncio.to_thread(self._askers.shutdown)
        self._readers.shutdown(wait=False)
        await self.models.close()

    # What it says of itself

    @property
    def answerer(self) -> Answerer:
        """The model that answers now. Raises RisError where none is loaded."""
        if self.models.current is None:
            raise RisError("no model is loaded")
        return self.models.current

    @property
    def live(self) -> bool:
        """False where the engine failed several times in a row: a new process may help.

        A picture that nothing is wrong with is asked about then; where that is answered, the
        questions were to blame, and the server is live again. False, too, while the engine hangs.
        """
        return not self._fails and not self.hangs

    @property
    def _fails(self) -> bool:
        return self._faults >= _BROKEN_AFTER

    @property
    def hangs(self) -> bool:
        """Whether the engine has been at something for far longer than a question may take."""
        longest = self._turns.longest if self._turns else 0.0
        if self._examined_from is not None:
            longest = max(longest, time.monotonic() - self._examined_from)
        return longest > self.settings.limits.hang_seconds

    async def _examine(self) -> None:
        self._examined_from = time.monotonic()
        try:
            with self.models.lease() as answerer:
                if await asyncio.to_thread(answerer.is_well):
                    self._faults = 0
        finally:
            self._examined_from = None
        if self._fails:  # nor reloaded meanwhile
            _log.error("the engine fails at everything")
            self.when_broken()

    @property
    def ready(self) -> bool:
        """Whether a new request is welcome."""
        return self.live and not self.draining and self.models.current is not None

    @property
    def waiting(self) -> int:
        """Questions in the queue."""
        return self._turns.waiting if self._turns else 0

    @property
    def running(self) -> int:
        """Questions that the model answers now."""
        return self._turns.running if self._turns else 0

    @property
    def retry_after(self) -> int:
        """Seconds after which a client that is sent away may come again."""
        return self._turns.retry_after(self.door.requests) if self._turns else 1

    # Questions

    async def segment(self, question: Question) -> Answered[Segmentation]:
        """The masks themselves; `answer` keeps fewer of them in memory."""
        return await self._answered(question, _as_it_is, len(question.expressions))

    async def answer(self, question: Question, render: Callable[[Segmentation], T]) -> Answered[T]:
        """What `render` makes of each mask.

        A caller that is cancelled leaves the queue; what the model has begun ends with the group
        of expressions that it is at.

        Args:
            question: What is asked.
            render: Runs in the thread that asked the model. Of several groups of expressions, the
                masks of one are in memory at a time.

        Raises:
            ImageError, ExpressionError: For what cannot be asked at all.
            LimitError: For a question beyond a limit, out of time, or about an image that is not
                kept; BusyError where it may be asked again later.
            EngineError: Where the engine fails.
        """
        together = self.answerer.model.max_expressions
        return await self._answered(question, render, min(together, len(question.expressions)))

    async def _answered(
        self, question: Question, render: Callable[[Segmentation], T], masks: int
    ) -> Answered[T]:
        self.settings.limits.check_expressions(question.expressions)
        categories = question.categories
        if categories is not None and len(categories) != len(question.expressions):
            raise ExpressionError(
                f"{len(question.expressions)} expressions need as many categories"
            )

        most = self.settings.limits.seconds
        seconds = most if question.seconds is None else min(question.seconds, most)
        watch = _Watch(seconds)
        try:
            async with asyncio.timeout(seconds):
                with self.models.lease() as answerer:
                    self._check_way(answerer, question)
                    answered = await self._asked(question, answerer, watch, render, masks)
        except TimeoutError:
            watch.gone.set()
            raise LimitError(
                f"the request took longer than {seconds:g} s; send fewer expressions at a time, or"
                " come when fewer are waiting",
                504,
            ) from None
        except asyncio.CancelledError:
            watch.gone.set()
            raise
        except EngineError:
            self._faults += 1
            if self._fails and (self._examining is None or self._examining.done()):
                self._examining = asyncio.ensure_future(self._examine())
            raise
        self._faults = 0
        self.metrics.answered(answered)
        return answered

    async def _asked(
        self,
        question: Question,
        answerer: Answerer,
        watch: _Watch,
        render: Callable[[Segmentation], T],
        masks: int,
    ) -> Answered[T]:
        loop = asyncio.get_running_loop()
        key, scene, size = await loop.run_in_executor(
            self._readers, self._read, question, answerer, masks
        )

        assert self._turns is not None
        began = time.perf_counter()
        turn = await self._turns.turn(size)
        queued = time.perf_counter() - began

        job = _Job(question, answerer, key, scene, watch, render)
        future = self._askers.submit(job.work)

        def over(done: Future[Any]) -> None:
            # a thread whose caller was cancelled keeps its turn: it still uses the memory
            if not loop.is_closed():
                loop.call_soon_threadsafe(turn.release)

        future.add_done_callback(over)
        answers, asked, stages = await asyncio.wrap_future(future)
        known = scene is not None or "image.load" not in stages
        return Answered(
            answers, key.hex(), asked.height, asked.width, known, {"queue": queued, **stages}
        )

    def _read(
        self, question: Question, answerer: Answerer, masks: int
    ) -> tuple[bytes, Scene | None, int]:
        """The image's key, its scene where it is kept, and the bytes that the question takes."""
        settings = self.settings
        if question.image is None:
            key = _key(question.image_id)
            scene = answerer.cache.kept(key)
            if scene is None:
                raise LimitError("no image of this image_id is kept; send the image itself", 404)
        else:
            key = answerer.key_of(question.image)
            scene = answerer.cache.kept(key)
        if scene is not None:
            return key, scene, settings.mask_bytes(scene.height * scene.width, masks)

        assert question.image is not None
        pixels = settings.limits.pixels_of(question.image)
        size = settings.question_bytes(pixels, masks)
        if size > settings.picture_ceiling(answerer.model.max_expressions):
            raise LimitError(
                f"{masks} masks of {pixels / 1e6:.1f} megapixels at once take more memory than"
                " this server has for pictures; send fewer expressions or a smaller image",
                413,
            )
        return key, None, size

    def _check_way(self, answerer: Answerer, question: Question) -> None:
        """Raises ExpressionError for a form or random numbers that the model does not take."""
        host = answerer.model.bundle.manifest.host
        host.text.form_named(question.form)
        try:
            question.draws.check(host.drawn)
        except RisError as error:
            raise ExpressionError(str(error)) from None  # the client's mistake


def _as_it_is(answer: Segmentation) -> Segmentation:
    return answer


def _key(image_id: str | None) -> bytes:
    try:
        key = bytes.fromhex(image_id or "")
    except ValueError:
        key = b""
    if len(key) != 32:
        raise ImageError("there is no image; send image, or the image_id of an earlier answer")
    return key
