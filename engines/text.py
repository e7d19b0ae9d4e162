"""Text that can be shown and stored: names and expressions are not always valid Unicode.

A file name whose bytes are no UTF-8 reaches Python with lone surrogates in it, and JSON's `\\ud83d`
alone is one. Neither can be encoded, so no stream, JSON file or Arrow column takes them.
"""

from __future__ import annotations

import os
import re
import reprlib

_SURROGATE = re.compile("[\ud800-\udfff]")
# what ends or rewrites a line, also by turning its direction, and the byte-order mark, unseen
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ufeff]")

LONGEST_ECHO = 200
"""Characters that a sentence repeats of a name or text out of somebody's file."""

_VALUES = reprlib.Repr()
_VALUES.maxlevel, _VALUES.maxstring = 2, 60


def shown(text: str | os.PathLike[str]) -> str:
    """A path or a text as valid Unicode: whatever cannot be encoded becomes U+FFFD."""
    return _SURROGATE.sub("\ufffd", os.fspath(text))


def one_line(text: str | os.PathLike[str], limit: int | None = None) -> str:
    r"""`shown`, with line breaks and other control characters as escapes such as \n.

    limit: the most characters; of a longer text the middle is left out. None: any number.
    """
    line = _CONTROL.sub(lambda found: ascii(found[0])[1:-1], shown(text))
    if limit is None or len(line) <= limit:
        return line
    return f"{line[: limit // 2]}…{line[len(line) - (limit - 1) // 2 :]}"


def echoed(text: str | os.PathLike[str]) -> str:
    """A name or text out of somebody's file, as a sentence repeats it: one line, not too long."""
    return one_line(text, LONGEST_ECHO)


def quoted(value: object) -> str:
    """Any value out of somebody's file as Python writes it: one line, short, not nested deeply."""
    return echoed(_VALUES.repr(value))


def reason_of(error: BaseException) -> str:
    """What an exception of a library says, as part of a sentence; its class where that is none."""
    text = getattr(error, "strerror", None) or str(error)  # an OSError's without number and file
    return echoed(" ".join(text.split())) or type(error).__name__


def is_fault(error: BaseException) -> bool:
    """Whether a library failed: by an exception, or by a panic of what it wraps, which is none.

    What is not is somebody's wish to stop.
    """
    return isinstance(error, Exception) or type(error).__name__ == "PanicException"


def typed(argument: str) -> str:
    """An argument of the command line as text, where the locale could not decode its UTF-8."""
    if shown(argument) == argument:
        return argument
    try:
        return os.fsencode(argument).decode("utf-8")
    except UnicodeError:
        return argument
