"""Pickles from strangers: only lists, dicts, strings, numbers and the like come out.

Anything else is refused before it is built.
"""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from pathlib import Path
from typing import Any

from ris.engines.errors import RisError
from ris.engines.text import echoed, quoted, reason_of

# The published files need NumPy scalars beside the built-in containers; they are pickled as
# (dtype, bytes).
_NUMPY_DTYPES = {"i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8", "b1"}

# What the unpickler raises for a file that is torn or no pickle at all.
_DAMAGED = (
    EOFError,
    ValueError,
    KeyError,
    IndexError,
    AttributeError,
    TypeError,
    MemoryError,
    OverflowError,
)


class _Dtype:
    """Stands in for `numpy.dtype`: keeps the code of a plain number and refuses all others."""

    def __init__(self, code: str, *rest: object) -> None:
        if code not in _NUMPY_DTYPES:
            raise pickle.UnpicklingError(f"numpy dtype {quoted(code)}")
        self.code = code

    def __setstate__(self, state: object) -> None:
        pass


def _scalar(dtype: object, data: object) -> int | float | bool:
    """Stands in for NumPy's constructor of scalars."""
    import numpy

    if not isinstance(dtype, _Dtype) or not isinstance(data, bytes | str):
        raise pickle.UnpicklingError("a numpy scalar of an unknown form")
    raw = data if isinstance(data, bytes) else data.encode("latin1")
    found: int | float | bool = numpy.frombuffer(raw, "<" + dtype.code, 1)[0].item()
    return found


def _encode(text: object, encoding: str = "latin1") -> bytes:
    """Stands in for `_codecs.encode`, by which the protocols 0 to 2 write bytes."""
    return str(text).encode("latin1" if encoding == "latin1" else "utf-8")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("builtins", "set"): set,
    ("__builtin__", "set"): set,  # Python 2's name of it
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "scalar"): _scalar,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("_codecs", "encode"): _encode,
}


def _plain_steps() -> re.Pattern[bytes]:
    """Matches up to 4,096 steps that follow each other without a counted text or the end.

    A value is remembered under a number below 16 million. The unpickler makes room for all numbers
    up to it, so a larger one could cost any memory.
    """
    known = []
    for step in pickletools.opcodes:
        code, argument = re.escape(step.code.encode("latin1")), step.arg
        if step.name == "PUT":
            known.append(code + rb"(?:1[0-5])?[0-9]{1,6}\n")
        elif step.name == "LONG_BINPUT":
            known.append(code + rb"...\0")
        elif argument is None:
            known += [] if step.name == "STOP" else [code]
        elif argument.n == pickletools.UP_TO_NEWLINE:
            known.append(code + rb"[^\n]*\n" * (2 if argument.name.endswith("pair") else 1))
        elif argument.n >= 0:
            known.append(code + b".{%d}" % argument.n)
    # bounded, as every repetition is remembered; possessive quantifiers, which remember nothing,
    # are wrong before Python 3.11.5 (python/cpython#106052)
    return re.compile(b"(?:" + b"|".join(known) + b"){0,4096}", re.DOTALL)


_PLAIN_STEPS = _plain_steps()
_COUNTS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
_COUNTED = {
    ord(step.code): _COUNTS[step.arg.n]
    for step in pickletools.opcodes
    if step.arg is not None and step.arg.n in _COUNTS
}
"""Code of a step with a counted text -> bytes of the count."""


def _check_numbers(data: bytes) -> None:
    """Raises UnpicklingError where a value is remembered under too large a number.

    What is no step ends the check: the unpickler does not come further either.
    """
    place = 0
    while place < len(data):
        begin = place
        place = _PLAIN_STEPS.match(data, place).end()  # type: ignore[union-attr]
        if place > begin:
            continue
        if data[place : place + 1] in (b"p", b"r"):
            raise pickle.UnpicklingError("it remembers a value under a number far too large")
        width = _COUNTED.get(data[place]) if place < len(data) else None
        if width is None:
            return
        count = int.from_bytes(data[place + 1 : place + 1 + width], "little")
        place += 1 + width + count


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        try:
            return _ALLOWED[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it asks for {echoed(f'{module}.{name}')}") from None

    def persistent_load(self, pid: object) -> Any:
        raise pickle.UnpicklingError("it refers to objects outside of the file")


def load_plain_pickle(path: Path) -> Any:
    """What the pickle `path` holds; nothing of the file is ever run.

    Returns:
        Nested lists, tuples, dicts, sets, strings, bytes, numbers and None.

    Raises:
        RisError: For a file that holds anything else or is no pickle.
    """
    try:
        data = path.read_bytes()
        _check_numbers(data)
        # the published files were written by Python 2: their byte strings are Latin-1 text
        return _PlainUnpickler(io.BytesIO(data), encoding="latin1").load()
    except pickle.UnpicklingError as error:
        raise RisError(
            f"{path} is refused: a data set's pickle holds plain values only, and"
            f" {reason_of(error)}"
        ) from error
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error.strerror}") from error
    except _DAMAGED as error:
        raise RisError(
            f"{path} is no readable pickle ({type(error).__name__}); download it again"
        ) from error
