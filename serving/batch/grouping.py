"""The lines of an input brought together by image, in memory or, where they are many, on disk."""

from __future__ import annotations

import json
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from ris.serving.batch.addresses import is_remote
from ris.serving.batch.asked import Asked, Location
from ris.serving.batch.inputs import ImageTask, group_by_image

_IN_MEMORY = 100_000  # lines
_TABLES = """
    PRAGMA journal_mode = OFF;
    PRAGMA synchronous = OFF;
    PRAGMA cache_size = -65536;
    CREATE TABLE images (image TEXT PRIMARY KEY, first INTEGER) WITHOUT ROWID;
    CREATE TABLE lines (
        first INTEGER, number INTEGER, row INTEGER, line TEXT, PRIMARY KEY (first, number)
    ) WITHOUT ROWID;
"""
"""By each image the number of its first line, and the lines in the order of their images."""


def grouped(lines: Iterator[Asked], folder: Path) -> Iterator[ImageTask]:
    """What `group_by_image` makes of the lines, without holding many of them in memory.

    folder: for a file of the lines, where they are many; it must be there once the first task is
    asked for, and the file is removed at the end. A remote one is replaced by a temporary one.
    """
    ahead = list(islice(lines, _IN_MEMORY + 1))
    if len(ahead) <= _IN_MEMORY:
        yield from group_by_image(ahead)
        return
    with _local(folder) as here:
        yield from _grouped_on_disk(chain(ahead, lines), here / "lines.sqlite")


@contextmanager
def _local(folder: Path) -> Iterator[Path]:
    """The folder, or a temporary one where it is not on this machine."""
    if not is_remote(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="ris-batch-") as made:
        yield Path(made)


def _grouped_on_disk(lines: Iterable[Asked], file: Path) -> Iterator[ImageTask]:
    file.unlink(missing_ok=True)
    try:
        # nobody else opens it, and file systems of clusters may have no locks
        address = f"{file.absolute().as_uri()}?vfs=unix-none"
        with closing(sqlite3.connect(address, uri=True)) as database:
            database.executescript(_TABLES)
            _take(database, lines)
            yield from _tasks(database)
    finally:
        file.unlink(missing_ok=True)


def _take(database: sqlite3.Connection, lines: Iterable[Asked]) -> None:
    """Puts the lines into the tables."""
    row = 0
    for number, line in enumerate(lines):
        first = number  # a line without an image is a task of its own
        if line.location is not None:
            image = json.dumps([line.name, asdict(line.location)])
            database.execute("INSERT OR IGNORE INTO images VALUES (?, ?)", (image, number))
            find = "SELECT first FROM images WHERE image = ?"
            [first] = database.execute(find, (image,)).fetchone()
        text = json.dumps(asdict(line))
        database.execute("INSERT INTO lines VALUES (?, ?, ?, ?)", (first, number, row, text))
        row += len(line.expressions)
    database.commit()


def _tasks(database: sqlite3.Connection) -> Iterator[ImageTask]:
    """The tasks in the order of their first lines."""
    found = database.execute("SELECT first, row, line FROM lines ORDER BY first, number")
    for _, lines in groupby(found, key=lambda one: one[0]):
        task: ImageTask | None = None
        for _, row, text in lines:
            line = _line(json.loads(text))
            if task is None:
                task = ImageTask(line.name, line.location, [], [], [], line.error)
            task.add(line, row)
        assert task is not None
        yield task


def _line(data: dict[str, Any]) -> Asked:
    location, categories = data["location"], data["categories"]
    return Asked(
        data["name"],
        None if location is None else Location(**location),
        tuple(data["expressions"]),
        None if categories is None else tuple(categories),
        data["error"],
    )
