"""A graph's data file, written tensor by tensor: no more than one of them is in memory.

A run that was stopped goes on: beside the file stands a journal with the hash of each tensor, and
what is there with its hash is not made again. A tensor is on the disk before it is in the journal.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

THRESHOLD = 1024
"""Tensors of so many bytes stay in the graph's own file; larger ones lie in the data file."""

_AT_ONCE = 1 << 24  # bytes that are read at once to be hashed

Report = Callable[[int, int], None]
"""Called with the bytes that are written so far, and those that there will be."""


@dataclass(frozen=True)
class Part:
    """What is written to a data file at once, and kept as a whole or not at all: a tensor, or
    several that belong together."""

    name: str
    """Its name."""

    length: int
    """Its bytes."""

    make: Callable[[], NDArray[Any]]
    """Gives its values in the type and order in which they are stored."""

    notes: dict[str, float] | None = None
    """Where `make` notes something under `noted`; a run that goes on knows it from the journal."""

    noted: str = ""
    """The key there."""


def place(tensor: TensorProto, location: str, offset: int, length: int) -> None:
    """Lets a tensor of a graph lie in a data file beside it.

    Args:
        tensor: The tensor; what it holds itself is dropped.
        location: The file's name.
        offset: Where it begins, in bytes.
        length: Its bytes.
    """
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", offset), ("length", length)):
        tensor.external_data.add(key=key, value=str(value))


def write_data(
    path: Path,
    parts: Sequence[Part],
    report: Report = lambda done, whole: None,
    recipe: str | None = None,
) -> None:
    """Writes a data file: the parts, one behind the other.

    Args:
        path: The file.
        parts: What is in it.
        report: Called behind each part.
        recipe: Everything that the bytes depend on. What a run with the same recipe has written is
            kept, and this one leaves a journal for the next. None: the file is begun anew.

    Raises:
        ValueError: Where a part has another length than it says.
    """
    journal = journal_of(path)
    kept = _kept(path, journal, parts, recipe) if recipe is not None else []
    if len(kept) < len(parts) and path.exists() and path.stat().st_nlink > 1:
        kept = []  # a bundle has this very file
    if not kept:
        path.unlink(missing_ok=True)
    done, whole = sum(part.length for part in parts[: len(kept)]), sum(p.length for p in parts)
    with path.open("r+b" if kept else "wb") as file, _Journal(journal, recipe, kept) as note:
        file.seek(done)
        file.truncate()
        for part in parts[len(kept) :]:
            digest = _append(file, part)
            if recipe is not None:
                file.flush()
                os.fsync(file.fileno())
            note([part.name, part.length, digest, (part.notes or {}).get(part.noted)])
            done += part.length
            report(done, whole)


def journal_of(path: Path) -> Path:
    """The journal of a data file."""
    return path.with_name(f"{path.name}.journal")


def _append(file: BinaryIO, part: Part) -> str:
    """Writes a part; its sha256."""
    data = np.ascontiguousarray(part.make()).reshape(-1).view(np.uint8).data
    if len(data) != part.length:
        raise ValueError(f"{part.name} has {len(data)} bytes, not {part.length}")
    file.write(data)
    return hashlib.sha256(data).hexdigest()


class _Journal:
    """Notes each written part on disk; nothing where nobody will go on with the file.

    The journal of the run before stays whole until this one has its lines.
    """

    def __init__(self, path: Path, recipe: str | None, kept: Sequence[Any]) -> None:
        self._file = None
        if recipe is not None:
            fresh = path.with_name(f"{path.name}.new")
            self._file = fresh.open("w", encoding="utf-8")
            for line in (recipe, *kept):
                self._note(line)
            fresh.replace(path)

    def __enter__(self) -> Callable[[Any], None]:
        return self._note

    def __exit__(self, *ignored: object) -> None:
        if self._file is not None:
            self._file.close()

    def _note(self, line: Any) -> None:
        if self._file is not None:
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()


def _kept(path: Path, journal: Path, parts: Sequence[Part], recipe: str) -> list[list[Any]]:
    """The lines of the journal whose parts are in the file as they were written, up to the first
    that is not."""
    kept: list[list[Any]] = []
    try:
        with path.open("rb") as file:
            lines = _lines(journal)
            if next(lines, None) != recipe:
                return []
            for part, line in zip(parts, lines, strict=False):
                *same, noted = line
                if same != [part.name, part.length, _digest(file, part.length)]:
                    break
                if part.notes is not None and noted is not None:
                    part.notes[part.noted] = noted
                kept.append(line)
    except OSError:
        return []
    return kept


def _lines(journal: Path) -> Iterator[Any]:
    """What the journal says, up to where its writer was killed."""
    for line in journal.read_text("utf-8", errors="replace").splitlines():
        try:
            yield json.loads(line)
        except ValueError:
            return


def _digest(file: BinaryIO, length: int) -> str:
    """The sha256 of the next bytes of a file."""
    found = hashlib.sha256()
    while length > 0 and (data := file.read(min(length, _AT_ONCE))):
        found.update(data)
        length -= len(data)
    return found.hexdigest() if not length else ""


def link_or_copy(source: Path, target: Path) -> None:
    """Lets `target` be the same file as `source`, or a copy where a disk has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
