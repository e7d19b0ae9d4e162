"""What a batch is made of: images, and what is asked of each.

Folders, JSONL, Parquet and web-dataset shards are read. Nothing but names and expressions is read
here; the images are read by the workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ris.engines.errors import ExpressionError, ImageError, RisError, Skipped
from ris.engines.text import echoed, reason_of
from ris.runtime.image import IMAGE_SUFFIXES, find_images
from ris.runtime.json_lines import JsonLine, read_json_lines
from ris.serving.batch.addresses import beside, files_below, is_remote, opened_table
from ris.serving.batch.asked import (
    Asked,
    Given,
    Location,
    categories_of,
    own_category,
    texts_of,
    unusable,
)
from ris.serving.batch.shards import read_shard

_ROWS_TOGETHER = 4096
_CELL_BYTES = 256_000_000  # of what the rows of a table that are read together may expand to


@dataclass
class ImageTask:
    """An image with all its rows; a row is a pair of an image and an expression."""

    name: str
    """The image as the input calls it, the answers' `image`."""

    location: Location | None
    """Where its bytes are; None where there is an error."""

    rows: list[int]
    """The numbers of its rows in the order of the input, from 0."""

    expressions: list[str]
    """The expression of each row."""

    categories: list[str | None]
    """The category of each row; None where none was named."""

    error: str | None = None
    """Why the image cannot be asked."""

    def add(self, line: Asked, row: int) -> None:
        """Takes the rows of a line about this image, the first of which has this number."""
        self.rows += range(row, row + len(line.expressions))
        self.expressions += line.expressions
        self.categories += line.categories or (None,) * len(line.expressions)


def read_sources(
    sources: Sequence[Path], given: Given, noted: Skipped = lambda sentence: None
) -> Iterator[Asked]:
    """The lines of all sources, in order.

    A source that cannot be read, or not to its end, costs a row with its error. What is refused is
    refused before the first line.

    Args:
        sources: Folders, .jsonl, .parquet and .tar files.
        given: What is asked where they do not say.
        noted: Gets a sentence for what folders have that looks like a picture and is not taken.

    Raises:
        RisError: Where no source can be read.
        ExpressionError: Where there is a folder and nothing to look for.
    """
    if not given.expressions and (folder := next((s for s in sources if s.is_dir()), None)):
        raise ExpressionError(f'nothing to look for in {folder}: add -e, such as -e "left man"')
    problems: list[str] = []
    usable = False
    for source in sources:
        try:
            for line in _source(source, given, noted):
                usable = True
                yield line
        except RisError as error:
            problems.append(str(error))
    if problems and not usable:
        raise RisError("; ".join(problems))
    for problem in problems:
        yield Asked("", None, ("",), error=problem)


def _source(source: Path, given: Given, noted: Skipped) -> Iterator[Asked]:
    suffix = source.suffix.lower()
    if not source.exists():
        raise ImageError(f"{source}: no such file or folder")
    if source.is_dir():
        return _folder(source, given, noted)
    if suffix == ".jsonl":
        return (_line(source, line, given) for line in read_json_lines(source))
    if suffix == ".parquet":
        return _parquet(source, given)
    if suffix == ".tar":
        return read_shard(source, given)
    raise RisError(f"{source} is not a folder, .jsonl, .parquet or .tar (uncompressed) file")


def _folder(source: Path, given: Given, noted: Skipped) -> Iterator[Asked]:
    """Every image is asked what was given."""
    images: Sequence[Path]
    if is_remote(source):
        images = [file for file in files_below(source) if file.suffix.lower() in IMAGE_SUFFIXES]
        if not images:
            raise ImageError(f"{source} has no images")
    else:
        found = find_images(source)
        images = found.images
        for note in found.notes():
            noted(note)
    categories = categories_of(given.category, given.expressions)
    for image in images:
        name = str(image.relative_to(source))
        yield Asked(name, Location(str(image.absolute())), given.expressions, categories)


