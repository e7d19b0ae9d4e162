"""What a batch is made of: folders, JSONL, Parquet and web-dataset shards become images with what
is asked of each.

Nothing but names and expressions is read here; the images are read by the workers.
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
class Location:
    """Where an image's bytes are: a file; offset and size: a part of it (a shard); row: a row of a
    Parquet file.
    """

    file: str
    offset: int | None = None
    size: int | None = None
    row: int | None = None


@dataclass(frozen=True)
class Asked:
    """A line of the input: an image and what is asked of it, or the error that takes their place.

    name: the image as the input calls it, the answers' `image`.
    """

    name: str
    location: Location | None
    expressions: tuple[str, ...]
    categories: tuple[str, ...] | None = None
    error: str | None = None


@dataclass
class ImageTask:
    """An image with all its rows: `rows` are the numbers of image-expression pairs in the order of
    the input.
    """

    name: str
    location: Location | None
    rows: list[int]
    expressions: list[str]
    categories: list[str | None]
    error: str | None = None


def read_sources(
    sources: Sequence[Path], expressions: Sequence[str], category: str | None
) -> Iterator[Asked]:
    """The lines of all sources, in order. Raises RisError for a source that cannot be read at
    all.
    """
    categories = None if category is None else (category,) * len(expressions)
    for source in sources:
        suffix = source.suffix.lower()
        if not source.exists():
            raise ImageError(f"{source}: no such file or folder")
        if source.is_dir():
            images = images_below(source)
            if not images:
                raise ImageError(f"{source} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
            if not expressions:
                raise ExpressionError(
                    f'nothing to look for in {source}: add -e, such as -e "left man"'
                )
            for image in images:
                name = str(image.relative_to(source))
                yield Asked(name, Location(str(image.absolute())), tuple(expressions), categories)
        elif suffix == ".jsonl":
            yield from _jsonl(source, category)
        elif suffix == ".parquet":
            yield from _parquet(source, tuple(expressions), category)
        elif suffix == ".tar":
            yield from _shard(source, tuple(expressions), category)
        else:
            raise RisError(
                f"{source} is not a folder, .jsonl, .parquet or .tar (uncompressed) file"
            )


def images_below(folder: Path) -> list[Path]:
    """The image files of a folder and those in it, by name."""
    return sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
    )


def _jsonl(path: Path, category: str | None) -> Iterator[Asked]:
    """Lines {"image", "expression", "category"}, as ris-infer and ris-eval read them; other fields
    are left alone.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _line(path, number, line, category)
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error.strerror}") from None


