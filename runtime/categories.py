"""Categories by name: the bundle's table, and a guess from an expression's head noun.

The guess is a rule for English noun phrases, not a parser. It looks at each part between commas,
and in it at the words before the first preposition or relative word ("woman in red holding a dog":
woman). It takes the first thing that they name; of things that follow each other, the last ("bus
driver": driver; "man blue tie": man). Where they name nothing, it refuses.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated

import numpy as np

from ris.engines.errors import BundleError, ExpressionError
from ris.engines.text import one_line
from ris.runtime.from_json import Rule, build, read_json
from ris.runtime.interpolate import Float

AUTO = "auto"
"""In place of a category's name: guess it."""


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_DETERMINERS = _words(
    """a an the this that these those my your his her its our their some any all both each every no
    another other"""
)
_STOPS = _words(
    """on in at with next from of to that who whom whose which where when while whilst near nearby
    by beside besides behind under underneath over above below beneath between among amid inside
    outside into onto off out for without within against along around across through toward towards
    facing beyond before after like as than w is are was were has have had wearing holding"""
)
_PARTS = _words(
    """piece slice half part pair group bunch bundle set stack pile herd flock portion bit chunk
    kind type lot couple one two three end back front top bottom side edge corner tip head face tail
    body crowd row line"""
)
"""Before "of", these do not name the thing, but the words after it do: "slice of pizza"."""

_COLOURS = frozenset({"orange"})
"""Things that are colours before another word: an "orange shirt" is no orange."""

_IRREGULAR = {
    "people": "person",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "oxen": "ox",
}
# "man's" is one word, which names nothing: a "man's hat" is no man
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|&|[,;:.!?()]")
_PUNCTUATION = frozenset(",;:.!?()")


@dataclass(frozen=True)
class Category:
    """A row of the table."""

    name: str
    """The name that a user gives."""

    thing: bool
    """Whether it can be guessed; stuff such as sky cannot."""

    synonyms: tuple[str, ...]
    """Other words for it, lower case and singular."""


@dataclass(frozen=True)
class Guess:
    """The category that an expression is asked with."""

    category: str
    """Its name in the table."""

    word: str | None
    """The expression's word that it was guessed from, None where it was given."""


_ROWS = Annotated[tuple[Category, ...], Rule(lambda rows: len(rows) > 0, "a list with rows")]


class CategoryTable:
    """The categories of a model that asks by category, in the order of its feature rows."""

    names: list[str]
    """Their names."""

    def __init__(self, rows: tuple[Category, ...]) -> None:
        self.names = [row.name for row in rows]
        self._index = {name: i for i, name in enumerate(self.names)}

        things = [row for row in rows if row.thing]
        phrases: dict[tuple[str, ...], str] = {}
        for row in things:
            for phrase in (row.name, *row.synonyms):
                phrases.setdefault(tuple(phrase.split()), row.name)
        # a name beats another category's synonym
        phrases |= {tuple(row.name.split()): row.name for row in things}
        self._phrases = phrases
        self._longest = max(map(len, phrases), default=1)

    @classmethod
    def read(cls, path: Path) -> CategoryTable:
        """From categories.json: a list of {"name": text, "thing": bool, "synonyms": [text]}.

        Raises:
            BundleError: Where the file is not such a list.
        """
        rows, problems = build(_ROWS, read_json(path), "the table")
        if problems:
            raise BundleError(
                f"{path} is not a list of categories that can be read: {problems[0]}; export the"
                " bundle again"
            )
        return cls(rows)

    def row(self, name: str) -> int:
        """The feature row of a known category."""
        return self._index[name]

    def known(self, name: str) -> Guess:
        """A category as it was given.

        Raises:
            ExpressionError: Where there is no such category; it says the nearest names.
        """
        if name in self._index:
            return Guess(name, None)
        found = list(self._matches(re.findall(r"[^\W_]+", name.lower())))
        near = [found[0][1].category] if found else self._nearest([name])
        near = near or get_close_matches(name, self.names, n=3, cutoff=0.3)
        raise ExpressionError(
            f"there is no category {name!r}; the nearest are {', '.join(near or self.names[:3])}"
        )

    def guess(self, expression: str) -> Guess:
        """The category of what the expression names.

        Raises:
            ExpressionError: Where no word at its head is known; it says the nearest names.
        """
        seen: list[str] = []
        for part in _parts(expression):
            for words in _heads(part):
                if found := self._head(words):
                    return found
                seen += words
        near = self._nearest(seen) or self.names[:3]
        raise ExpressionError(
            f"no category could be guessed from {expression[:80]!r}: it names no thing that is"
            f" known at its head; give --category yourself, the nearest are {', '.join(near)}"
        )

    def _head(self, words: list[str]) -> Guess | None:
        """The first thing that is named, or the last of those that follow it without a gap."""
        guess, expected = None, 0
        for start, thing, end in self._matches(words):
            if guess and start != expected:
                break
            if thing.word in _COLOURS and end < len(words):
                continue
            guess, expected = thing, end
        return guess

    def _matches(self, words: list[str]) -> Iterator[tuple[int, Guess, int]]:
        """Things from left to right, the longest name first: start, what, and end of each."""
        at = 0
        while at < len(words):
            for length in range(min(self._longest, len(words) - at), 0, -1):
                phrase = words[at : at + length]
                if name := self._named(phrase):
                    yield at, Guess(name, " ".join(phrase)), at + length
                    at += length
                    break
            else:
                at += 1

    def _named(self, phrase: list[str]) -> str | None:
        """The category that exactly these words name, the last of them in any number."""
        *before, last = phrase
        known = (self._phrases.get((*before, singular)) for singular in _singulars(last))
        return next((name for name in known if name), None)

    def _nearest(self, words: list[str]) -> list[str]:
        """Up to three categories with a name or synonym that is spelled like one of the words."""
        spelled = {" ".join(phrase): name for phrase, name in self._phrases.items()}
        spelled |= {name: name for name in self.names}
        near: list[str] = []
        for word in words:
            near += get_close_matches(word.lower(), spelled, n=3, cutoff=0.7)
        return list(dict.fromkeys(spelled[match] for match in near))[:3]


