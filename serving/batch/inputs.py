"""What a batch is made of: images, and what is asked of each.

Folders, JSONL, Parquet and web-dataset shards are read. Nothing but names and expressions is read
here; the images are read by the workers.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ris.engines.errors import ExpressionError, ImageError, RisError
from ris.runtime.image import IMAGE_SUFFIXES

_TEXT_BYTES = 1_000_000  # of a shard's .txt or .json


@dataclass(frozen=True)
class Given:
    """What is asked where the input itself does not say."""

    expressions: tuple[str, ...] = ()
    """Asked of every image that brings no expressions."""

    category: str | None = None
    """Asked with every expression that brings no category; None: none."""


@dataclass(frozen=True)
class Location:
    """Where an image's bytes are."""

    file: str
    """The image file, or the shard or table that it is in."""

    offset: int | None = None
    """Its first byte in a shard; None: not in a shard."""

    size: int | None = None
    """Its bytes in a shard; None: not in a shard."""

    row: int | None = None
    """Its row in a Parquet file, from 0; None: not in a table."""


@dataclass(frozen=True)
class Asked:
    """A line of the input: an image and what is asked of it, or an error in their place."""

    name: str
    """The image as the input calls it, the answers' `image`."""

    location: Location | None
    """Where its bytes are; None where there is an error."""

    expressions: tuple[str, ...]
    """What is looked for in it."""

    categories: tuple[str, ...] | None = None
    """One for each expression; None where none was named."""

    error: str | None = None
    """Why the line cannot be asked."""


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


def read_sources(sources: Sequence[Path], given: Given) -> Iterator[Asked]:
    """The lines of all sources, in order. Raises RisError for a source that cannot be read."""
    for source in sources:
        suffix = source.suffix.lower()
        if not source.exists():
            raise ImageError(f"{source}: no such file or folder")

        if source.is_dir():
            yield from _folder(source, given)
        elif suffix == ".jsonl":
            yield from _jsonl(source, given)
        elif suffix == ".parquet":
            yield from _parquet(source, given)
        elif suffix == ".tar":
            yield from _shard(source, given)
        else:
            raise RisError(
                f"{source} is not a folder, .jsonl, .parquet or .tar (uncompressed) file"
            )


def images_below(folder: Path) -> list[Path]:
    """The image files of a folder and those in it, by name."""
    return sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
    )


