"""JSON Lines, and text with an item a line: the one reader for every door.

A line ends at a line feed, with or without a carriage return before it. Other characters that
Python takes for line ends (U+2028, U+0085, form feed) are content, as JSON has it. A file may begin
with a byte-order mark.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ris.engines.errors import RisError

_UTF8_MARK = b"\xef\xbb\xbf"
_UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")


@dataclass(frozen=True)
class JsonLine:
    """A line that is not blank."""

    number: int
    """Its number in the file, from 1."""

    value: Any
    """What `json.loads` made of it; None where there is a problem."""

    problem: str | None = None
    """Why it cannot be used, such as "not JSON: ..."; None where it can."""


def read_json_lines(path: Path) -> Iterator[JsonLine]:
    """The lines of a file, one after another; a bad one does not end the reading.

    Raises:
        RisError: Where the file cannot be read, and where it is UTF-16.
    """
    try:
        with path.open("rb") as file:
            for number, line in enumerate(_without_mark(file, path), 1):
                if not line.isspace():
                    yield _parsed(number, line)
    except (OSError, ValueError) as error:  # ValueError: a null byte in the name
        reason = error.strerror if isinstance(error, OSError) else error
        raise RisError(f"{path} cannot be read: {reason}") from None


def text_lines(text: str) -> list[str]:
    """The lines of a text that are not blank, without spaces at their ends."""
    lines = (line.strip() for line in text.split("\n"))
    return [line for line in lines if line]


def _without_mark(lines: Iterable[bytes], path: Path) -> Iterator[bytes]:
    """The lines, the first without its byte-order mark."""
    for number, line in enumerate(lines):
        if number == 0:
            if line.startswith(_UTF16_MARKS):
                raise RisError(f"{path} is UTF-16; save it as UTF-8")
            line = line.removeprefix(_UTF8_MARK)
        yield line


def _parsed(number: int, line: bytes) -> JsonLine:
    try:
        return JsonLine(number, parse_json(line.rstrip(b"\r\n")))
    except ValueError as error:
        return JsonLine(number, None, str(error))


def utf_8(data: bytes) -> str:
    """The text of these bytes, without a byte-order mark.

    Raises:
        ValueError: For anything but UTF-8; its text says so.
    """
    try:
        return data.removeprefix(_UTF8_MARK).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1})") from None


def parse_json(data: bytes) -> Any:
    """The value of a JSON text in UTF-8.

    Raises:
        ValueError: For anything else; its text says why, such as "not JSON: ...".
    """
    text = utf_8(data)
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at character {error.pos + 1}") from None
    except ValueError as error:  # a number of thousands of digits
        raise ValueError(f"not JSON: {error}") from None
