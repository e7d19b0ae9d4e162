"""What a batch run is asked: images, folders and JSON lines become a list of requests."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ris.engines.errors import ExpressionError, RisError, Skipped, refuse
from ris.engines.text import echoed, quoted
from ris.runtime.image import IMAGE_SUFFIXES, find_images
from ris.runtime.json_lines import JsonLine, read_json_lines
from ris.runtime.text import check_expression

_FIELDS = {"image", "expression", "category"}
_MOST_NAMED = 5  # problems, in one sentence


@dataclass(frozen=True)
class Request:
    """One image and what to ask about it."""

    image: Path
    """The image's file."""

    expressions: tuple[str, ...]
    """What to find."""

    categories: tuple[str, ...] | None = None
    """A category for each expression; None for models that do not ask by category."""

    places: tuple[str, ...] | None = None
    """Where each expression stands, such as "a.jsonl, line 3"; None: given by hand."""


def looks_like_image(argument: str) -> bool:
    """Whether an argument is an image, a folder or a JSONL file; otherwise it is an expression."""
    if Path(argument).suffix.lower() in IMAGE_SUFFIXES | {".jsonl"}:
        return True
    return bool(argument) and os.path.exists(argument)


def collect(
    sources: Sequence[str],
    expressions: Sequence[str],
    categories: Sequence[str] | None,
    skipped: Skipped = refuse,
    noted: Skipped = lambda sentence: None,
    results: Path | None = None,
) -> list[Request]:
    """The requests of images, folders and JSONL files, in order.

    A JSONL file brings its own expressions and categories; images and folders are asked those that
    are given.

    Args:
        sources: The images, folders and JSONL files.
        expressions: What images and folders are asked.
        categories: A category for each of these expressions, or one for all; None: none.
        skipped: Gets a sentence for each source, line and expression that cannot be used.
        noted: Gets a sentence for what folders have that looks like a picture and is not taken.
        results: The folder of the results, which is passed over where it is below a source.

    Raises:
        RisError: Where nothing is left to do, and by default in place of leaving something out.
    """
    by_hand = [source for source in sources if not _is_jsonl(source)]
    problems: list[str] = []
    asked: tuple[_Asked, ...] = ()
    if by_hand:
        asked = _asked_by_hand(by_hand[0], expressions, categories, problems.append)

    requests: list[Request] = []
    for source in sources:
        try:
            if _is_jsonl(source):
                requests += read_jsonl(Path(source), problems.append)
            else:
                images = _images(Path(source), noted, results)
                requests += [_request(image, asked) for image in images]
        except RisError as error:
            problems.append(str(error))
    if not requests:
        raise RisError(together(problems) or "no image was given")
    for problem in problems:
        skipped(problem)
    return requests


def _is_jsonl(source: str) -> bool:
    return Path(source).suffix.lower() == ".jsonl"


@dataclass(frozen=True)
class _Asked:
    """An expression that can be asked."""

    expression: str
    """What to find."""

    category: str | None
    """The category to ask it with; None: none was named."""

    place: str | None
    """Where it stands in a file; None: given by hand."""


def _request(image: Path, asked: Sequence[_Asked]) -> Request:
    """These questions about an image; all of them have a category, or none has."""
    categories = tuple(one.category for one in asked if one.category is not None)
    places = tuple(one.place for one in asked if one.place is not None)
    expressions = tuple(one.expression for one in asked)
    return Request(image, expressions, categories or None, places or None)


def _asked_by_hand(
    source: str,
    expressions: Sequence[str],
    categories: Sequence[str] | None,
    skipped: Skipped,
) -> tuple[_Asked, ...]:
    """What images and folders are asked, `source` the first of them.

    Raises ExpressionError where nothing can be asked.
    """
    if not expressions:
        raise ExpressionError(
            f'nothing to look for in {source}: add an expression, such as "left man"'
        )
    names = _categories(tuple(categories or ()), len(expressions))
    asked, problems = [], []
    for number, (text, name) in enumerate(zip(expressions, names, strict=True), 1):
        try:
            check_expression(text)
        except ExpressionError as error:
            problems.append(f"expression {number}: {error}" if len(expressions) > 1 else str(error))
            continue
        asked.append(_Asked(text, name, None))
    if not asked:
        raise ExpressionError(together(problems))
    for problem in problems:
        skipped(problem)
    return tuple(asked)


