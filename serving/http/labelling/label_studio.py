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
import re
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ValidationError

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
    read_label_config,
)
from ris.serving.http.labelling.regions import box_value, brush_value, polygon_values
from ris.serving.http.middleware import visit_of
from ris.serving.http.service import Answered, Question, Service
from ris.serving.limits import LimitError

PREFIX = "/label-studio"
"""Where the backend stands: http://localhost:8000/label-studio is what a project is given."""

_log = logging.getLogger("ris.http")
_RUN_LENGTHS = re.compile(rb'"rle":\s*\[[\d,\s]*\]')
_MOST_PARTS = 1_000_000  # parts of a request's JSON; each may take some hundred bytes of memory


class _Task(BaseModel):
    """A task, as far as it is read."""

    id: Any = None
    data: dict[str, Any] = {}


class _Typed(BaseModel):
    """A part of what an annotator did just now."""

    type: str = ""
    from_name: str = ""
    value: dict[str, Any] = {}


class _Context(BaseModel):
    """What an annotator did just now."""

    result: list[_Typed] = []


class _Params(BaseModel):
    """What comes along with tasks."""

    context: _Context | None = None


class _Predict(BaseModel):
    """The body of /predict. What else Label Studio sends is left alone."""

    tasks: list[_Task]
    label_config: str
    params: _Params | None = None


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

    regions: list[dict[str, Any]] = field(default_factory=list)
    """Label Studio's results."""

    scores: list[float] = field(default_factory=list)
    """A score for each region."""

    said: list[str] = field(default_factory=list)
    """A line for each phrase, for people."""


@dataclass(frozen=True)
class _Drawn:
    """An answer as regions, before it is known whose they are."""

    values: dict[str, list[dict[str, Any]]]
    """The values of regions, by kind; none where nothing is meant."""

    score: float
    """The mean foreground probability."""

    no_target: float | None
    """The probability that nothing is meant."""


class _Drawer:
    """Makes regions of the answers to a request, up to a size. One thread at a time uses it."""

    def __init__(self, most: int) -> None:
        """most: bytes of all regions, as JSON."""
        self._most = most
        self._size = 0

    def __call__(self, answer: Segmentation, kinds: Sequence[str]) -> _Drawn:
        """The regions of an answer. kinds: of regions."""
        values = {kind: list(_values(kind, answer)) for kind in kinds}
        self._size += len(json.dumps(values, separators=(",", ":")))
        if self._size > self._most:
            raise LimitError(f"the regions have more than {self._most / 1e6:g} MB", 413)
        return _Drawn(values, float(answer.score), answer.no_target)


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
        """Another one for another bundle: Label Studio keeps a prediction of each version."""
        manifest = self._service.answerer.model.bundle.manifest
        digest = hashlib.sha256(manifest.to_json().encode()).hexdigest()
        return f"ris-{manifest.family}-{digest[:8]}"

    async def predict(self, body: bytes) -> dict[str, Any]:
        """The answer to /predict: a prediction for each task.

        A task that cannot be answered has `error` in place of `result`: Label Studio writes it into
        its log and keeps no prediction. Where an annotator waits, the field `answer` has it, too.

        Raises:
            RisError: Where the request itself cannot be understood.
        """
        request = await asyncio.to_thread(_parsed, body)
        version = self.model_version
        drawer = _Drawer(self._service.settings.answer_bytes)
        results = [
            await self._answered(task, request, drawer) | {"model_version": version}
            for task in request.tasks
        ]
        return {"results": results, "model_version": version}

    async def _answered(self, task: _Task, request: _Predict, drawer: _Drawer) -> dict[str, Any]:
        """The place of one task in the answer to /predict."""
        context = request.params.context if request.params else None
        config = None
        try:
            config = read_label_config(request.label_config)
            typed = None if context is None else _texts(context, config)
            async with self._pictures:
                found = await self._find(task, config, typed, drawer)
        except RisError as error:
            return self._failed(error, task, config if context else None)
        if context:
            found.regions += _said(config, found.said)
        return _prediction(found)

    async def _find(
        self, task: _Task, config: LabelConfig, typed: list[str] | None, drawer: _Drawer
    ) -> _Found:
        """typed: what an annotator typed; None where nobody waits: tasks are annotated ahead."""
        asked = list(self._asked(task, config, typed))
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
            _collect(found, part, answered, config)
        return found

    def _asked(self, task: _Task, config: LabelConfig, typed: list[str] | None) -> Iterator[_Asked]:
        """What is asked of a picture: what was typed, what the task says, or every label."""
        phrases = _prompts_of(task, config) if typed is None else typed
        for text in phrases:
            label, phrase = config.label_for(text)
            category = label.category if label.says(phrase) is not None else None
            yield _Asked(label, phrase, category)
        if typed is None and not phrases:
            for label in config.labels:
                for phrase in label.phrases:
                    yield _Asked(label, phrase, self._category(label))

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

    def _picture(self, task: _Task, config: LabelConfig) -> bytes:
        address = task.data.get(config.field)
        if not isinstance(address, str) or not address:
            raise ImageError(
                f"the task has no picture: its data has no address as {echoed(config.field)}"
            )
        settings = self._service.settings
        return settings.pictures.get(address, settings.limits.image_bytes, task.id)

    def _failed(self, error: RisError, task: _Task, config: LabelConfig | None) -> dict[str, Any]:
        """The place of a prediction that there is not.

        config: where an annotator waits, and may have a field for it.
        """
        fields = {"task": shown(str(task.id)), "error": str(error)}
        trace = error if isinstance(error, EngineError) else None
        _log.warning("a task is not answered", exc_info=trace, extra={"fields": fields})
        failed: dict[str, Any] = {"error": str(error)}
        if config:
            failed["result"] = _said(config, [str(error)])
        return failed


