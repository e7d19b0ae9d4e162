"""A batch on disk: its plan, cut into parts, and a Parquet file for each part that is done.

A part's file appears whole or not at all, and what is in it depends on the plan alone, but for what
an engine's precision does to a mask's boundary. So every row is there exactly once however often
workers or the driver were killed: going on means doing the parts that have no file yet. What made a
file last is in its metadata.

    OUT/part-00000.parquet ...     the answers; readers of Parquet skip names that begin with _
    OUT/_plan/plan.json            what was asked, written last; what all workers compute in
    OUT/_plan/part-00000.json ...  each part's images and rows
    OUT/_running/part-00000.json   where a worker is, where its engine failed, and what it did not
                                   come back from: this finds images that kill workers, and those at
                                   which an engine fails
    OUT/_running/halt              the workers leave the parts that are open alone
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Collection, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ris.engines.errors import ImageError, RisError
from ris.runtime.image import find_images
from ris.serving.batch.addresses import (
    files_below,
    is_remote,
    opened_table,
    remove_folder,
    write,
)
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

_WITH_FORM = SCHEMA.insert(SCHEMA.get_field_index("category") + 1, pa.field("form", pa.string()))
"""The same of models that ask in forms: the form that was asked in, null where there is an error.
"""

DEATHS = 3
"""An image on which so many workers died is given up."""

FAILURES = 2
"""An image at which the engine failed in so many workers, and at no other, is given up."""


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
        self, tasks: Iterable[ImageTask], rows_per_part: int, asked: dict[str, Any]
    ) -> int:
        """Cuts the images into parts of about `rows_per_part` rows; an image's rows stay together.

        Whatever ends the writing early, there is no plan then: that of an earlier batch is thrown
        away first, and its answers last, once all parts are planned.

        Args:
            tasks: The images, one of which is in memory at a time.
            rows_per_part: Rows of a part.
            asked: What an equal batch would ask, as JSON; `planned` returns it.

        Returns:
            How many parts there are; for none there is no plan.
        """
        is_new = not self.folder.exists()
        (self._plan / "plan.json").unlink(missing_ok=True)  # first: without it there is no plan
        remove_folder(self._plan)
        self._plan.mkdir(parents=True)
        parts = 0
        try:
            parts = self._write_parts(tasks, rows_per_part, asked)
        finally:
            if not parts:
                remove_folder(self._plan)
                if is_new and not is_remote(self.folder):
                    with contextlib.suppress(OSError):
                        self.folder.rmdir()
        return parts

    def note(self, **fields: Any) -> None:
        """Changes fields of the plan; what is done of it stays.

        Raises RisError as `planned`, OSError where it cannot be written.
        """
        self._write_plan({**(self.planned() or {}), **fields})

    def _write_plan(self, plan: dict[str, Any]) -> None:
        write(self._plan / "plan.json", json.dumps(plan, indent=1).encode())

    def _write_parts(
        self, tasks: Iterable[ImageTask], rows_per_part: int, asked: dict[str, Any]
    ) -> int:
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

        self._clear()
        self._write_plan({"asked": asked, "parts": count, "rows": total})
        return count

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
        done = {file.name for file in self.folder.glob("part-*.parquet")}
        return [part for part in range(parts) if self.file(part).name not in done]

    def write_answers(
        self,
        part: int,
        rows: list[dict[str, Any]],
        about: dict[str, str],
        has_forms: bool = False,
    ) -> None:
        """Writes a part's file.

        Args:
            part: Its number.
            rows: What goes into it, in any order.
            about: Goes into its schema's metadata.
            has_forms: Whether the model asks in forms, so that rows say theirs.
        """
        schema = _WITH_FORM if has_forms else SCHEMA
        ordered = sorted(rows, key=lambda row: row["row"])
        table = pa.Table.from_pylist(ordered, schema.with_metadata(about))
        sink = pa.BufferOutputStream()
        pq.write_table(table, sink, compression="zstd")
        write(self.file(part), sink.getvalue())

    def answered(self, part: int) -> list[dict[str, Any]]:
        """The rows of a finished part that have an answer."""
        rows: list[dict[str, Any]] = self._table(part).to_pylist()
        return [row for row in rows if row["error"] is None]

    def _table(self, part: int, columns: list[str] | None = None) -> pa.Table:
        with opened_table(self.file(part)) as table:
            return table.read(columns)

    def counts(self, part: int) -> tuple[int, int]:
        """How many rows a finished part has, and how many of them are errors."""
        errors = self._table(part, ["error"])["error"]
        return len(errors), len(errors) - errors.null_count

    def halt(self, halted: bool) -> None:
        """Whether workers leave the parts that are open alone from now on."""
        if not halted:
            self._halt.unlink(missing_ok=True)
        elif not self.halted():
            self._halt.parent.mkdir(exist_ok=True)
            write(self._halt, b"")

    def halted(self) -> bool:
        """What `halt` said last."""
        return self._halt.exists()

    @property
    def plan_folder(self) -> Path:
        """Where the plan is, and what making one needs."""
        return self._plan

    @property
    def _halt(self) -> Path:
        return self.folder / "_running" / "halt"

    def tidy(self, open_parts: Collection[int] = ()) -> None:
        """Removes what killed workers left, once nobody works on the batch.

        open_parts: their journals stay, which know the images that are under suspicion.
        """
        running = self.folder / "_running"
        kept = {self._journal_file(part).name for part in open_parts}
        files = list(running.glob("*")) if kept else []
        if any(file.name in kept for file in files):
            for file in files:
                if file.name not in kept:
                    file.unlink(missing_ok=True)
        else:
            remove_folder(running)
        if not is_remote(self.folder):
            for partial in self.folder.glob(".part-*.partial-*"):
                partial.unlink(missing_ok=True)

    def _clear(self) -> None:
        """Throws answers and journals away, and nothing else that is in the folder."""
        for file in self.folder.glob("part-*.parquet"):
            file.unlink()
        remove_folder(self.folder / "_running")

    def journal(self, part: int) -> Journal:
        """The journal of a worker that begins a part."""
        return Journal(self._journal_file(part))

    def _journal_file(self, part: int) -> Path:
        return self.folder / "_running" / f"part-{part:05}.json"


@dataclass(frozen=True)
class Hang:
    """What an earlier worker did not come back from, so that it ended itself."""

    said: str
    """The sentence about it."""

    image: int | None
    """The part's image that the engine was at. None: it was at no image."""

    is_sick: bool
    """Whether the model was being opened, so that every part of this worker ends so."""


