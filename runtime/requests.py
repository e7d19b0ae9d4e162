"""What a batch run is asked: images, folders and JSON lines become a list of requests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ris.engines.errors import ExpressionError, ImageError, RisError
from ris.runtime.image import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Request:
    """One image and what to ask about it."""

    image: Path
    """The image's file."""

    expressions: tuple[str, ...]
    """What to find."""

    categories: tuple[str, ...] | None = None
    """A category for each expression; None for models that do not ask by category."""


def looks_like_image(argument: str) -> bool:
    """Whether an argument is an image, a folder or a JSONL file; otherwise it is an expression."""
    path = Path(argument)
    if path.suffix.lower() in IMAGE_SUFFIXES | {".jsonl"}:
        return True
    try:
        return bool(argument) and path.exists()
    except (OSError, ValueError):  # too long for a file name, or with a null byte in it
        return False


def collect(
    sources: Sequence[str], expressions: Sequence[str], categories: Sequence[str] | None
) -> list[Request]:
    """The requests of images, folders and JSONL files, in order.

    A JSONL file brings its own expressions and categories; images and folders are asked those that
    are given.

    Raises:
        ExpressionError: Where there is an image and nothing to find in it.
        ImageError: Where there is no image.
        RisError: Where a JSONL file cannot be read.
    """
    requests: list[Request] = []
    for source in sources:
        path = Path(source)
        if path.suffix.lower() == ".jsonl":
            requests += read_jsonl(path)
            continue
        if not expressions:
            raise ExpressionError(
                f'nothing to look for in {path}: add an expression, such as "left man"'
            )
        asked = tuple(expressions), tuple(categories) if categories else None
        images = _images_below(path) if path.is_dir() else [path]
        requests += [Request(image, *asked) for image in images]
    if not requests:
        raise ImageError("no image was given")
    return requests


def _images_below(folder: Path) -> list[Path]:
    images = sorted(
        p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file()
    )
    if not images:
        raise ImageError(f"{folder} has no images ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return images


def read_jsonl(path: Path) -> list[Request]:
    """The requests of a file of JSON lines.

    A line is {"image": path, "expression": text or list, "category": name or list}; the category
    may be left out. Relative paths start at the file's own folder. Lines that follow each other and
    are about one image become one request, so that it is encoded once.

    Raises:
        RisError: Where the file cannot be read, or a line is not like this; it names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RisError(f"{path} cannot be read: {error}") from None

    requests: list[Request] = []
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        request = _parse_line(line, f"{path}, line {number}", path.parent)
        if requests and _can_join(requests[-1], request):
            requests[-1] = _joined(requests[-1], request)
        else:
            requests.append(request)
    if not requests:
        raise RisError(f"{path} has no requests in it")
    return requests


def _can_join(a: Request, b: Request) -> bool:
    return a.image == b.image and (a.categories is None) == (b.categories is None)


def _joined(a: Request, b: Request) -> Request:
    categories = None if a.categories is None else a.categories + (b.categories or ())
    return Request(a.image, a.expressions + b.expressions, categories)


def _parse_line(line: str, where: str, folder: Path) -> Request:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise RisError(f"{where} is not JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("image"), str):
        raise RisError(f'{where} needs {{"image": path, "expression": text}}')
    if unknown := sorted(set(data) - {"image", "expression", "category"}):
        raise RisError(f"{where} has unknown fields: {', '.join(unknown)}")
    expressions = _texts(data.get("expression"), f'{where}: "expression"')
    categories = _texts(data["category"], f'{where}: "category"') if "category" in data else None
    return Request(folder / data["image"], expressions, categories)


def _texts(value: object, where: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise RisError(f"{where} must be text or a list of texts")
    return tuple(texts)