def _categories(names: Sequence[str], expressions: int) -> Sequence[str | None]:
    """A category for each expression; a single one is for all of them, none stands for None."""
    if len(names) <= 1:
        return (names[0] if names else None,) * expressions
    if len(names) != expressions:
        raise ExpressionError(
            f"{expressions} expressions need as many categories, got {len(names)}"
        )
    return names


def _images(path: Path, noted: Skipped, results: Path | None) -> Sequence[Path]:
    """The image itself, or those of a folder."""
    if not os.path.isdir(path):
        return [path]
    found = find_images(path, results)
    for note in found.notes():
        noted(note)
    return found.images


def together(problems: Sequence[str]) -> str:
    """Problems in one sentence; of many, the first."""
    more = len(problems) - _MOST_NAMED
    rest = [f"and {more} more"] if more > 0 else []
    return "; ".join([*problems[:_MOST_NAMED], *rest])


def read_jsonl(path: Path, skipped: Skipped = refuse) -> list[Request]:
    """The requests of a file of JSON lines.

    A line is {"image": path, "expression": text or list, "category": name or list}; the category
    may be left out. Relative paths start at the file's own folder. Lines that follow each other and
    are about one image become one request, so that it is encoded once.

    Args:
        path: The file.
        skipped: Gets a sentence for each line, and each expression of a line, that cannot be used.

    Raises:
        RisError: Where the file cannot be read or has no lines, and by default in place of leaving
            something out.
    """
    requests: list[Request] = []
    empty = True
    for line in read_json_lines(path):
        empty = False
        place = f"{path}, line {line.number}"
        try:
            request = _parsed(line, place, path.parent, skipped)
        except RisError as error:
            skipped(f"{place}: {error}")
            continue
        if request is None:
            continue
        if requests and _can_join(requests[-1], request):
            requests[-1] = _joined(requests[-1], request)
        else:
            requests.append(request)
    if empty:
        raise RisError(f"{path} has no requests in it")
    return requests


def _can_join(a: Request, b: Request) -> bool:
    return a.image == b.image and (a.categories is None) == (b.categories is None)


def _joined(a: Request, b: Request) -> Request:
    categories = None if a.categories is None else a.categories + (b.categories or ())
    places = (a.places or ()) + (b.places or ())
    return Request(a.image, a.expressions + b.expressions, categories, places)


def _parsed(line: JsonLine, place: str, folder: Path, skipped: Skipped) -> Request | None:
    """The request of a line, without what cannot be asked; None where nothing is left.

    Raises RisError for a line of another form; the place is not in its text.
    """
    if line.problem:
        raise RisError(line.problem)
    data = line.value
    if not isinstance(data, dict) or not isinstance(data.get("image"), str) or not data["image"]:
        raise RisError('not of the form {"image": path, "expression": text}')
    if unknown := sorted(set(data) - _FIELDS):
        raise RisError(f"unknown fields: {echoed(', '.join(map(quoted, unknown)))}")
    texts = _texts(data.get("expression"), "expression")
    given = _texts(data["category"], "category") if data.get("category") is not None else ()
    names = _categories(given, len(texts))
    asked = []
    for text, name in zip(texts, names, strict=True):
        try:
            check_expression(text)
        except ExpressionError as error:
            skipped(f"{place}: {error}")
            continue
        asked.append(_Asked(text, name, place))
    return _request(folder / data["image"], asked) if asked else None


def _texts(value: Any, field: str) -> tuple[str, ...]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(t, str) for t in texts):
        raise RisError(f'"{field}" must be text or a list of texts')
    return tuple(texts)