def _line(path: Path, number: int, line: str, category: str | None) -> Asked:
    try:
        data = json.loads(line)
        name = data["image"]
        if not isinstance(name, str):
            raise TypeError("the image is not a name")
        expressions = _texts(data["expression"])
        categories = _categories(data.get("category", category), expressions)
    except (ValueError, KeyError, TypeError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        return Asked(
            f"{path.name}, line {number}", None, ("",), error=f"{path.name}, line {number}: {said}"
        )
    return Asked(name, Location(str((path.parent / name).absolute())), expressions, categories)


def _texts(value: Any) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise TypeError("the expression is not a text or a list of texts")
    return tuple(texts)


def _categories(value: Any, expressions: tuple[str, ...]) -> tuple[str, ...] | None:
    if value is None:
        return None
    names = [value] * len(expressions) if isinstance(value, str) else value
    if (
        not isinstance(names, list)
        or len(names) != len(expressions)
        or not all(isinstance(n, str) for n in names)
    ):
        raise TypeError("the category is not a name, or one name per expression")
    return tuple(names)


def _parquet(path: Path, given: tuple[str, ...], category: str | None) -> Iterator[Asked]:
    """Columns image (a path, bytes, or a struct with bytes), expression (text or list), and maybe
    category.

    Without an expression column every image is asked what was given. Bytes stay in the file until a
    worker wants them.
    """
    try:
        with pq.ParquetFile(path) as table:
            schema = table.schema_arrow
            if "image" not in schema.names or ("expression" not in schema.names and not given):
                raise RisError(
                    f"{path} needs the columns image and expression, it has"
                    f" {', '.join(schema.names)}"
                )
            paths = pa.types.is_string(schema.field("image").type) or pa.types.is_large_string(
                schema.field("image").type
            )
            wanted = ["image"] if paths else []
            wanted += [name for name in ("expression", "category") if name in schema.names]
            row = 0
            for batch in table.iter_batches(columns=wanted or ["image"]):
                for data in batch.to_pylist():
                    yield _table_row(path, row, data if wanted else {}, paths, given, category)
                    row += 1
    except (OSError, pa.ArrowException) as error:
        raise RisError(f"{path} cannot be read: {error}") from None


def _table_row(
    path: Path,
    row: int,
    data: dict[str, Any],
    paths: bool,
    given: tuple[str, ...],
    category: str | None,
) -> Asked:
    place = f"{path.name}, row {row}"
    try:
        expressions = _texts(data["expression"]) if "expression" in data else given
        categories = _categories(data.get("category", category), expressions)
        name = data["image"] if paths else place
        if not isinstance(name, str):
            raise TypeError("there is no image")
    except TypeError as error:
        return Asked(place, None, ("",), error=f"{place}: {error}")
    file = (path.parent / name) if paths else path
    return Asked(
        name, Location(str(file.absolute()), row=None if paths else row), expressions, categories
    )


def _shard(path: Path, given: tuple[str, ...], category: str | None) -> Iterator[Asked]:
    """A web-dataset shard: members KEY.jpg with KEY.txt (an expression a line) or KEY.json
    ({"expression": ...}).
    """
    try:
        with tarfile.open(path, "r:") as tar:
            key, image, text = "", None, None
            for member in tar:
                if not member.isfile():
                    continue
                folder, _, base = member.name.rpartition("/")
                stem, _, extension = base.partition(".")
                if f"{folder}/{stem}" != key:
                    if image is not None:
                        yield _sample(path, image, text, given, category)
                    key, image, text = f"{folder}/{stem}", None, None
                if f".{extension.lower()}" in IMAGE_SUFFIXES:
                    image = member
                elif extension.lower() in ("txt", "json") and member.size <= _TEXT_BYTES:
                    content = tar.extractfile(member)
                    text = (extension.lower(), content.read() if content else b"")
            if image is not None:
                yield _sample(path, image, text, given, category)
    except (OSError, tarfile.TarError) as error:
        raise RisError(f"{path} cannot be read as an uncompressed tar file: {error}") from None


def _sample(
    path: Path,
    image: tarfile.TarInfo,
    text: tuple[str, bytes] | None,
    given: tuple[str, ...],
    category: str | None,
) -> Asked:
    name = f"{path.name}/{image.name}"
    try:
        expressions = given
        if text is not None and text[0] == "json":
            data = json.loads(text[1])
            if "expression" in data:
                expressions = _texts(data["expression"])
            category = data.get("category", category)
        elif text is not None:
            expressions = tuple(
                line for line in text[1].decode("utf-8").splitlines() if line.strip()
            )
        categories = _categories(category, expressions)
        if not expressions:
            raise ValueError("there is no expression")
    except (ValueError, TypeError) as error:
        return Asked(name, None, ("",), error=f"{name}: {error}")
    return Asked(
        name, Location(str(path.absolute()), image.offset_data, image.size), expressions, categories
    )


def group_by_image(lines: Iterable[Asked]) -> list[ImageTask]:
    """One task an image, in the order of first appearance, with the pairs of all lines that name
    it.
    """
    tasks: dict[object, ImageTask] = {}
    row = 0
    for number, line in enumerate(lines):
        key = line.location if line.location is not None else number
        task = tasks.get(key)
        if task is None:
            task = tasks[key] = ImageTask(line.name, line.location, [], [], [], line.error)
        task.rows += range(row, row + len(line.expressions))
        task.expressions += line.expressions
        task.categories += line.categories or (None,) * len(line.expressions)
        row += len(line.expressions)
    return list(tasks.values())
