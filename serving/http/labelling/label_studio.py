"""Label Studio's machine-learning backend: its requests, and predictions with masks.

The routes stand under /label-studio, which is the address that a project is given. What they take
and return is what Label Studio 1.23 sends and reads; `label_studio_ml` on PyPI is of 2023.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import logging
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from ris.engines.errors import EngineError, ExpressionError, ImageError, RisError
from ris.engines.text import echoed, shown
from ris.runtime import Segmentation
from ris.runtime.categories import AUTO
from ris.serving.http.labelling.label_config import (
    ANSWER,
    BOX,
    BRUSH,
    Label,
    LabelConfig,
)
from ris.serving.http.labelling.regions import box_value, brush_value, polygon_values
from ris.serving.http.labelling.tasks import (
    PART_BYTES,
    Order,
    Task,
    check_setup,
    counted,
    prompts_of,
    read_order,
)
from ris.serving.http.middleware import visit_of
from ris.serving.http.reading import parsed
from ris.serving.http.service import Answered, Question, Service
from ris.serving.limits import LimitError

PREFIX = "/label-studio"
"""Where the backend stands: http://localhost:8000/label-studio is what a project is given."""

_log = logging.getLogger("ris.http")
_MOST_SECONDS = 3600.0  # of a request; Label Studio is told to wait as long
_MOST_COMPARED = 20_000  # phrases of a task times labels


@dataclass(frozen=True)
class _Asked:
    """A phrase that is asked for a label."""

    label: Label
    """The label that its region gets."""

    phrase: str
    """What is looked for."""

    category: str | None
    """For models that ask by category."""


@dataclass
class _Found:
    """What was found in one picture."""

    regions: list[bytes] = field(default_factory=list)
    """Label Studio's results, as JSON."""

    scores: list[float] = field(default_factory=list)
    """A score for each region."""

    said: list[str] = field(default_factory=list)
    """A line for each phrase, for people."""


@dataclass(frozen=True)
class _Drawn:
    """An answer as regions, before it is known whose they are."""

    values: dict[str, list[bytes]]
    """The values of regions as JSON, by kind; none where nothing is meant."""

    score: float
    """The mean foreground probability."""

    no_target: float | None
    """The probability that nothing is meant."""


class _Drawer:
    """Makes regions of the answers to a request, up to a size and a time.

    One thread at a time uses it.
    """

    def __init__(self, most: int, hold: Callable[[int], None]) -> None:
        """most: bytes of all regions, as JSON; hold: told how many there are, on the loop."""
        self._most, self._hold = most, hold
        self._size = 0
        self._end = time.monotonic() + _MOST_SECONDS

    def __call__(self, answer: Segmentation, kinds: Sequence[str]) -> _Drawn:
        """The regions of an answer. kinds: of regions."""
        values = {kind: [self.counted(value) for value in _values(kind, answer)] for kind in kinds}
        return _Drawn(values, float(answer.score), answer.no_target)

    def counted(self, value: dict[str, Any]) -> bytes:
        """The value as JSON. Raises LimitError where there is too much of it."""
        written = _json(value)
        self._size += len(written)
        self._check_size()
        return written

    def check(self) -> None:
        """Raises LimitError where nothing more is to be drawn."""
        self._check_size()
        if time.monotonic() > self._end:
            raise LimitError(
                f"the request took longer than {_MOST_SECONDS:g} s; send fewer tasks at once", 504
            )
        self._hold(self._size)

    def _check_size(self) -> None:
        if self._size > self._most:
            raise LimitError(f"the regions have more than {self._most / 1e6:g} MB", 413)


def _json(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), allow_nan=False).encode()


def _values(kind: str, answer: Segmentation) -> Iterator[dict[str, Any]]:
    if answer.box is None:
        return
    if kind == BRUSH:
        yield brush_value(answer)
    elif kind == BOX:
        yield box_value(answer)
    else:
        yield from polygon_values(answer)


