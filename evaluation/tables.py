"""Tables of several systems on several benchmarks, each cell counted, compared and kept.

What is missing (a data set, a bundle, a file of answers) is said cell by cell; the others are made.
Bundles' answers and every count are kept in the folder, so that a run that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris import __version__
from ris.data.datasets.refer_files import ReferFiles, candidates, read_files
from ris.engines.errors import RisError
from ris.engines.temporary import write_atomically
from ris.evaluation.benchmarks import score_showing
from ris.evaluation.compare import RESAMPLES, Difference, bootstrap, ious_of
from ris.evaluation.compared_runs import published_counting
from ris.evaluation.metrics import Figures
from ris.evaluation.predictions import Predictions
from ris.evaluation.results import PREDICTIONS, require_answers_to
from ris.evaluation.table_specs import (
    Column,
    HistogramSpec,
    Part,
    Published,
    Spec,
    System,
    TableSpec,
)
from ris.runtime.bundle import located
from ris.runtime.hub.address import is_address

Ask = Callable[[Path, Part, ReferFiles, Path], Path]
"""Asks a bundle what an evaluator asks of a part, as far as the folder lacks answers; returns their
file."""

_ARRAYS = ("intersection", "predicted", "truth", "refused", "targeted")


@dataclass(frozen=True)
class Counted:
    """A system's answers to a part."""

    figures: Figures
    """Against their truths, in the evaluator's order."""

    images: NDArray[np.int64]
    """The image of each, int64 [N]."""

    missing: int
    """Questions without an answer, or with one that cannot be read; each counts as an empty mask.
    """


@dataclass(frozen=True)
class Cell:
    """One figure of one system."""

    value: float | None
    """The figure; None where it is missing."""

    missing: str | None
    """Why it is missing, or what is missing of it; None where it is whole."""

    published: Published | None
    """What is stated for it; None where nothing is at hand."""

    difference: Difference | None
    """To the table's first system, with its interval; None for that one and where either is
    missing."""


@dataclass(frozen=True)
class Table:
    """A table that is made."""

    title: str
    """For people."""

    columns: tuple[Column, ...]
    """What is in the columns."""

    rows: tuple[tuple[System, tuple[Cell, ...]], ...]
    """The systems with their cells."""


@dataclass(frozen=True)
class Histogram:
    """A figure that is made."""

    title: str
    """For people."""

    part: Part
    """Of which expressions."""

    ious: tuple[tuple[str, NDArray[np.float64]], ...]
    """Systems' names and their IoUs of the targeted expressions, float64 [N], refused ones 0."""

    missing: tuple[str, ...]
    """A sentence for each system that is missing."""