class Journal:
    """Which images of a part a worker is at, and at which of them the engine failed.

    Images that a worker finds there are those at which an earlier worker died.
    """

    hang: Hang | None
    """What the worker before this one did not come back from; `begin` and `rest` forget it."""

    openings: int
    """How many workers before this one died while they opened the model; `begin` and `rest` forget
    it."""

    is_slow: bool
    """Whether writing to it takes longer than an image may take: it is not on a file system."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.is_slow = is_remote(file)
        self._deaths: dict[str, int] = {}
        self._failures: dict[str, list[str]] = {}
        self.hang, self.openings = None, 0
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            before = json.loads(file.read_text())
            self._deaths = before["deaths"]
            self._failures = before.get("failures", {})
            if before.get("hang"):
                self.hang = Hang(**before["hang"])
            self.openings = int(before.get("opening", 0))
            for image in before["images"]:
                self._deaths[str(image)] = self.deaths(image) + 1
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            pass  # the first worker of this part

    def deaths(self, image: int) -> int:
        """How many workers died while they were at the part's `image`."""
        return self._deaths.get(str(image), 0)

    def failures(self, image: int) -> list[str]:
        """What the engine said when it failed at the part's `image`, once for each worker."""
        return self._failures.get(str(image), [])

    def fail(self, image: int, said: str) -> None:
        """Notes that the engine failed at the part's `image`; `begin` or `rest` writes it."""
        self._failures[str(image)] = [*self.failures(image), said]

    def is_suspect(self, image: int) -> bool:
        """Whether something happened at the part's `image`, so that it is tried by itself."""
        return bool(self.deaths(image) or self.failures(image))

    def begin(self, *images: int) -> None:
        """Notes which of the part's images are worked on from now on, and no others."""
        self._write({"images": images})

    def opening(self) -> None:
        """Notes that the model is being opened, in case that no line of Python's comes after it."""
        entry: dict[str, Any] = {"images": [], "opening": self.openings + 1}
        if self.hang:
            entry["hang"] = asdict(self.hang)
        self._write(entry)

    def hung(self, hang: Hang) -> None:
        """Notes that the worker ends since it does not come back, which is no death of an image."""
        if hang.image is not None:
            self.fail(hang.image, hang.said)
        self._write({"images": [], "hang": asdict(hang)})

    def _write(self, entry: dict[str, Any]) -> None:
        entry["deaths"] = self._deaths
        if self._failures:
            entry["failures"] = self._failures
        write(self._file, json.dumps(entry).encode())

    def rest(self) -> None:
        """Notes that no image is worked on: the part could not be done, and nobody died."""
        if self._deaths or self._failures:
            self.begin()
        else:
            self.close()

    def close(self) -> None:
        """Removes the entry: the part is done."""
        self._file.unlink(missing_ok=True)


def fingerprint(sources: Sequence[Path]) -> str:
    """A hash of the name, length and time of writing of each source file.

    The files of a folder are its images.
    """
    digest = hashlib.sha256()
    for source in sources:
        for file in _files(source):
            stat = file.stat()
            digest.update(os.fsencode(str(file.absolute())))
            time = getattr(stat, "st_mtime_ns", None) or stat.st_mtime
            digest.update(f"\0{stat.st_size}\0{time}\n".encode())
    return digest.hexdigest()


def _files(source: Path) -> Sequence[Path]:
    """The images of a folder, none where it has none; otherwise the file itself."""
    if not source.is_dir():
        return [source]
    if is_remote(source):
        return files_below(source)
    try:
        return find_images(source).images
    except ImageError:
        return []
