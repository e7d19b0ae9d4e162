"""`POST /v1/segment`: expressions about an image, and their masks."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from ris.engines.errors import ExpressionError
from ris.serving.http.answers import Writer, Written, png_file, refused
from ris.serving.http.middleware import visit_of
from ris.serving.http.reading import SegmentRequest, read_request
from ris.serving.http.service import Answered, Service

_PNG = "image/png"


class ErrorText(BaseModel):
    """Why there is no answer."""

    status: int = Field(description="The HTTP status.")
    message: str = Field(description="One sentence for people.")
    request_id: str = Field("", description="What the server's log has it under.")


class Failure(BaseModel):
    """The body of every answer of status 400 and above."""

    error: ErrorText


class Rle(BaseModel):
    """COCO's compressed run lengths."""

    size: list[int] = Field(description="Height and width.")
    counts: str


class Rings(BaseModel):
    """One part of a mask. Rings are lists of x, y along the edges of its pixels, not closed."""

    outer: list[list[int]]
    holes: list[list[list[int]]]


class Answer(BaseModel):
    """The answer to one expression; `error` alone where it cannot be asked."""

    expression: str
    error: ErrorText | None = None
    category: str | None = Field(None, description="The category that was asked, if any.")
    category_guessed_from: str | None = None
    score: float | None = Field(None, description="Mean foreground probability over the mask.")
    no_target: float | None = Field(None, description="Probability that nothing is meant.")
    is_no_target: bool | None = None
    box: list[int] | None = Field(None, description="x, y, width, height; null where empty.")
    area: int | None = Field(None, description="Pixels of the mask.")
    seed: int | None = None
    form: str | None = Field(
        None, description="The form that it was asked in; only of models that ask in forms."
    )
    notes: list[str] = []
    rle: Rle | None = None
    polygons: list[Rings] | None = None
    coco: list[list[float]] | None = Field(
        None, description="COCO's segmentation: x, y, x, y ... of each part, holes bridged."
    )
    png: str | None = Field(None, description="A PNG file of one bit a pixel, in base64.")


class SegmentResponse(BaseModel):
    """The answers, in the expressions' order."""

    request_id: str
    image_id: str = Field(description="Names this image in the next request, while it is kept.")
    height: int
    width: int
    from_cache: bool = Field(description="Whether the image had been encoded already.")
    seconds: dict[str, float] = Field(description="By stage; queue is the waiting.")
    answers: list[Answer]


_DESCRIPTION = """\
One image and one or more expressions. Send a form with the image as a file, or JSON with the image
in base64; in place of the image, the `image_id` of an earlier answer.

With `Accept: image/png` and a single expression, the answer is the mask itself as a PNG file.
"""


def _bodies() -> dict[str, Any]:
    """The two kinds of body, for OpenAPI; the route reads them itself, with limits."""
    schema = SegmentRequest.model_json_schema()
    form = json.loads(json.dumps(schema))
    form["properties"]["image"] = {"type": "string", "format": "binary"}
    contents = {"multipart/form-data": {"schema": form}, "application/json": {"schema": schema}}
    return {"requestBody": {"required": True, "content": contents}}


def segment_router(service: Service) -> APIRouter:
    """The route over a service."""
    router = APIRouter(tags=["segmentation"])
    failures: dict[int | str, dict[str, Any]] = {
        status: {"model": Failure, "description": said}
        for status, said in (
            (400, "No image or no expression that can be asked"),
            (401, "No token"),
            (404, "No image of this image_id is kept"),
            (408, "The body did not arrive in time"),
            (413, "Beyond a limit"),
            (415, "Neither a form nor JSON"),
            (429, "This client has too many requests waiting; Retry-After says when to come again"),
            (500, "Our fault; the log has the request_id"),
            (503, "The queue or the memory is full; Retry-After says when to come again"),
            (504, "Out of time"),
        )
    }

    @router.post(
        "/v1/segment",
        summary="Masks of expressions in an image",
        description=_DESCRIPTION,
        responses={200: {"model": SegmentResponse, "content": {_PNG: {}}}, **failures},
        openapi_extra=_bodies(),
    )
    async def segment(request: Request) -> Response:
        visit = visit_of(request.scope)
        settings = service.settings
        asked, question = await read_request(request, settings.limits)
        visit.fields.update(expressions=len(question.expressions))

        if _PNG in request.headers.get("accept", ""):
            if len(question.expressions) != 1:
                raise ExpressionError("Accept: image/png takes a single expression")
            picture = await service.answer(question, png_file)
            _note(visit.fields, picture)
            [answer] = picture.answers
            if isinstance(answer, ExpressionError):
                raise answer
            visit.hold(len(answer))
            return Response(answer, media_type=_PNG)

        writer = Writer(asked.answer, asked.tolerance, settings.answer_bytes)
        answered = await service.answer(question, writer)
        _note(visit.fields, answered)
        body = written_body(answered, question.expressions, visit.request_id)
        del question, answered
        visit.hold(len(body))
        return Response(body, media_type="application/json")

    return router


def _note(fields: dict[str, Any], answered: Answered[Any]) -> None:
    """What the log says of a question."""
    seconds = {stage: round(value, 6) for stage, value in answered.seconds.items()}
    fields.update(
        image_id=answered.image_id[:16],
        size=f"{answered.width}x{answered.height}",
        from_cache=answered.from_cache,
        stages=seconds,
    )


def written_body(
    answered: Answered[Written], expressions: list[str] | Any, request_id: str
) -> bytes:
    """The answers as JSON.

    Raises the first ExpressionError where no expression at all could be asked.
    """
    answers = answered.answers
    errors = [answer for answer in answers if isinstance(answer, ExpressionError)]
    if len(errors) == len(answers):
        raise errors[0]
    parts = [
        refused(text, answer) if isinstance(answer, ExpressionError) else answer.body
        for text, answer in zip(expressions, answers, strict=True)
    ]
    head = {
        "request_id": request_id,
        "image_id": answered.image_id,
        "height": answered.height,
        "width": answered.width,
        "from_cache": answered.from_cache,
        "seconds": {stage: round(value, 6) for stage, value in answered.seconds.items()},
    }
    return json.dumps(head).encode()[:-1] + b', "answers": [' + b", ".join(parts) + b"]}"
