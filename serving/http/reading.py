"""A request's body as a question: JSON with base64, or a form with a file.

Whatever is not as it should be is one sentence. What a body may make this process allocate is
bounded before it is parsed.
"""

from __future__ import annotations

import asyncio
import binascii
import functools
import re
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ris.engines.errors import ExpressionError, ImageError
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.serving.http.middleware import visit_of
from ris.serving.http.service import Question
from ris.serving.limits import LimitError, Limits

_MARKS = (b'"', b",", b":", b"[", b"{")
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w=-]+)*;base64,", re.ASCII)
_FORM, _JSON = "multipart/form-data", "application/json"

Model = TypeVar("Model", bound=BaseModel)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Texts = Annotated[list[str], BeforeValidator(_as_list)]
"""A list of texts; one alone is a list of one."""


class SegmentRequest(BaseModel):
    """What is asked of one image."""

    model_config = ConfigDict(extra="forbid")

    image: str | None = Field(
        None, description="The bytes of an image file, in base64; in a form, the file itself."
    )
    image_id: str | None = Field(
        None,
        description="The image_id of an earlier answer, in place of the image. Status 404: it is"
        " not kept any more, send the image.",
    )
    expression: Texts = Field(
        description="What to find, such as 'left man': a text, or a list of them."
    )
    category: Texts | None = Field(
        None,
        description="The COCO category of each expression's object, or one for all, for models"
        " that ask by category. Left out: guessed.",
    )
    no_target_threshold: float | None = Field(
        0.5, description="Above this no-target probability the mask is empty; null: never."
    )
    seed: int | None = Field(None, description="Only for models that take random numbers.")
    draws: int | None = Field(None, description="Over how many draws the logits are averaged.")
    form: str | None = Field(
        None,
        description="Only for models that ask in forms, whose names /v1/model has, such as 'phrase'"
        " and 'sentence'. Left out: the server's default.",
    )
    answer: Annotated[
        list[Literal["rle", "polygons", "coco", "png"]], BeforeValidator(_as_list)
    ] = Field(["rle"], description="How each mask is written.")
    tolerance: float = Field(
        0.0, ge=0, le=1000, description="How far polygons may be from the mask's edge, in pixels."
    )
    timeout: float | None = Field(
        None, gt=0, description="Seconds that the answer is of use; the server's own limit holds."
    )


async def read_request(request: Request, limits: Limits) -> tuple[SegmentRequest, Question]:
    """The body of a request about an image.

    Raises:
        LimitError: For a body of another type, or one that is beyond a limit.
        ImageError, ExpressionError: For what cannot be understood.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == _FORM:
        asked, image = await _read_form(request, limits)
    elif kind == _JSON:
        asked, image = await read_json(request, limits, SegmentRequest), None
    else:
        raise LimitError(f"send {_FORM} or {_JSON}, not {kind[:100] or 'a body of no type'}", 415)

    visit = visit_of(request.scope)
    if asked.image is not None:
        image = await asyncio.to_thread(decode_base64, asked.image)
        asked.image = None
    visit.hold(len(image or b""))
    return asked, _question(asked, image, limits, visit.seconds)


def _question(
    asked: SegmentRequest, image: bytes | None, limits: Limits, passed: float
) -> Question:
    if image is not None and asked.image_id is not None:
        raise ImageError("send the image or an image_id, not both")
    categories = asked.category
    if categories is not None and len(categories) == 1:
        categories = categories * len(asked.expression)
    draws = ONE_DRAW
    if asked.seed is not None or asked.draws is not None:
        draws = Draws(asked.seed, asked.draws)

    left = limits.seconds - passed
    seconds = max(left if asked.timeout is None else min(left, asked.timeout), 0.001)
    return Question(
        asked.expression,
        image,
        asked.image_id,
        categories,
        asked.no_target_threshold,
        draws,
        asked.form,
        seconds,
    )


async def read_json(request: Request, limits: Limits, model: type[Model]) -> Model:
    """The body of a request as one of these.

    Raises:
        ExpressionError: For what is no such JSON, in one sentence.
    """
    body = await request.body()
    request._body = b""  # Starlette keeps it; parsed, it would be there twice
    parse = functools.partial(parse_json, body, limits, model)
    del body
    return await asyncio.to_thread(parse)


def parse_json(body: bytes, limits: Limits, model: type[Model]) -> Model:
    """`read_json` of what was read.

    A list of millions of tiny texts would take many times its length: what is not a text's inside
    is counted first.
    """
    most = 1000 + 8 * limits.expressions * (limits.characters + 1)
    if sum(body.count(mark) for mark in _MARKS) > most:
        raise LimitError("the JSON has too many parts", 413)
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise ExpressionError(_sentence(error)) from None


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:100]
    return f"{place}: {first['msg']}" if place else first["msg"]


def decode_base64(text: str) -> bytes:
    """The bytes of base64, with or without `data:image/png;base64,` before it.

    Raises ImageError for anything else.
    """
    start = _DATA_URL.match(text[:200])
    try:
        return binascii.a2b_base64(text[start.end() :] if start else text, strict_mode=True)
    except (ValueError, binascii.Error):
        raise ImageError("image is not base64") from None


class _InMemory(MultiPartParser):
    """Starlette's parser without files on disk; the body's size is bounded already."""

    spool_max_size = 1 << 40


async def _read_form(request: Request, limits: Limits) -> tuple[SegmentRequest, bytes | None]:
    """The fields of a form, and the file of its part `image`."""
    fields = 3 * limits.expressions + 20
    longest = 4 * limits.characters + 1000
    # an expression's own limit has the better sentence
    parser = _InMemory(
        request.headers,
        request.stream(),
        max_files=1,
        max_fields=fields,
        max_part_size=longest + 100_000,
    )
    try:
        form = await parser.parse()
    except (MultiPartException, KeyError, ValueError) as error:
        said = getattr(error, "message", None) or "no boundary"
        raise ExpressionError(f"the form cannot be read: {said}") from None

    values: dict[str, Any] = {}
    image = None
    try:
        for name, value in form.multi_items():
            if not isinstance(value, str):
                if name != "image":
                    raise ImageError(f"the file is the part {name[:100]!r}; call it 'image'")
                image = await value.read()
            else:
                values.setdefault(name, []).append(value)
    finally:
        await form.close()
    return _of_form(values), image


def _of_form(values: dict[str, list[str]]) -> SegmentRequest:
    """Fields that may be there once are no lists; an empty threshold is none."""
    lists = ("expression", "category", "answer")
    given: dict[str, Any] = {}
    for name, several in values.items():
        if name not in lists and len(several) > 1:
            raise ExpressionError(f"{name[:100]} may be given once")
        given[name] = several if name in lists else several[0]
    if given.get("no_target_threshold", "x").strip().lower() in ("", "none", "null"):
        given["no_target_threshold"] = None
    try:
        return SegmentRequest.model_validate(given)
    except ValidationError as error:
        raise ExpressionError(_sentence(error)) from None