class LabelStudio:
    """Answers tasks with a service."""

    def __init__(self, service: Service) -> None:
        self._service = service
        # pictures that are fetched are no part of what the requests themselves weigh
        self._pictures = asyncio.Semaphore(service.settings.parallel)

    @property
    def model_version(self) -> str:
        """Another one for another bundle or form: Label Studio keeps a prediction of each."""
        answerer = self._service.answerer
        manifest, form = answerer.model.bundle.manifest, answerer.form
        digest = hashlib.sha256(manifest.to_json().encode()).hexdigest()
        version = f"ris-{manifest.family}-{digest[:8]}"
        return version if form == manifest.host.text.form else f"{version}-{form}"

    async def predict(self, order: Order, hold: Callable[[int], None]) -> bytes:
        """The answer to /predict, JSON: a prediction for each task.

        A task that cannot be answered has `error` in place of `result`: Label Studio writes it into
        its log and keeps no prediction. Where an annotator waits, the field `answer` has it, too.

        hold: told how many bytes of the answer there are; may raise LimitError.
        """
        version = b',"model_version":' + _json(self.model_version) + b"}"
        drawer = _Drawer(self._service.settings.answer_bytes, hold)
        results = [
            (await self._answered(task, order, drawer))[:-1] + version for task in order.tasks
        ]
        return b'{"results":[' + b",".join(results) + b"]" + version

    async def _answered(self, task: Task, order: Order, drawer: _Drawer) -> bytes:
        """The place of one task in the answer to /predict."""
        if order.config is None or order.error:
            return self._failed(order.error or RisError("nothing can be asked"), task, order)
        try:
            async with self._pictures:
                found = await self._find(task, order.config, order.typed, drawer)
            return await asyncio.to_thread(_prediction, found, order, drawer)
        except RisError as error:
            return self._failed(error, task, order)

    async def _find(
        self, task: Task, config: LabelConfig, typed: list[str] | None, drawer: _Drawer
    ) -> _Found:
        drawer.check()
        asked = await asyncio.to_thread(self._asked, task, config, typed)
        if not asked:  # the annotator took the phrase away
            return _Found()
        image = await asyncio.to_thread(self._picture, task, config)

        found = _Found()
        step = self._service.settings.limits.expressions
        kinds = sorted({each.label.kind for each in asked})
        draw = functools.partial(drawer, kinds=kinds)
        for start in range(0, len(asked), step):
            part = asked[start : start + step]
            answered = await self._service.answer(self._question(part, image), draw)
            await asyncio.to_thread(_collect, found, part, answered, config, drawer)
            drawer.check()
        return found

    def _asked(self, task: Task, config: LabelConfig, typed: list[str] | None) -> list[_Asked]:
        """What is asked of a picture: what was typed, what the task says, or every label."""
        phrases = prompts_of(task, config) if typed is None else typed
        if typed is None and not phrases:
            return [
                _Asked(label, phrase, self._category(label))
                for label in config.labels
                for phrase in label.phrases
            ]
        if len(phrases) * len(config.labels) > _MOST_COMPARED:
            raise LimitError(
                f"{len(phrases)} phrases for {len(config.labels)} labels are too many; send fewer"
                " phrases at a time",
                413,
            )
        return [self._for_a_label(text, config) for text in phrases]

    def _for_a_label(self, text: str, config: LabelConfig) -> _Asked:
        self._service.settings.limits.check_expressions([text])
        label, phrase = config.label_for(text)
        category = label.category if label.says(phrase) is not None else None
        return _Asked(label, phrase, category)

    def _category(self, label: Label) -> str | None:
        """The category of a label that is asked by its name."""
        if label.category:
            return label.category
        known = self._service.answerer.model.categories
        return next((name for name in (label.shown, label.name) if name in known), None)

    def _question(self, asked: Sequence[_Asked], image: bytes) -> Question:
        categories = None
        if self._service.answerer.model.categories:
            categories = [each.category or AUTO for each in asked]
        return Question([each.phrase for each in asked], image, categories=categories)

    def _picture(self, task: Task, config: LabelConfig) -> bytes:
        address = task.data.get(config.field)
        if not isinstance(address, str) or not address:
            raise ImageError(
                f"the task has no picture: its data has no address as {echoed(config.field)}"
            )
        settings = self._service.settings
        return settings.pictures.get(address, settings.limits.image_bytes, task.id)

    def _failed(self, error: RisError, task: Task, order: Order) -> bytes:
        """The place of a prediction that there is not."""
        fields = {"task": shown(str(task.id)), "error": str(error)}
        trace = error if isinstance(error, EngineError) else None
        _log.warning("a task is not answered", exc_info=trace, extra={"fields": fields})
        failed: dict[str, Any] = {"error": str(error)}
        if order.waits and order.config:
            failed["result"] = _said(order.config, [str(error)])
        return _json(failed)