class TableMaker:
    """Makes the tables of a file, one count after the other.

    Args:
        spec: The file.
        out: The folder of what is kept.
        ask: Asks a bundle.
        say: Gets a sentence for each count that begins.
    """

    def __init__(
        self, spec: Spec, out: Path, ask: Ask, say: Callable[[str], None] = lambda sentence: None
    ) -> None:
        self._spec, self._out, self._ask, self._say = spec, out, ask, say
        self._files: dict[tuple[str, str], ReferFiles | str] = {}
        self._counted: dict[tuple[str, Part], Counted | str] = {}

    def table(self, spec: TableSpec) -> Table:
        """A table. What is missing is in its cells."""
        parts = list(dict.fromkeys(column.part for column in spec.columns))
        rows: dict[str, dict[Column, Cell]] = {system.id: {} for system in spec.systems}
        for part in parts:
            columns = [column for column in spec.columns if column.part == part]
            found = [self._count(system, part) for system in spec.systems]
            differences = _differences(part, found)
            for system, counted, difference in zip(spec.systems, found, differences, strict=True):
                for column in columns:
                    own = difference.get(column.metric)
                    rows[system.id][column] = self._cell(system, column, counted, own)
        return Table(
            spec.title,
            spec.columns,
            tuple(
                (system, tuple(rows[system.id][column] for column in spec.columns))
                for system in spec.systems
            ),
        )

    def histogram(self, spec: HistogramSpec) -> Histogram:
        """A figure. Which systems are missing is said in it."""
        ious, missing = [], []
        for system in spec.systems:
            found = self._count(system, spec.part)
            if isinstance(found, str):
                missing.append(f"{system.name}: {found}")
            else:
                own = ious_of(found.figures)[found.figures.targeted]
                ious.append((system.name, own))
        return Histogram(spec.title, spec.part, tuple(ious), tuple(missing))

    def _cell(
        self, system: System, column: Column, counted: Counted | str, difference: Difference | None
    ) -> Cell:
        part = column.part
        key = system.name, part.data, part.split_by, part.split, column.metric
        published = self._spec.published.get(key)
        if isinstance(counted, str):
            return Cell(None, counted, published, None)
        value = published_counting(part.protocol, part.data).score(counted.figures)[column.metric]
        missing = None
        if counted.missing:
            missing = f"{counted.missing} questions without a readable answer count as empty masks"
        return Cell(value, missing, published, difference)

    def _count(self, system: System, part: Part) -> Counted | str:
        """A system's answers to a part, or why there are none."""
        key = system.id, part
        if key not in self._counted:
            try:
                self._counted[key] = self._read(system, part)
            except RisError as error:
                self._counted[key] = str(error)
        return self._counted[key]

    def _place(self, named: str) -> Path:
        """A bundle or a file of answers as the table names it, from the table's own folder."""
        if is_address(named):
            return located(named)
        return Path(os.path.normpath(self._spec.folder / named))

    def _read(self, system: System, part: Part) -> Counted:
        files = self._refer_files(part)
        place = self._place(system.place(part))
        if not place.exists():
            kind = "bundle" if system.bundle else "file of answers"
            raise RisError(f"the {kind} {place} is missing")
        name = "-".join((system.id, part.data, part.split_by, part.split))
        if system.bundle:
            place = self._ask(place, part, files, self._out / "answers" / name)
        elif place.is_dir():
            own = {"data": part.data, "split_by": part.split_by, "split": part.split}
            require_answers_to(place, own)
            place = place / PREDICTIONS
        kept = self._out / "counts" / f"{name}-{part.protocol}.npz"
        stamp = self._stamp(place, part)
        found = _load(kept, stamp)
        if found is None:
            self._say(f"{system.name}, {part.name}: counting by {part.protocol}")
            scored = score_showing(files, part.split, part.protocol, Predictions(place))
            images = np.array([question.image_id for question in scored.questions], np.int64)
            absent = len(scored.missing) + len(scored.unreadable)
            found = Counted(scored.figures, images, absent)
            _save(kept, stamp, found)
        return found

    def _refer_files(self, part: Part) -> ReferFiles:
        key = part.data, part.split_by
        if key not in self._files:
            try:
                self._files[key] = read_files(self._spec.root, *key, self._spec.images)
            except RisError as error:
                self._files[key] = str(error)
        found = self._files[key]
        if isinstance(found, str):
            raise RisError(found)
        return found

    def _stamp(self, answers: Path, part: Part) -> str:
        """A hash of all that a count depends on."""
        lists = candidates(self._spec.root, part.data, part.split_by)
        path = next(path for path in lists if path.exists())
        try:
            data = answers.read_bytes()
        except OSError as error:
            raise RisError(f"{answers} cannot be read: {error.strerror}") from None
        digest = hashlib.sha256(data).hexdigest()
        stats = [other.stat() for other in (path, path.parent / "instances.json")]
        stats += [file.stat() for file in _mask_files(data, answers.parent)]
        sizes = [[stat.st_size, stat.st_mtime_ns] for stat in stats]
        return json.dumps([__version__, digest, sizes, vars(part)])


_FILE_NAME = re.compile(rb'"(?:[^"\\]|\\.)+\.\w{3,4}"')


def _mask_files(answers: bytes, folder: Path) -> list[Path]:
    """The files that a file of answers names: its mask pictures."""
    found = []
    for name in _FILE_NAME.findall(answers):
        with contextlib.suppress(ValueError):  # a damaged line is named where it is read
            path = folder / json.loads(name)
            found += [path] if os.path.isfile(path) else []
    return found


def _differences(part: Part, found: Sequence[Counted | str]) -> list[dict[str, Difference]]:
    """Each system's differences to the first; none where either is missing."""
    first = found[0]
    nothing: list[dict[str, Difference]] = [{} for _ in found]
    others = [i for i, one in enumerate(found) if i and not isinstance(one, str)]
    if isinstance(first, str) or not others:
        return nothing
    figures = [one.figures for one in found if not isinstance(one, str)]
    counting = published_counting(part.protocol, part.data)
    drawn = bootstrap([str(image) for image in first.images], figures, counting, RESAMPLES)
    for i, own in zip(others, drawn, strict=True):
        nothing[i] = own
    return nothing


def _save(path: Path, stamp: str, counted: Counted) -> None:
    arrays: dict[str, Any] = {name: getattr(counted.figures, name) for name in _ARRAYS}
    arrays |= {"images": counted.images, "missing": np.array(counted.missing)}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, lambda file: np.savez(file, stamp=np.array(stamp), **arrays))
    except OSError as error:
        raise RisError(f"{path} cannot be written: {error.strerror or error}") from error


def _load(path: Path, stamp: str) -> Counted | None:
    """The count that is kept; None where there is none of the very files."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as found:
            if str(found["stamp"]) != stamp:
                return None
            figures = Figures(**{name: found[name] for name in _ARRAYS})
            return Counted(figures, found["images"], int(found["missing"]))
    except Exception:  # absent or damaged: zipfile and numpy have many words for it
        return None