def _collect(
    found: _Found,
    asked: Sequence[_Asked],
    answered: Answered[_Drawn],
    config: LabelConfig,
) -> None:
    """Adds the regions of answers, with their labels.

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
            found.regions.append(
                {
                    "id": uuid.uuid4().hex[:10],
                    "type": each.label.kind,
                    "from_name": each.label.control,
                    "to_name": config.image,
                    "original_width": answered.width,
                    "original_height": answered.height,
                    "image_rotation": 0,
                    "score": round(answer.score, 6),
                    "value": value | {each.label.kind: [each.label.name]},
                    "meta": {"text": [shown(each.phrase)]},
                }
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


def _prediction(found: _Found) -> dict[str, Any]:
    scores = found.scores
    return {
        "result": found.regions,
        "score": round(sum(scores) / len(scores), 6) if scores else 0.0,
    }


def _texts(context: _Context, config: LabelConfig) -> list[str]:
    """What stands in the text fields for phrases, each once.

    Raises ExpressionError where somebody drew, and typed nothing.
    """
    texts: list[str] = []
    for part in context.result:
        if part.type == "textarea" and part.from_name in config.prompts:
            texts += _lines(part.value.get("text"))
    if not texts and any(part.type != "textarea" for part in context.result):
        raise ExpressionError("this model takes words: type a phrase into the text field")
    return list(dict.fromkeys(texts))


def _prompts_of(task: _Task, config: LabelConfig) -> list[str]:
    """The phrases in a task's own data, of the fields that fill the text fields."""
    fields = filter(None, config.prompts.values())
    return list(dict.fromkeys(line for name in fields for line in _lines(task.data.get(name))))


def _lines(value: Any) -> list[str]:
    several = value if isinstance(value, list) else [value]
    lines = (line for each in several if isinstance(each, str) for line in each.splitlines())
    return [line.strip() for line in lines if line.strip()]


def _parsed(body: bytes) -> _Predict:
    """The body of /predict; run lengths of regions that are there already are not read."""
    body = _RUN_LENGTHS.sub(b'"rle":[]', body)
    if sum(body.count(mark) for mark in (b",", b":", b"[", b"{")) > _MOST_PARTS:
        raise LimitError("the tasks have too many parts; send fewer of them at once", 413)
    try:
        return _Predict.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))[:100]
        raise ExpressionError(f"{place or 'the request'}: {first['msg']}") from None


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
        body = await request.body()
        try:
            schema = json.loads(body).get("schema") or ""
            read_label_config(str(schema))
        except (ValueError, AttributeError, RecursionError):
            raise ExpressionError("/setup takes a JSON object with schema") from None
        except RisError as error:
            visit_of(request.scope).fields["label_config"] = str(error)
        return {"model_version": backend.model_version}

    @router.post("/predict", summary="Masks for tasks")
    async def predict(request: Request) -> JSONResponse:
        body = await request.body()
        request._body = b""  # Starlette keeps it
        return JSONResponse(await backend.predict(body))

    @router.api_route("/versions", methods=["GET", "POST"], summary="The model's version")
    async def versions() -> dict[str, list[str]]:
        return {"versions": [backend.model_version]}

    @router.post("/webhook", status_code=201, summary="Events; nothing is done about them")
    async def webhook() -> dict[str, str]:
        return {"status": "the model is not trained here"}

    return router