def _collect(
    found: _Found,
    asked: Sequence[_Asked],
    answered: Answered[_Drawn],
    config: LabelConfig,
    drawer: _Drawer,
) -> None:
    """Adds the regions of answers, with their labels. Runs in a thread.

    Raises the first ExpressionError where no phrase at all could be asked.
    """
    errors = [answer for answer in answered.answers if isinstance(answer, ExpressionError)]
    if len(errors) == len(asked):
        raise errors[0]
    for each, answer in zip(asked, answered.answers, strict=True):
        if isinstance(answer, ExpressionError):
            found.said.append(f"{each.phrase}: {answer}")
            continue
        values = answer.values[each.label.kind]
        found.said.append(_line(each, answer, bool(values)))
        for value in values:
            found.scores.append(answer.score)
            region = {
                "id": uuid.uuid4().hex[:10],
                "type": each.label.kind,
                "from_name": each.label.control,
                "to_name": config.image,
                "original_width": answered.width,
                "original_height": answered.height,
                "image_rotation": 0,
                "score": round(answer.score, 6),
                "meta": {"text": [shown(each.phrase)]},
            }
            names = _json({each.label.kind: [each.label.name]})
            found.regions.append(
                drawer.counted(region)[:-1] + b',"value":' + value[:-1] + b"," + names[1:] + b"}"
            )


def _line(asked: _Asked, answer: _Drawn, marked: bool) -> str:
    if marked:
        return shown(f"{asked.phrase}: {asked.label.shown}, score {answer.score:.2f}")
    known = "" if answer.no_target is None else f" (no target: {answer.no_target:.2f})"
    return shown(f"{asked.phrase}: nothing in the picture is meant{known}")


def _said(config: LabelConfig, lines: list[str]) -> list[dict[str, Any]]:
    """The result for the field `answer`, where the configuration has it."""
    if not config.answer or not lines:
        return []
    return [
        {
            "id": uuid.uuid4().hex[:10],
            "type": "textarea",
            "from_name": ANSWER,
            "to_name": config.image,
            "value": {"text": lines},
        }
    ]


def _prediction(found: _Found, order: Order, drawer: _Drawer) -> bytes:
    scores, results = found.scores, found.regions
    if order.waits and order.config:
        results = results + [drawer.counted(one) for one in _said(order.config, found.said)]
    score = round(sum(scores) / len(scores), 6) if scores else 0.0
    return b'{"result":[' + b",".join(results) + b'],"score":' + _json(score) + b"}"


def label_studio_router(service: Service) -> APIRouter:
    """The routes over a service."""
    router = APIRouter(prefix=PREFIX, tags=["Label Studio"])
    backend = LabelStudio(service)

    @router.get("/health", summary="Whether the backend works")
    async def health() -> JSONResponse:
        live = service.live
        said = {"status": "UP" if live else "DOWN", "model_class": "ris"}
        return JSONResponse(said, 200 if live else 503)

    @router.post("/setup", summary="A project connects, or asks for the model's version")
    async def setup(request: Request) -> dict[str, str]:
        """A configuration without a place for masks is told in the log; it may be written later."""
        said = await parsed(request, check_setup, PART_BYTES, counted)
        if said:
            visit_of(request.scope).fields["label_config"] = said
        return {"model_version": backend.model_version}

    @router.post("/predict", summary="Masks for tasks")
    async def predict(request: Request) -> Response:
        visit = visit_of(request.scope)
        order = await parsed(request, read_order, PART_BYTES, counted)
        taken = visit.held.size if visit.held else 0
        answer = await backend.predict(order, lambda more: visit.hold(taken + more))
        visit.hold(len(answer))
        return Response(answer, media_type="application/json")

    @router.api_route("/versions", methods=["GET", "POST"], summary="The model's version")
    async def versions() -> dict[str, list[str]]:
        return {"versions": [backend.model_version]}

    @router.post("/webhook", status_code=201, summary="Events; nothing is done about them")
    async def webhook() -> dict[str, str]:
        return {"status": "the model is not trained here"}

    return router