def read_table(names: Path, features: Path) -> tuple[CategoryTable, Float]:
    """A bundle's categories, and their text features, float32 [categories, width].

    Raises:
        BundleError: Where a file is damaged, or the two do not belong together.
    """
    table = CategoryTable.read(names)
    try:
        with features.open("rb") as file:
            found = np.lib.format.read_array(file, allow_pickle=False)
    except Exception as error:  # whatever numpy raises for a damaged header
        raise BundleError(
            f"{features} is not an array that can be read ({one_line(str(error))[:200]}); export"
            " the bundle again"
        ) from None
    rows = len(table.names)
    fits = found.dtype == np.float32 and found.ndim == 2 and found.shape[0] == rows and found.size
    if not fits or not np.isfinite(found).all():
        raise BundleError(
            f"{features} is {found.dtype} {list(found.shape)}, and should be float32 [{rows},"
            " width] of finite numbers; export the bundle again"
        )
    return table, found


def categories_to_ask(
    table: CategoryTable | None, expressions: Sequence[str], categories: Sequence[str] | None
) -> list[Guess | None]:
    """A known category for each expression, guessed for "auto"; None for each without a table.

    Raises:
        ExpressionError: Where categories are missing, unknown or not asked for.
    """
    if table is None:
        if any(name != AUTO for name in categories or ()):
            raise ExpressionError("this model does not ask by category; leave the category out")
        return [None] * len(expressions)

    if categories is None:
        raise ExpressionError(
            "this model asks by category: name each object's COCO category too (--category"
            " person), or have it guessed (--category auto)"
        )
    if len(categories) != len(expressions):
        raise ExpressionError(
            f"{len(expressions)} expressions need as many categories, got {len(categories)}"
        )
    return [
        table.guess(text) if name == AUTO else table.known(name)
        for name, text in zip(categories, expressions, strict=True)
    ]


def _parts(expression: str) -> Iterator[list[str]]:
    """The lower-case words between punctuation marks, without leading determiners."""
    text = unicodedata.normalize("NFKC", expression).lower()
    part: list[str] = []
    for word in [*_WORD.findall(text), "."]:  # the full stop ends the last part
        if word not in _PUNCTUATION:
            part.append(word)
            continue
        words = _without_determiners(part)
        if words:
            yield words
        part = []


def _heads(part: list[str]) -> list[list[str]]:
    """The words that may name the thing, the likelier first: "slice of pizza" is of pizza."""
    head, rest = _split_head(part)
    if head and rest[:1] == ["of"] and any(form in _PARTS for form in _singulars(head[-1])):
        whole, _ = _split_head(_without_determiners(rest[1:]))
        return [whole, head]
    return [head]


def _without_determiners(words: list[str]) -> list[str]:
    at = 0
    while at < len(words) and words[at] in _DETERMINERS:
        at += 1
    return words[at:]


def _split_head(words: list[str]) -> tuple[list[str], list[str]]:
    """What stands before the first preposition or relative word, and the rest."""
    at = next((i for i, word in enumerate(words) if word in _STOPS), len(words))
    return words[:at], words[at:]


def _singulars(word: str) -> Iterator[str]:
    """The word itself, and what it may be the plural of.

    Only words that are in the table count, so a wrong guess does no harm.
    """
    yield word
    if word in _IRREGULAR:
        yield _IRREGULAR[word]
    if word.endswith("men"):
        yield word[:-3] + "man"
    if word.endswith("ies"):
        yield word[:-3] + "y"
    if word.endswith("ves"):
        yield word[:-3] + "f"
        yield word[:-3] + "fe"
    if word.endswith("es"):
        yield word[:-2]
    if word.endswith("s") and not word.endswith("ss"):
        yield word[:-1]
