"""What a batch run is asked: images, folders and JSON lines become a list of (image,
expressions).
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ris.engines.errors import ExpressionError, ImageError, RisError
from ris.runtime.image import IMAGE_SUFFIXES


@dataclass(frozen=True)
class Request:
    """One image and what to ask of it; `categories` only for models that ask by category."""

    image: Path
    expressions: tuple[str, ...]
    categories: tuple[str, ...] | None = None


def looks_like_image(argument: str) -> bool:
    """Whether a command-line argument means an image, a folder of images or a JSONL file, not an
    expression.
    """
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

    A JSONL file brings its own expressions; images and folders are asked `expressions`. Raises
    ImageError and ExpressionError where there is nothing to do.
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
        images = _images_below(path) if path.is_dir() else [path]
        requests += [
            Request(i, tuple(expressions), tuple(categories) if categories else None)
            for i in images
        ]
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
    """One request a line: {"image": path, "expression": text or list, "category": name or list
    (optional)}.

    Relative image paths start at the file's own folder. Lines about one image are joined where they
    follow each other, so that it is encoded once. Raises RisError naming the line.
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
        last = requests[-1] if requests else None
        if (
            last
            and last.image == request.image
            and (last.categories is None) == (request.categories is None)
        ):
            joined = (
                None if last.categories is None else last.categories + (request.categories or ())
            )
            requests[-1] = Request(last.image, last.expressions + request.expressions, joined)
        else:
            requests.append(request)
    if not requests:
        raise RisError(f"{path} has no requests in it")
    return requests


def _parse_line(line: str, where: str, folder: Path) -> Request:
    try:
        data = json.loads(line)
    except ValueError as error:
        raise RisError(f"{where} is not JSON: {error}") from None
    if not isinstance(data, dict) or not isinstance(data.get("image"), str):
        raise RisError(f'{where} needs {{"image": path, "expression": text}}')
    unknown = sorted(set(data) - {"image", "expression", "category"})
    if unknown:
        raise RisError(f"{where} has unknown fields: {', '.join(unknown)}")
    expressions = _texts(data.get("expression"), f'{where}: "expression"')
    categories = _texts(data["category"], f'{where}: "category"') if "category" in data else None
    return Request(folder / data["image"], expressions, categories)


def _texts(value: object, where: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise RisError(f"{where} must be text or a list of texts")
    return tuple(texts)
