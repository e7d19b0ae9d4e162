"""A line of a batch's input: an image and what is asked of it, or the error in their place."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ris.engines.text import echoed

_LONGEST = 100_000
"""Characters of an expression or category that a plan takes; no model is asked so many."""


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


def unusable(place: str, reason: str) -> Asked:
    """A line that cannot be asked, as one row with its error."""
    return Asked(place, None, ("",), error=f"{echoed(place)}: {reason}")


def texts_of(value: Any) -> tuple[str, ...]:
    """A text or a list of texts. Raises TypeError for anything else."""
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise TypeError("the expression is not a text or a list of texts")
    return _short(texts, "expression")


def categories_of(value: Any, expressions: tuple[str, ...]) -> tuple[str, ...] | None:
    """One name for each expression, from one for all or a list. Raises TypeError."""
    if value is None:
        return None
    names = [value] * len(expressions) if isinstance(value, str) else value
    fits = isinstance(names, list) and len(names) == len(expressions)
    if not fits or not all(isinstance(name, str) for name in names):
        raise TypeError("the category is not a name, or one name per expression")
    return _short(names, "category")


def _short(texts: list[str], what: str) -> tuple[str, ...]:
    """The texts, none of which fills a plan by itself. Raises TypeError."""
    longest = max(map(len, texts), default=0)
    if longest > _LONGEST:
        raise TypeError(f"the {what} has {longest} characters")
    return tuple(texts)


def own_category(data: dict[str, Any], given: Given) -> Any:
    """The category that a line, row or sample names itself, or else the one that was given."""
    own = data.get("category")
    return given.category if own is None else own
