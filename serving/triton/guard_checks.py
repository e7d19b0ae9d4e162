"""What a request must be before tritonserver sees it: its form alone, which takes no memory to see.

tritonserver's parsers take what they are given: deeply nested JSON overflows its stack and ends it,
and millions of empty elements or fields become millions of objects.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any

from ris.serving.limits import LimitError, Limits

JSON_BYTES = 1_000_000
"""Bytes of the JSON of an HTTP request; the image comes behind it as binary data."""

MODEL = "ris"
"""The model that clients may ask."""

_FIELDS = 1000  # of a protobuf message, each of which becomes an object
_TEXT_BYTES = 1_000_000  # of the elements of an input other than the image
_NUMBERS_BYTES = 4096
_VARINT, _BYTES = 0, 2  # protobuf's wire types
_WIDTHS = {1: 8, 5: 4}  # of those of a fixed width

# numbers of fields in inference.ModelInferRequest and the messages inside it
_MODEL_NAME, _INPUTS, _RAW = 1, 5, 7
_INPUT_NAME, _INPUT_SHAPE, _INPUT_CONTENTS = 1, 3, 5
_CONTENTS_BYTES = 8


def largest_request(limits: Limits) -> int:
    """Bytes of the largest request: an image and what is asked about it."""
    return limits.image_bytes + 2 * JSON_BYTES


def check_http(body: bytes, json_length: str | None, limits: Limits) -> None:
    """Raises LimitError for an inference request over HTTP that tritonserver is not to see.

    Args:
        body: JSON, and the binary data behind it.
        json_length: The header Inference-Header-Content-Length; None: all is JSON.
        limits: Of the server.
    """
    length = len(body)
    if json_length is not None:
        if not (json_length.isascii() and json_length.isdigit()) or int(json_length) > length:
            raise LimitError("Inference-Header-Content-Length is not a length in the request", 400)
        length = int(json_length)
    if length > JSON_BYTES:
        raise LimitError(
            f"the request has {length / 1e6:.1f} MB of JSON, at most {JSON_BYTES / 1e6:g} MB are"
            " accepted; send the image as binary data",
            413,
        )
    try:
        asked = json.loads(body[:length], object_pairs_hook=_keys_once)
    except (ValueError, RecursionError) as error:
        kind = "nested too deeply" if isinstance(error, RecursionError) else "not valid"
        raise LimitError(f"the request's JSON is {kind}", 400) from None

    inputs = asked.get("inputs") if isinstance(asked, dict) else None
    for one in inputs if isinstance(inputs, list) else []:
        if isinstance(one, dict):
            _check_shape(one.get("shape"), limits)
            about = one.get("parameters")
            size = about.get("binary_data_size") if isinstance(about, dict) else 0
            _check_size(one.get("name"), size if isinstance(size, int) else 0)


def _keys_once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object of JSON. Raises LimitError for a key that it has twice.

    tritonserver would take the first of them where Python takes the last: what was checked would
    not be what is used.
    """
    found = dict(pairs)
    if len(found) < len(pairs):
        raise LimitError("an object of the request's JSON has a key twice", 400)
    return found


def check_grpc(message: bytes, limits: Limits) -> None:
    """Raises LimitError for an inference.ModelInferRequest that tritonserver is not to see."""
    model, names, raw = b"", [], []
    for number, value in _fields(memoryview(message)):
        if number == _MODEL_NAME and isinstance(value, memoryview):
            model = bytes(value[:100])
        elif number == _INPUTS and isinstance(value, memoryview):
            names.append(_check_input(value, limits))
        elif number == _RAW and isinstance(value, memoryview):
            raw.append(len(value))
    if model != MODEL.encode():
        raise LimitError(f"clients may ask the model {MODEL}, and no other", 403)
    for name, size in zip(names, raw, strict=False):
        _check_size(name, size)


def _check_input(message: memoryview, limits: Limits) -> str:
    """Checks an input, and returns its name."""
    name, shape = "", []
    for number, value in _fields(message):
        if number == _INPUT_NAME and isinstance(value, memoryview):
            name = bytes(value[:100]).decode(errors="replace")
        elif number == _INPUT_SHAPE:
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif number == _INPUT_CONTENTS and isinstance(value, memoryview):
            for kind, content in _fields(value):
                most = largest_request(limits) if kind == _CONTENTS_BYTES else _NUMBERS_BYTES
                if isinstance(content, memoryview) and len(content) > most:
                    raise LimitError(f"the input {name} has too many numbers", 413)
    _check_shape(shape, limits)
    return name


def _check_shape(shape: Any, limits: Limits) -> None:
    """No input has more elements than a request has expressions."""
    if not isinstance(shape, list) or not all(isinstance(side, int) for side in shape):
        return  # tritonserver says what a shape is
    count = math.prod(max(0, side) for side in shape)
    if count > limits.expressions:
        raise LimitError(f"{count} expressions, at most {limits.expressions} are accepted", 413)


def _check_size(name: Any, size: int) -> None:
    if name != "image" and size > _TEXT_BYTES:
        raise LimitError(f"an input has {size} bytes, at most {_TEXT_BYTES} are accepted", 413)


def _fields(message: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """The fields of a protobuf message: their numbers, and an integer or the bytes of each.

    Raises LimitError for what is no message, and for one of very many fields.
    """
    at = 0
    for _ in range(_FIELDS):
        if at == len(message):
            return
        tag, at = _varint(message, at)
        kind, value = tag & 7, 0
        if kind == _VARINT:
            value, at = _varint(message, at)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            length, at = _varint(message, at)
        elif kind in _WIDTHS:
            length = _WIDTHS[kind]
        else:
            raise LimitError("the request is no message of Triton's protocol", 400)
        if at + length > len(message):
            raise LimitError("the request is no message of Triton's protocol", 400)
        yield tag >> 3, message[at : at + length]
        at += length
    if at < len(message):
        raise LimitError(f"the request has more than {_FIELDS} fields", 413)


def _varints(packed: memoryview) -> Iterator[int]:
    """Packed integers, no more of them than a shape has."""
    at = 0
    while at < len(packed) and at < _NUMBERS_BYTES:
        value, at = _varint(packed, at)
        yield value if value < 1 << 63 else value - (1 << 64)


def _varint(message: memoryview, at: int) -> tuple[int, int]:
    """An integer of variable length, and where the next field begins."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(message):
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise LimitError("the request is no message of Triton's protocol", 400)
