"""A batch on disk: its plan, cut into parts, and a Parquet file for each part that is done.

A part's file appears whole or not at all, and what is in it depends on the plan alone. So every row
is there exactly once however often workers or the driver were killed: going on means doing the
parts that have no file yet.

    OUT/part-00000.parquet ...     the answers; readers of Parquet skip names that begin with _
    OUT/_plan/plan.json            what was asked, written last
    OUT/_plan/part-00000.json ...  each part's images and rows
    OUT/_running/part-00000.json   where a worker is: this finds images that kill workers
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ris.engines.errors import ImageError, RisError
from ris.engines.temporary import write_atomically
from ris.runtime.image import find_images
from ris.serving.batch.asked import Location
from ris.serving.batch.inputs import ImageTask

SCHEMA = pa.schema(
    [
        ("row", pa.int64()),  # the pair's number in the input, from 0
        ("image", pa.string()),
        ("expression", pa.string()),
        ("category", pa.string()),  # that was asked, null for models that do not ask by category
        # COCO's, compressed
        ("rle", pa.struct([("size", pa.list_(pa.int32())), ("counts", pa.string())])),
        ("score", pa.float32()),
        ("no_target", pa.float32()),
        ("is_no_target", pa.bool_()),
        ("notes", pa.list_(pa.string())),
        ("error", pa.string()),  # why there is no answer, null where there is one
    ]
)
"""The columns of the answers: a row for each pair of an image and an expression."""

DEATHS = 3
"""An image on which so many workers died is given up."""


class Job:
    """The folder of a batch: its plan and what is done of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._plan = folder / "_plan"

    def planned(self) -> dict[str, Any] | None:
        """What was asked when the plan was made; None without a plan.

        Raises RisError where the plan cannot be read.
        """
        try:
            found: dict[str, Any] = json.loads((self._plan / "plan.json").read_text())
            return found
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise RisError(
                f"{self._plan / 'plan.json'} cannot be read: {error}; begin again with --restart"
            ) from None

    def write_plan(
        self, tasks: Sequence[ImageTask], rows_per_part: int, asked: dict[str, Any]
    ) -> None:
        """Cuts the images into parts of about `rows_per_part` rows; an image's rows stay together.

        asked: what an equal batch would ask, as JSON; `planned` returns it.
        """
        shutil.rmtree(self._plan, ignore_errors=True)
        self._plan.mkdir(parents=True)

        part: list[ImageTask] = []
        count = rows = total = 0
        for task in tasks:
            part.append(task)
            rows += len(task.rows)
            if rows >= rows_per_part:
                self._write_part_plan(count, part)
                count, total, rows, part = count + 1, total + rows, 0, []
        if part:
            self._write_part_plan(count, part)
            count, total = count + 1, total + rows

        plan = {"asked": asked, "parts": count, "rows": total}
        write(self._plan / "plan.json", json.dumps(plan, indent=1).encode())

    def _write_part_plan(self, part: int, tasks: Iterable[ImageTask]) -> None:
        write(self._part_plan(part), json.dumps([asdict(task) for task in tasks]).encode())

    def _part_plan(self, part: int) -> Path:
        return self._plan / f"part-{part:05}.json"

    def tasks(self, part: int) -> list[ImageTask]:
        """The images of a part."""
        found = [ImageTask(**task) for task in json.loads(self._part_plan(part).read_text())]
        for task in found:
            if isinstance(task.location, dict):
                task.location = Location(**task.location)
        return found

    def file(self, part: int) -> Path:
        """Where the answers of a part are or will be."""
        return self.folder / f"part-{part:05}.parquet"

    def open_parts(self, parts: int) -> list[int]:
        """The parts that have no answers yet."""
        return [part for part in range(parts) if not self.file(part).exists()]

    def write_answers(self, part: int, rows: list[dict[str, Any]], about: dict[str, str]) -> None:
        """Writes a part's file; about: goes into its schema's metadata."""
        ordered = sorted(rows, key=lambda row: row["row"])
        table = pa.Table.from_pylist(ordered, SCHEMA.with_metadata(about))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write(self.file(part), sink.getvalue())

    def counts(self, part: int) -> tuple[int, int]:
        """How many rows a finished part has, and how many of them are errors."""
        errors = pq.read_table(self.file(part), columns=["error"])["error"]
        return len(errors), len(errors) - errors.null_count

    def tidy(self) -> None:
        """Removes what killed workers left, once every part is done."""
        shutil.rmtree(self.folder / "_running", ignore_errors=True)
        for partial in self.folder.glob(".part-*.partial-*"):
            partial.unlink(missing_ok=True)

    def clear(self) -> None:
        """Throws plan and answers away, and nothing else that is in the folder."""
        for file in self.folder.glob("part-*.parquet"):
            file.unlink()
        for name in ("_plan", "_running"):
            shutil.rmtree(self.folder / name, ignore_errors=True)

    def journal(self, part: int) -> Journal:
        """The journal of a worker that begins a part."""
        return Journal(self.folder / "_running" / f"part-{part:05}.json")


class Journal:
    """Which image of a part a worker is at.

    An entry that a worker finds there means that an earlier worker died at that image.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._deaths: dict[str, int] = {}
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            before = json.loads(file.read_text())
            self._deaths = before["deaths"]
            died_at = str(before["image"])
            self._deaths[died_at] = self._deaths.get(died_at, 0) + 1
        except (FileNotFoundError, ValueError, KeyError):
            pass  # the first worker of this part

    def begin(self, image: int) -> bool:
        """Notes that the part's `image` comes next.

        Returns False where it has killed too many workers to be tried again.
        """
        if self._deaths.get(str(image), 0) >= DEATHS:
            return False
        write(self._file, json.dumps({"image": image, "deaths": self._deaths}).encode())
        return True

    def close(self) -> None:
        """Removes the entry: the part is done."""
        self._file.unlink(missing_ok=True)


def write(path: Path, data: bytes | pa.Buffer) -> None:
    """Writes a file whole or not at all.

    This holds also where another worker, on another machine, writes the same file.
    """
    write_atomically(path, lambda file: file.write(data), to_disk=True)


def fingerprint(sources: Sequence[Path]) -> str:
    """A hash of the name, length and time of writing of each source file.

    The files of a folder are its images.
    """
    digest = hashlib.sha256()
    for source in sources:
        for file in _files(source):
            stat = file.stat()
            digest.update(os.fsencode(file.absolute()))
            digest.update(f"\0{stat.st_size}\0{stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _files(source: Path) -> Sequence[Path]:
    """The images of a folder, none where it has none; otherwise the file itself."""
    if not source.is_dir():
        return [source]
    try:
        return find_images(source).images
    except ImageError:
        return []
