"""Protobuf's wire format, as far as ONNX files need it: the runtime has no onnx package.

A field is a number and either a whole number, or bytes: text, packed numbers or a message of its
own.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

Data = bytes | mmap.mmap
Span = tuple[int, int]


def fields(data: Data, span: Span) -> Iterator[tuple[int, int | Span]]:
    """Every field of a message: its number, and its value or the span of its content. Numbers of 4
    or 8 fixed bytes are left out. Raises ValueError or IndexError where this is no protobuf.
    """
    for _, field, value in _walk(data, span):
        if value is not None:
            yield field, value


def raw_fields(data: bytes) -> Iterator[tuple[int, int | bytes | None, bytes]]:
    """`fields` of a whole message, none left out (value None), with their content, and with all
    bytes of each.
    """
    for (start, end), field, value in _walk(data, (0, len(data))):
        yield field, data[slice(*value)] if isinstance(value, tuple) else value, data[start:end]


def _walk(data: Data, span: Span) -> Iterator[tuple[Span, int, int | Span | None]]:
    at, end = span
    while at < end:
        start = at
        tag, at = varint(data, at)
        field, kind = tag >> 3, tag & 7
        value: int | Span | None = None
        if kind == 0:
            value, at = varint(data, at)
        elif kind in (1, 5):
            at += 8 if kind == 1 else 4
        elif kind == 2:
            length, at = varint(data, at)
            value, at = (at, at + length), at + length
        else:
            raise ValueError("it is no protobuf")
        if at > end:
            raise ValueError("it is cut short")
        yield (start, at), field, value


def varint(data: Data, at: int) -> tuple[int, int]:
    """A number in base 128, and where it ends."""
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 127) << shift
        at += 1
        if byte < 128:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("it is no protobuf")


def number(field: int, value: int) -> bytes:
    """A field with a whole number that is not negative."""
    return _varint(field << 3) + _varint(value)


def part(field: int, content: bytes) -> bytes:
    """A field with bytes."""
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def text(field: int, value: str) -> bytes:
    """A field with text."""
    return part(field, value.encode())


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)
