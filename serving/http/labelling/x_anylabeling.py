"""X-AnyLabeling's remote server: its models, and shapes for a picture and a text prompt.

The contract is that of X-AnyLabeling-Server's own documents. X-AnyLabeling is under the GPL and its
server under the AGPL: facts were taken, and no code.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from ris.engines.errors import EngineError, ExpressionError, ImageError, RisError
from ris.engines.text import quoted, shown
from ris.runtime import Segmentation
from ris.runtime.outlines import Polygon, Ring, simplified
from ris.serving.http.labelling.regions import TOLERANCE
from ris.serving.http.middleware import visit_of
from ris.serving.http.reading import decode_base64, read_json
from ris.serving.http.service import Answered, Question, Service
from ris.serving.limits import LimitError

MODEL = "ris"
"""The name under which a client asks."""

_log = logging.getLogger("ris.http")
_FINENESS = 10  # of the client's slider, whose step is a ten-thousandth of a ring's length


class _Params(BaseModel):
    """What a client sends beside the picture, as far as it is read."""

    text_prompt: str | None = None
    marks: list[Any] = []
    conf_threshold: float | None = None
    epsilon_factor: float | None = Field(default=None, ge=0, le=1)


class _Predict(BaseModel):
    """The body of /v1/predict."""

    model: str = MODEL
    image: str
    params: _Params | None = None


@dataclass(frozen=True)
class _Wanted:
    """A phrase, and the label that its shapes get."""

    label: str
    """The label."""

    phrase: str
    """What is looked for."""


@dataclass(frozen=True)
class _Outlined:
    """An answer as rings."""

    rings: list[bytes]
    """A ring of points x, y in pixels for each part of the mask, as JSON; none where nothing is
    meant."""

    score: float
    """The mean foreground probability."""


def describe_model(service: Service) -> dict[str, Any]:
    """What the client shows of the model, and which of its widgets it offers."""
    manifest = service.answerer.model.bundle.manifest
    widgets = [
        {"name": "edit_text", "value": None, "placeholder": "left man; dog: the brown dog"},
        {"name": "button_send", "value": None},
        {"name": "mask_fineness_slider", "value": _FINENESS},
        {"name": "mask_fineness_value_label", "value": None},
        # what was drawn before stays; the client's own default takes it away
        {"name": "toggle_preserve_existing_annotations", "value": True},
    ]
    return {
        "model_id": MODEL,
        "display_name": f"ris-runtime ({manifest.family})",
        "batch_processing_mode": "text_prompt",
        "widgets": widgets,
        "params": {},
    }


def wanted(prompt: str) -> list[_Wanted]:
    """The phrases of a text prompt: "left man; dog: the brown dog".

    What stands before a colon and a space is the label; without them, the phrase is.
    """
    found = []
    for part in (part.strip() for part in prompt.replace("\n", ";").split(";")):
        head, _, rest = (piece.strip() for piece in part.partition(": "))
        if head and rest:
            found.append(_Wanted(head, rest))
        elif phrase := part.strip(": "):
            found.append(_Wanted(phrase, phrase))
    return found


class _Outliner:
    """Makes rings of the answers to a request, up to a size. One thread at a time uses it."""

    def __init__(self, fineness: float | None, most: int) -> None:
        """Takes the limits.

        fineness: the share of a ring's length that it may be off, at least a pixel; 0: exact.
        most: bytes of the answer.
        """
        self._fineness, self._most = fineness, most
        self._size = 0

    def __call__(self, answer: Segmentation) -> _Outlined:
        """The rings of an answer."""
        rings = []
        for part in answer.polygons():
            whole = Polygon(self._finished(part.outer), tuple(map(self._finished, part.holes)))
            rings.append(self.counted(np.round(whole.joined(), 2).tolist()))
        return _Outlined(rings, float(answer.score))

    def counted(self, value: Any) -> bytes:
        """The value as JSON. Raises LimitError where there is too much of it."""
        written = json.dumps(value, separators=(",", ":"), allow_nan=False).encode()
        self._size += len(written)
        if self._size > self._most:
            raise LimitError(
                f"the shapes have more than {self._most / 1e6:g} MB; ask for fewer phrases", 413
            )
        return written

    def _finished(self, ring: Ring) -> Ring:
        if self._fineness == 0:
            return ring
        length = np.linalg.norm(np.roll(ring, -1, axis=0) - ring, axis=1).sum()
        return simplified(ring, max(TOLERANCE, (self._fineness or 0) * float(length)))


async def _answer(asked: _Predict, image: bytes, service: Service) -> bytes:
    params, settings = asked.params or _Params(), service.settings
    if params.marks:
        raise ExpressionError("this model takes words; points and boxes it does not")
    prompt = params.text_prompt or ""
    most = 2 * settings.limits.expressions * (settings.limits.characters + 2)
    if len(prompt) > most:
        raise LimitError(f"the prompt has {len(prompt)} characters, at most {most} are read", 413)
    phrases = wanted(prompt)
    if not phrases:
        raise ExpressionError('type what to look for, such as "left man", and send it')

    outliner = _Outliner(params.epsilon_factor, settings.answer_bytes)
    answered = await service.answer(Question([each.phrase for each in phrases], image), outliner)
    least = params.conf_threshold or 0.0
    return await asyncio.to_thread(_body, phrases, answered, least, outliner)


def _body(
    phrases: Sequence[_Wanted], answered: Answered[_Outlined], least: float, outliner: _Outliner
) -> bytes:
    """The answer as JSON."""
    shapes = list(_written(phrases, answered, least, outliner))
    # nothing is meant: what was drawn before stays
    rest = b'],"description":""' + (b"" if shapes else b',"replace":false') + b"}}"
    return b'{"success":true,"data":{"shapes":[' + b",".join(shapes) + rest


def _written(
    phrases: Sequence[_Wanted], answered: Answered[_Outlined], least: float, outliner: _Outliner
) -> Iterator[bytes]:
    """The shapes of answers, as JSON.

    Raises the first ExpressionError: the client has one place for a sentence.
    """
    for number, (each, answer) in enumerate(zip(phrases, answered.answers, strict=True), 1):
        if isinstance(answer, ExpressionError):
            raise answer
        if answer.score < least:
            continue
        for ring in answer.rings:
            shape = {
                "label": shown(each.label),
                "shape_type": "polygon",
                "score": round(answer.score, 6),
                "description": shown(each.phrase) if each.phrase != each.label else None,
                "attributes": {},
                "difficult": False,
                "direction": 0,
                "flags": None,
                # the parts of one mask belong together
                "group_id": number if len(answer.rings) > 1 else None,
                "kie_linking": [],
            }
            yield outliner.counted(shape)[:-1] + b',"points":' + ring + b"}"


def _failed(error: RisError) -> JSONResponse:
    """The contract's errors have status 200.

    The client shows `description` beside the picture and nothing else of it; `replace` keeps what
    is drawn, which the client would take away otherwise.
    """
    code = "INVALID_IMAGE" if isinstance(error, ImageError) else "INFERENCE_ERROR"
    return JSONResponse(
        {
            "success": False,
            "error": {"code": code, "message": str(error)},
            "data": {"shapes": [], "description": str(error), "replace": False},
        }
    )


def _not_found(model: str) -> JSONResponse:
    said = f"there is no model {quoted(model)} here; this one is called {MODEL}"
    error = {"code": "MODEL_NOT_FOUND", "message": said}
    data = {"shapes": [], "description": said, "replace": False}
    return JSONResponse({"success": False, "error": error, "data": data})


def x_anylabeling_router(service: Service) -> APIRouter:
    """The routes over a service."""
    router = APIRouter(prefix="/v1", tags=["X-AnyLabeling"])

    @router.get("/models", summary="What a client may ask")
    async def models() -> dict[str, Any]:
        return {"success": True, "data": {MODEL: describe_model(service)}}

    @router.get("/models/{model}/info", summary="One of the models")
    async def info(model: str) -> JSONResponse:
        if model != MODEL:
            return _not_found(model)
        return JSONResponse({"success": True, "data": describe_model(service)})

    @router.post("/predict", summary="Shapes for a picture and a text prompt")
    async def predict(request: Request) -> Response:
        visit = visit_of(request.scope)
        try:
            asked = await read_json(request, service.settings.limits, _Predict)
            if asked.model != MODEL:
                return _not_found(asked.model)
            image = await asyncio.to_thread(decode_base64, asked.image)
            asked.image = ""
            visit.hold(len(image))
            answer = await _answer(asked, image, service)
            visit.hold(len(answer))
        except RisError as error:
            if isinstance(error, LimitError) and error.status == 503:
                raise  # the contract has this status for a full queue
            fields = {"error": str(error)}
            visit.fields.update(fields)
            if isinstance(error, EngineError):
                _log.error("the engine failed", exc_info=error, extra={"fields": fields})
            return _failed(error)

        return Response(answer, media_type="application/json")

    return router
