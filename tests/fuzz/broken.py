"""Doors that are broken in every way, so that a run without findings means something."""

from __future__ import annotations

import ctypes
import functools
import random
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fuzz.kinds import Input, Kind, WrongAnswerError
from ris.engines.errors import RisError


def _raise(error: BaseException) -> None:
    raise error


def _refuse_after(take: Callable[[int], object]) -> None:
    try:
        take(2_300_000_000)
    except MemoryError:
        raise RisError("input.txt is too large") from None


def _use(size: int) -> bytes:
    return b"\1" * size


def _spin() -> None:
    while True:
        pass


WAYS: dict[str, tuple[Callable[[], object], str]] = {
    "sentence": (lambda: _raise(RisError("input.txt is no picture")), ""),
    "noise": (lambda: print("a library speaks", file=sys.stderr), ""),
    "warning": (lambda: warnings.warn("odd", stacklevel=1), ""),
    "reserved": (lambda: _refuse_after(bytes), ""),  # taken and not used
    "exception": (lambda: _raise(ValueError("x")), "ValueError"),
    "panic": (lambda: _raise(BaseException("x")), "BaseException"),
    "wrong": (lambda: _raise(WrongAnswerError("x")), "wrong answer"),
    "lines": (lambda: _raise(RisError("input.txt:\nno")), "several lines"),
    "nameless": (lambda: _raise(RisError("it is no picture")), "names no file"),
    "surrogate": (lambda: _raise(RisError("input.txt \ud800")), "lone surrogate in the sentence"),
    "escape": (lambda: _raise(RisError("input.txt \x1b")), "control character in the sentence"),
    "long": (lambda: _raise(RisError("input.txt " * 200)), "longer than 1000 characters"),
    "memory": (lambda: _use(2_300_000_000), "MemoryError"),
    "greed": (lambda: _refuse_after(_use), "too much memory"),
    "crash": (lambda: ctypes.string_at(0), "SIGSEGV"),
    "hang": (_spin, "hang"),
}
"""What a door does, and the finding that this is; empty where it is none."""


def _make(_rng: random.Random, _control: bool) -> Input:
    return Input({"input.txt": b"x"})


def _door(name: str, _folder: Path, _expected: Any) -> list[str]:
    WAYS[name][0]()
    return []


KINDS = {f"broken-{name}": Kind(_make, functools.partial(_door, name)) for name in WAYS}
