"""X-AnyLabeling's remote server: its models, and shapes for a picture and a text prompt.

The contract is that of X-AnyLabeling-Server's own documents. X-AnyLabeling is under the GPL and its
server under the AGPL: facts were taken, and no code.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
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

    rings: list[list[list[float]]]
    """A ring of points x, y in pixels for each part of the mask; none where nothing is meant."""

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


def _outlined(answer: Segmentation, fineness: float | None) -> _Outlined:
    """fineness: the share of a ring's length that it may be off, at least a pixel; 0: exact."""

    def finished(ring: Ring) -> Ring:
        if fineness == 0:
            return ring
        length = np.linalg.norm(np.roll(ring, -1, axis=0) - ring, axis=1).sum()
        return simplified(ring, max(TOLERANCE, (fineness or 0) * float(length)))

    parts = [
        Polygon(finished(part.outer), tuple(map(finished, part.holes)))
        for part in answer.polygons()
    ]
    rings = [np.round(part.joined(), 2).tolist() for part in parts]
    return _Outlined(rings, float(answer.score))


async def _shapes(asked: _Predict, image: bytes, service: Service) -> list[dict[str, Any]]:
    params = asked.params or _Params()
    if params.marks:
        raise ExpressionError("this model takes words; points and boxes it does not")
    phrases = wanted(params.text_prompt or "")
    if not phrases:
        raise ExpressionError('type what to look for, such as "left man", and send it')

    def render(answer: Segmentation) -> _Outlined:
        return _outlined(answer, params.epsilon_factor)

    answered = await service.answer(Question([each.phrase for each in phrases], image), render)
    least = params.conf_threshold or 0.0
    return list(_written(phrases, answered, least))


def _written(
    phrases: Sequence[_Wanted], answered: Answered[_Outlined], least: float
) -> Iterator[dict[str, Any]]:
    """The shapes of answers.

    Raises the first ExpressionError: the client has one place for a sentence.
    """
    for number, (each, answer) in enumerate(zip(phrases, answered.answers, strict=True), 1):
        if isinstance(answer, ExpressionError):
            raise answer
        if answer.score < least:
            continue
        for ring in answer.rings:
            yield {
                "label": shown(each.label),
                "shape_type": "polygon",
                "points": ring,
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
    async def predict(request: Request) -> JSONResponse:
        try:
            asked = await read_json(request, service.settings.limits, _Predict)
            if asked.model != MODEL:
                return _not_found(asked.model)
            image = await asyncio.to_thread(decode_base64, asked.image)
            asked.image = ""
            visit_of(request.scope).hold(len(image))
            shapes = await _shapes(asked, image, service)
        except RisError as error:
            if isinstance(error, LimitError) and error.status == 503:
                raise  # the contract has this status for a full queue
            fields = {"error": str(error)}
            visit_of(request.scope).fields.update(fields)
            if isinstance(error, EngineError):
                _log.error("the engine failed", exc_info=error, extra={"fields": fields})
            return _failed(error)

        data: dict[str, Any] = {"shapes": shapes, "description": ""}
        if not shapes:
            data["replace"] = False  # nothing is meant: what was drawn before stays
        return JSONResponse({"success": True, "data": data})

    return router