def _line(path: Path, line: JsonLine, given: Given) -> Asked:
    """A line {"image", "expression", "category"}; other fields are left alone."""
    place, data = f"{path.name}, line {line.number}", line.value
    if line.problem:
        return unusable(place, line.problem)
    if not isinstance(data, dict):
        return unusable(place, 'not of the form {"image": path, "expression": text}')
    try:
        name = data["image"]
        if not isinstance(name, str):
            raise TypeError("the image is not a name")
        expressions = texts_of(data["expression"])
        categories = categories_of(own_category(data, given), expressions)
    except (KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        return unusable(place, reason)
    return Asked(name, Location(str(beside(path, name).absolute())), expressions, categories)


def _parquet(path: Path, given: Given) -> Iterator[Asked]:
    """Columns image (a path, bytes, or a struct with bytes), expression, and maybe category.

    An expression is a text or a list; without the column every image is asked what was given.
    Bytes stay in the file until a worker wants them.
    """
    try:
        with opened_table(path) as table:
            schema = table.schema_arrow
            asks = "expression" in schema.names or given.expressions
            if "image" not in schema.names or not asks:
                raise RisError(
                    f"{path} needs the columns image and expression, it has"
                    f" {echoed(', '.join(schema.names))}"
                )

            paths = _is_text(schema.field("image").type)
            wanted = ["image"] if paths else []
            wanted += [name for name in ("expression", "category") if name in schema.names]
            for row, data in enumerate(_cells(table, wanted)):
                yield _table_row(path, row, data, paths, given)
    except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
        raise RisError(f"{path} cannot be read: {reason_of(error)}") from None


def _is_text(kind: pa.DataType) -> bool:
    """Whether a column has texts, in whichever of Arrow's forms."""
    if pa.types.is_dictionary(kind):
        return _is_text(kind.value_type)
    checks = (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view)
    return any(check(kind) for check in checks)


def _cells(table: pq.ParquetFile, wanted: list[str]) -> Iterator[dict[str, Any] | None]:
    """These columns of each row; None for a row whose text is not UTF-8.

    A cell may be as large as its whole column, and with a dictionary every cell of the column: so
    many rows are read together as fit into memory even then.
    """
    for group in range(table.num_row_groups):
        about = table.metadata.row_group(group)
        if not wanted:
            yield from ({} for _ in range(about.num_rows))
            continue
        rows = max(1, min(_ROWS_TOGETHER, _CELL_BYTES // max(1, column_bytes(about, wanted))))
        for batch in table.iter_batches(rows, row_groups=[group], columns=wanted):
            yield from _rows(batch)


def column_bytes(group: Any, names: Sequence[str]) -> int:
    """The uncompressed bytes of some columns of a Parquet file's row group."""
    columns = [group.column(i) for i in range(group.num_columns)]
    return sum(
        column.total_uncompressed_size
        for column in columns
        if column.path_in_schema.split(".")[0] in names
    )


def _rows(batch: pa.RecordBatch) -> list[dict[str, Any] | None]:
    """The rows; None for one whose text is not UTF-8."""
    try:
        return list(batch.to_pylist())
    except UnicodeDecodeError:
        if len(batch) == 1:
            return [None]
    middle = len(batch) // 2
    return _rows(batch.slice(0, middle)) + _rows(batch.slice(middle))


def _table_row(
    path: Path, row: int, data: dict[str, Any] | None, paths: bool, given: Given
) -> Asked:
    """A row of a table.

    Args:
        path: The table.
        row: The row's number, from 0.
        data: Its columns that were read; None where they are no text.
        paths: Whether the image column names files. Otherwise it has bytes, and was not read.
        given: What is asked where the row does not say.
    """
    place = f"{path.name}, row {row}"
    if data is None:
        return unusable(place, "not UTF-8")
    try:
        expressions = texts_of(data["expression"]) if "expression" in data else given.expressions
        categories = categories_of(own_category(data, given), expressions)
        name = data["image"] if paths else place
        if not isinstance(name, str):
            raise TypeError("there is no image")
    except TypeError as error:
        return unusable(place, str(error))

    if paths:
        location = Location(str(beside(path, name).absolute()))
    else:
        location = Location(str(path.absolute()), row=row)
    return Asked(name, location, expressions, categories)


def group_by_image(lines: Iterable[Asked]) -> list[ImageTask]:
    """One task an image, in the order of first appearance, with the rows of all its lines."""
    tasks: dict[object, ImageTask] = {}
    row = 0
    for number, line in enumerate(lines):
        # a line without an image is a task of its own, and so is another name of an image
        key = number if line.location is None else (line.location, line.name)
        task = tasks.get(key)
        if task is None:
            task = tasks[key] = ImageTask(line.name, line.location, [], [], [], line.error)
        task.add(line, row)
        row += len(line.expressions)
    return list(tasks.values())
