"""Protobuf's wire format, as far as ONNX files need it: the runtime has no onnx package.

A message is a sequence of fields. A field has a number, and holds either a whole number or bytes:
text, packed numbers or a message of its own.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator

Data = bytes | mmap.mmap
"""What is read: a file's bytes, or the file mapped into memory."""

Span = tuple[int, int]
"""Where something begins and ends in the data."""

_VARINT, _FIXED_64, _BYTES, _FIXED_32 = 0, 1, 2, 5  # the kinds of fields


def fields(data: Data, span: Span) -> Iterator[tuple[int, int | Span]]:
    """The fields of a message: the number of each, and its value or the span of its content.

    Numbers of 4 or 8 fixed bytes are left out.

    Raises:
        ValueError: Where this is no protobuf.
        IndexError: Where it ends too early.
    """
    for _, field, value in _walk(data, span):
        if value is not None:
            yield field, value


def raw_fields(data: bytes) -> Iterator[tuple[int, int | bytes | None, bytes]]:
    """All fields of a message: the number of each, its value, and all its bytes.

    The value is a whole number or the content; None for numbers of 4 or 8 fixed bytes. All the
    bytes together are the message again.

    Raises:
        ValueError: Where this is no protobuf.
        IndexError: Where it ends too early.
    """
    for (start, end), field, value in _walk(data, (0, len(data))):
        yield field, data[slice(*value)] if isinstance(value, tuple) else value, data[start:end]


def _walk(data: Data, span: Span) -> Iterator[tuple[Span, int, int | Span | None]]:
    """For each field of a message its span, its number, and what `fields` gives for it."""
    at, end = span
    while at < end:
        start = at
        tag, at = varint(data, at)
        if tag >> 32:  # some readers drop the upper bits, and would see another field
            raise ValueError("it is no protobuf")
        field, kind = tag >> 3, tag & 7
        value: int | Span | None = None
        if kind == _VARINT:
            value, at = varint(data, at)
        elif kind in (_FIXED_64, _FIXED_32):
            at += 8 if kind == _FIXED_64 else 4
        elif kind == _BYTES:
            length, at = varint(data, at)
            value, at = (at, at + length), at + length
        else:
            raise ValueError("it is no protobuf")

        if at > end:
            raise ValueError("it is cut short")
        yield (start, at), field, value


def varint(data: Data, at: int) -> tuple[int, int]:
    """The number in base 128 that begins at `at`, and where it ends.

    Raises:
        ValueError: For a number of more than 64 bits.
        IndexError: Where the data ends within it.
    """
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
    return _varint(field << 3 | _VARINT) + _varint(value)


def part(field: int, content: bytes) -> bytes:
    """A field with bytes."""
    return _varint(field << 3 | _BYTES) + _varint(len(content)) + content


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