def _folder(source: Path, given: Given) -> Iterator[Asked]:
    """Every image is asked what was given."""
    images = images_below(source)
    if not images:
        raise ImageError(f"{source} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    if not given.expressions:
        raise ExpressionError(f'nothing to look for in {source}: add -e, such as -e "left man"')

    categories = _categories(given.category, given.expressions)
    for image in images:
        name = str(image.relative_to(source))
        yield Asked(name, Location(str(image.absolute())), given.expressions, categories)


def _jsonl(path: Path, given: Given) -> Iterator[Asked]:
    """Lines {"image", "expression", "category"}, as ris-infer and ris-eval read them.

    Other fields are left alone.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _line(path, number, line, given)
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error.strerror}") from None


def _line(path: Path, number: int, line: str, given: Given) -> Asked:
    try:
        data = json.loads(line)
        name = data["image"]
        if not isinstance(name, str):
            raise TypeError("the image is not a name")
        expressions = _texts(data["expression"])
        categories = _categories(data.get("category", given.category), expressions)
    except (ValueError, KeyError, TypeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        return _unusable(f"{path.name}, line {number}", reason)
    return Asked(name, Location(str((path.parent / name).absolute())), expressions, categories)


def _unusable(place: str, reason: str) -> Asked:
    """A line that cannot be asked, as one row with its error."""
    return Asked(place, None, ("",), error=f"{place}: {reason}")


def _texts(value: Any) -> tuple[str, ...]:
    """A text or a list of texts. Raises TypeError for anything else."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise TypeError("the expression is not a text or a list of texts")
    return tuple(texts)


def _categories(value: Any, expressions: tuple[str, ...]) -> tuple[str, ...] | None:
    """One name for each expression, from one for all or a list. Raises TypeError."""
    if value is None:
        return None
    names = [value] * len(expressions) if isinstance(value, str) else value
    fits = isinstance(names, list) and len(names) == len(expressions)
    if not fits or not all(isinstance(name, str) for name in names):
        raise TypeError("the category is not a name, or one name per expression")
    return tuple(names)


def _parquet(path: Path, given: Given) -> Iterator[Asked]:
    """Columns image (a path, bytes, or a struct with bytes), expression, and maybe category.

    An expression is a text or a list; without the column every image is asked what was given.
    Bytes stay in the file until a worker wants them.
    """
    try:
        with pq.ParquetFile(path) as table:
            schema = table.schema_arrow
            asks = "expression" in schema.names or given.expressions
            if "image" not in schema.names or not asks:
                raise RisError(
                    f"{path} needs the columns image and expression, it has"
                    f" {', '.join(schema.names)}"
                )

            kind = schema.field("image").type
            paths = pa.types.is_string(kind) or pa.types.is_large_string(kind)
            wanted = ["image"] if paths else []
            wanted += [name for name in ("expression", "category") if name in schema.names]
            row = 0
            for batch in table.iter_batches(columns=wanted or ["image"]):
                for data in batch.to_pylist():
                    yield _table_row(path, row, data if wanted else {}, paths, given)
                    row += 1
    except (OSError, pa.ArrowException) as error:
        raise RisError(f"{path} cannot be read: {error}") from None


def _table_row(path: Path, row: int, data: dict[str, Any], paths: bool, given: Given) -> Asked:
    """A row of a table.

    Args:
        path: The table.
        row: The row's number, from 0.
        data: Its columns that were read.
        paths: Whether the image column names files. Otherwise it has bytes, and was not read.
        given: What is asked where the row does not say.
    """
    place = f"{path.name}, row {row}"
    try:
        expressions = _texts(data["expression"]) if "expression" in data else given.expressions
        categories = _categories(data.get("category", given.category), expressions)
        name = data["image"] if paths else place
        if not isinstance(name, str):
            raise TypeError("there is no image")
    except TypeError as error:
        return _unusable(place, str(error))

    if paths:
        location = Location(str((path.parent / name).absolute()))
    else:
        location = Location(str(path.absolute()), row=row)
    return Asked(name, location, expressions, categories)


def _shard(path: Path, given: Given) -> Iterator[Asked]:
    """A web-dataset shard: members KEY.jpg with KEY.txt or KEY.json.

    The text has an expression a line; the JSON is {"expression": ..., "category": ...}.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            key, image, text = "", None, None
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                extension = extension.lower()

                # members of one key stand together: another key ends the sample
                if f"{folder}/{stem}" != key:
                    if image is not None:
                        yield _sample(path, image, text, given)
                    key, image, text = f"{folder}/{stem}", None, None

                if f".{extension}" in IMAGE_SUFFIXES:
                    image = member
                elif extension in ("txt", "json") and member.size <= _TEXT_BYTES:
                    content = tar.extractfile(member)
                    text = (extension, content.read() if content else b"")
            if image is not None:
                yield _sample(path, image, text, given)
    except (OSError, tarfile.TarError) as error:
        raise RisError(f"{path} cannot be read as an uncompressed tar file: {error}") from None


def _sample(
    path: Path, image: tarfile.TarInfo, text: tuple[str, bytes] | None, given: Given
) -> Asked:
    """A sample of a shard; text: what stands beside the image, with its extension."""
    name = f"{path.name}/{image.name}"
    expressions, category = given.expressions, given.category
    try:
        if text is not None and text[0] == "json":
            data = json.loads(text[1])
            if "expression" in data:
                expressions = _texts(data["expression"])
            category = data.get("category", category)
        elif text is not None:
            lines = text[1].decode("utf-8").splitlines()
            expressions = tuple(line for line in lines if line.strip())

        categories = _categories(category, expressions)
        if not expressions:
            raise ValueError("there is no expression")
    except (ValueError, TypeError) as error:
        return _unusable(name, str(error))

    location = Location(str(path.absolute()), image.offset_data, image.size)
    return Asked(name, location, expressions, categories)


def group_by_image(lines: Iterable[Asked]) -> list[ImageTask]:
    """One task an image, in the order of first appearance, with the rows of all its lines."""
    tasks: dict[object, ImageTask] = {}
    row = 0
    for number, line in enumerate(lines):
        # a line without an image is a task of its own
        key = line.location if line.location is not None else number
        task = tasks.get(key)
        if task is None:
            task = tasks[key] = ImageTask(line.name, line.location, [], [], [], line.error)

        task.rows += range(row, row + len(line.expressions))
        task.expressions += line.expressions
        task.categories += line.categories or (None,) * len(line.expressions)
        row += len(line.expressions)
    return list(tasks.values())
