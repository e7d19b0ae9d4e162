"""Images' bytes out of files, shards and tables, and pixels ahead of their turn."""

from __future__ import annotations

import errno
import stat
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa

from ris.engines.errors import ImageError, RisError
from ris.engines.text import echoed, reason_of
from ris.serving.answering import Answerer, Decoded
from ris.serving.batch.addresses import is_remote, opened_table, place
from ris.serving.batch.asked import Location
from ris.serving.batch.inputs import ImageTask, column_bytes
from ris.serving.limits import Limits

_TABLE_BYTES = 1_000_000_000  # of a Parquet row group's image column: a page of it is in memory

_STORAGE = frozenset(
    {
        *(errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.ENODEV, errno.ENOMEM),
        *(errno.ENETDOWN, errno.ENETUNREACH, errno.EHOSTDOWN, errno.EHOSTUNREACH),
        *(errno.ECONNRESET, errno.ECONNREFUSED, errno.ECONNABORTED, errno.ESHUTDOWN),
        *(errno.EMFILE, errno.ENFILE, getattr(errno, "EREMOTEIO", errno.ETIMEDOUT)),  # of Linux
    }
)
"""What the system says where a file is not to blame: storage that went away, no more handles."""


class StorageError(RisError):
    """Storage that cannot be reached: no image is to blame."""


def check_storage(paths: Sequence[str]) -> None:
    """Raises StorageError where this machine does not see a file or folder."""
    for path in paths:
        if not _exists(path):
            raise StorageError(f"{echoed(path)} is not there on a worker's machine")


def _exists(path: str) -> bool:
    try:
        return place(path).exists()
    except Exception:  # a remote storage has errors of its own
        return False


class Images:
    """Reads images' bytes. It goes on in a table where it was, so rows are best asked in order."""

    def __init__(self, limits: Limits, sources: Sequence[str] = ()) -> None:
        """limits: what an image may be; sources: what must be there as long as anything is read."""
        self._limits = limits
        self._sources = sources
        self._table: _Table | None = None

    def read(self, location: Location) -> bytes:
        """The bytes of an image file, cut off just beyond the limit.

        Raises:
            ImageError: Where this image cannot be read; it names the file.
            StorageError: Where none could be.
        """
        path, name = place(location.file), echoed(location.file)
        try:
            if location.row is not None:
                return self._cell(path, location.row)
            about = path.stat()
            if not is_remote(path) and not stat.S_ISREG(about.st_mode):  # it might not end
                raise ImageError(f"{name}: no such image file")
            size = about.st_size if location.size is None else location.size
            with path.open("rb") as file:
                file.seek(location.offset or 0)
                return file.read(min(size, self._limits.image_bytes + 1))
        except (FileNotFoundError, NotADirectoryError, UnicodeEncodeError):
            check_storage(self._sources)
            raise ImageError(f"{name}: no such image file") from None
        except (IndexError, StopIteration):
            raise ImageError(f"{name} has fewer rows than it says; write it again") from None
        except RisError:
            raise
        except Exception as error:
            said = f"{name} cannot be read: {reason_of(error)}"
            if isinstance(error, PermissionError):  # of this one, unless it is of all
                check_storage(self._sources)
            if isinstance(error, pa.ArrowException | ValueError | PermissionError):
                raise ImageError(said) from None  # ValueError: or a null byte in the name
            # a remote storage has errors of its own; all of them are the storage's
            if is_remote(path) or (isinstance(error, OSError) and error.errno in _STORAGE):
                raise StorageError(said) from None
            if isinstance(error, OSError):
                raise ImageError(said) from None
            raise

    def _cell(self, path: Path, row: int) -> bytes:
        """The image in a row of a table."""
        table = self._table
        if table is None or not table.can_go_on(path, row):
            table = self._table = _Table(path)
        try:
            cell = table.cell(row)
        except BaseException:
            self._table = None
            raise
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise ImageError(f"{path}, row {row} has no image bytes")
        return data


class _Table:
    """The column `image` of a Parquet file, one cell after another.

    Never more than a cell is made of what is in the file: with a dictionary, a small row group may
    expand to anything.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._written = _written(path)
        self._groups: list[tuple[int, int]] = []  # the first row and the number of rows of each
        with opened_table(path) as table:
            first = 0
            for group in range(table.num_row_groups):
                rows = table.metadata.row_group(group).num_rows
                self._groups.append((first, rows))
                first += rows
        self._next = 0
        self._end = 0
        self._cells: Iterator[Any] = iter(())

    def can_go_on(self, path: Path, row: int) -> bool:
        """Whether this is the same file, not written anew, and the row is ahead."""
        return path == self._path and row >= self._next and _written(path) == self._written

    def cell(self, row: int) -> Any:
        """The value in a row. Raises IndexError beyond the last one."""
        if row >= self._end:
            group = next((i for i, (first, rows) in enumerate(self._groups) if row < first + rows))
            self._next, rows = self._groups[group]
            self._end = self._next + rows
            self._cells = self._of_group(group)
        for _ in range(row - self._next):
            next(self._cells)
            self._next += 1
        self._next += 1
        return next(self._cells)[0].as_py()

    def _of_group(self, group: int) -> Iterator[Any]:
        with opened_table(self._path) as table:
            size = column_bytes(table.metadata.row_group(group), ["image"])
            if size > _TABLE_BYTES:
                raise ImageError(
                    f"{self._path}: its row groups have {size / 1e9:.1f} GB of images; write"
                    " smaller ones"
                )
            for batch in table.iter_batches(1, row_groups=[group], columns=["image"]):
                yield batch.column(0)


def _written(path: Path) -> tuple[int, float]:
    found = path.stat()
    return found.st_size, getattr(found, "st_mtime", 0)


class Ahead:
    """Reads and decodes images in a thread of its own, one ahead of the engine."""

    def __init__(self, answerer: Answerer, sources: Sequence[str] = ()) -> None:
        self._answerer = answerer
        self._images = Images(answerer.limits, sources)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="read")
        self._read: dict[Location, Future[Decoded]] = {}

    def begin(self, task: ImageTask) -> None:
        """Begins to read a task's image."""
        if task.location is not None and task.location not in self._read:
            self._read[task.location] = self._thread.submit(self._decoded, task.location)

    def take(self, location: Location) -> Decoded:
        """The image, once it is there.

        Raises:
            ImageError: Where it cannot be read or is no image.
            LimitError: Where it is too large.
            StorageError: Where storage cannot be reached.
        """
        found = self._read.pop(location, None)
        return (found or self._thread.submit(self._decoded, location)).result()

    def forget(self) -> None:
        """Drops what was read and not taken."""
        for waiting in self._read.values():
            waiting.cancel()
        self._read.clear()

    def _decoded(self, location: Location) -> Decoded:
        return self._answerer.decode(self._images.read(location))
