"""A request's body as a question: JSON with base64, or a form with a file.

Whatever is not as it should be is one sentence. What a body may make this process allocate is
bounded before it is parsed.
"""

from __future__ import annotations

import asyncio
import binascii
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from pydantic_core import from_json
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from ris.engines.errors import ExpressionError, ImageError
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.serving.http.middleware import visit_of
from ris.serving.http.service import Question
from ris.serving.http.settings import BODY_COPIES
from ris.serving.limits import LimitError, Limits

_MARKS = (b'"', b",", b":", b"[", b"{")
_PART_BYTES = 600  # that a part takes at its worst: an unknown field, and the error about it
_WIDE_COPIES = 5  # more, of a text with a character that needs four bytes
_FREE = 250_000  # bytes beside the body that every request may take
_MOST_QUOTES = 100_000
_BACKSLASH = ord("\\")
_NO_BASE64 = "image is not base64"
_DATA_URL = re.compile(r"data:[\w.+/-]*(?:;[\w=-]+)*;base64,", re.ASCII)
_FORM, _JSON = "multipart/form-data", "application/json"

T = TypeVar("T")
Model = TypeVar("Model", bound=BaseModel)


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


# one error of a list is enough: each takes a kilobyte
Texts = Annotated[list[str], Field(fail_fast=True), BeforeValidator(_as_list)]
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
        list[Literal["rle", "polygons", "coco", "png"]],
        Field(fail_fast=True),
        BeforeValidator(_as_list),
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
    most = 1000 + 8 * limits.expressions * (limits.characters + 1)

    def few(body: bytes) -> bytes:
        if sum(body.count(mark) for mark in _MARKS) > most:
            raise LimitError("the JSON has too many parts", 413)
        return body

    def read(body: bytes) -> Model:
        found = validated(body, model)
        # a wide text is several times as long, and what follows would hold it
        if not (getattr(found, "image", None) or "").isascii():
            raise ImageError(_NO_BASE64)
        return found

    return await parsed(request, read, without=few)


async def parsed(
    request: Request,
    parse: Callable[[bytes], T],
    part_bytes: int = _PART_BYTES,
    without: Callable[[bytes], bytes] = bytes,
) -> T:
    """What `parse` makes of a request's JSON, in a thread; the memory is taken before.

    Args:
        request: The request.
        parse: Makes something of the body, and keeps nothing of it.
        part_bytes: Bytes that a part of the JSON takes at its worst.
        without: Leaves out what is not parsed, before parts are counted.

    Raises:
        BusyError: Where there is not as much memory.
        RisError: As the functions raise it.
    """
    bodies = [await request.body()]
    request._body = b""  # Starlette keeps it; parsed, it would be there twice
    bodies[0] = await asyncio.to_thread(without, bodies[0])
    visit = visit_of(request.scope)
    before = visit.held.size if visit.held else 0
    visit.hold(max(before, await asyncio.to_thread(json_bytes, bodies[0], part_bytes)))
    found = await _to_its_end(lambda: parse(bodies.pop()))
    visit.hold(before)
    return found


async def _to_its_end(work: Callable[[], T]) -> T:
    """What `work` returns, in a thread. A client that goes is not gone before the thread is done.

    So what was booked for it stays booked as long as it is there.
    """
    task = asyncio.ensure_future(asyncio.to_thread(work))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        await asyncio.wait({task})
        raise


def json_bytes(body: bytes, part_bytes: int = _PART_BYTES) -> int:
    """The most memory that JSON takes while it is parsed, itself among it; nothing is parsed."""
    parts = sum(body.count(mark) for mark in (b",", b":", b"[", b"{"))
    beside = part_bytes * parts + _WIDE_COPIES * _wide_bytes(body)
    return BODY_COPIES * len(body) + max(beside - _FREE, 0)


def _wide_bytes(body: bytes) -> int:
    """Bytes of JSON's texts with a character that needs more than a byte.

    Each character of such a text may take four. What lies between two quotes is a text, or more
    than one where a backslash stands before the quote.
    """
    if not _is_wide(body):
        return 0
    if body.count(b'"') > _MOST_QUOTES:  # too many to look at
        return len(body)
    wide = start = at = 0
    while start < len(body):
        at = body.find(b'"', at) + 1 or len(body) + 1
        if at <= len(body) and at > 1 and body[at - 2] == _BACKSLASH:
            continue
        if _is_wide(body[start : at - 1]):
            wide += at - 1 - start
        start = at
    return wide


def _is_wide(text: bytes) -> bool:
    return not text.isascii() or text.count(b"\\u") > text.count(b"\\u00")


def validated(body: bytes, model: type[Model], whole: str = "") -> Model:
    """JSON as one of these.

    It is parsed first: errors then hold what is there, and no copies of it.

    Args:
        body: The JSON.
        model: What it should be.
        whole: What the JSON is called in a sentence about all of it.

    Raises:
        ExpressionError: For what is no such JSON, in one sentence.
    """
    try:
        found = from_json(body)
    except ValueError as error:
        raise ExpressionError(f"{whole and f'{whole}: '}Invalid JSON: {error}") from None
    try:
        return model.model_validate(found)
    except ValidationError as error:
        raise ExpressionError(_sentence(error, whole)) from None


def _sentence(error: ValidationError, whole: str = "") -> str:
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    place = ".".join(str(part) for part in first["loc"])[:100] or whole
    return f"{place}: {first['msg']}" if place else first["msg"]


def decode_base64(text: str) -> bytes:
    """The bytes of base64, with or without `data:image/png;base64,` before it.

    Raises ImageError for anything else.
    """
    start = _DATA_URL.match(text[:200])
    try:
        return binascii.a2b_base64(text[start.end() :] if start else text, strict_mode=True)
    except (ValueError, binascii.Error):
        raise ImageError(_NO_BASE64) from None


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
