"""Categories by name: the bundle's table, and a guess of the category from an expression's head
noun.

The guess is a rule for English noun phrases, not a parser. Of each part between commas it reads
what stands before the first preposition or relative word ("woman in red holding a dog": woman) and
takes the first thing that is named there, or of things named side by side the last ("bus driver":
driver; "man blue tie": man). Where nothing is, it refuses.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from ris.engines.errors import BundleError, ExpressionError

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
"""Before "of" these do not name the thing, what follows does: "slice of pizza"."""

_COLOURS = frozenset({"orange"})
"""Things that are colours before another word: an "orange shirt" is no orange."""

_IRREGULAR = {
    "people": "person",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "oxen": "ox",
}
_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)?|&|[,;:.!?()]")
_PUNCTUATION = frozenset(",;:.!?()")


@dataclass(frozen=True)
class Category:
    """A row of the table. thing: can be guessed; synonyms: other words for it, singular."""

    name: str
    thing: bool
    synonyms: tuple[str, ...]


@dataclass(frozen=True)
class Guess:
    """A category, and the word of the expression that it was guessed from, None where it was
    given.
    """

    category: str
    word: str | None


class CategoryTable:
    """The category variant's names in the order of its feature rows."""

    def __init__(self, rows: tuple[Category, ...]) -> None:
        self.names = [row.name for row in rows]
        self._index = {name: i for i, name in enumerate(self.names)}
        phrases: dict[tuple[str, ...], str] = {}
        for row in rows:
            for phrase in (row.name, *row.synonyms) if row.thing else ():
                phrases.setdefault(tuple(phrase.split()), row.name)
        phrases |= {
            tuple(row.name.split()): row.name for row in rows if row.thing
        }  # a name beats a synonym
        self._phrases = phrases
        self._longest = max(map(len, phrases), default=1)

    @classmethod
    def read(cls, path: Path) -> CategoryTable:
        """From categories.json: a list of {"name": text, "thing": bool, "synonyms": [text]}. Raises
        BundleError.
        """
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
            rows = tuple(
                Category(row["name"], row["thing"], tuple(row["synonyms"])) for row in data
            )
        except (OSError, ValueError, TypeError, KeyError):
            raise BundleError(
                f"{path} is not a list of categories that can be read; export the bundle again"
            ) from None
        return cls(rows)

    def row(self, name: str) -> int:
        """The feature row of a known category."""
        return self._index[name]

    def known(self, name: str) -> Guess:
        """A category as it was given. Raises ExpressionError with the nearest names where there is
        no such category.
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
        """The category of what the expression names. Raises ExpressionError where no word of it is
        known.
        """
        seen: list[str] = []
        for part in _parts(expression):
            head, rest = _split_head(part)
            heads = [head]
            if head and rest[:1] == ["of"] and any(form in _PARTS for form in _singulars(head[-1])):
                heads.insert(0, _split_head(_without_determiners(rest[1:]))[0])
            for words in heads:
                if found := self._head(words):
                    return found
                seen += words
        near = self._nearest(seen) or self.names[:3]
        raise ExpressionError(
            f"no category could be guessed from {expression[:80]!r}: it names no thing that is"
            f" known at its head; give --category yourself, the nearest are {', '.join(near)}"
        )

    def _head(self, words: list[str]) -> Guess | None:
        """The first thing that is named, or the last of those that follow each other without a
        gap.
        """
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
                *before, last = words[at : at + length]
                name = next(
                    (n for s in _singulars(last) if (n := self._phrases.get((*before, s)))), None
                )
                if name is not None:
                    yield at, Guess(name, " ".join(words[at : at + length])), at + length
                    at += length
                    break
            else:
                at += 1

    def _nearest(self, words: list[str]) -> list[str]:
        """Up to three categories with a name or synonym that is spelled like one of the words."""
        spelled = {" ".join(phrase): name for phrase, name in self._phrases.items()} | {
            n: n for n in self.names
        }
        near = [
            match
            for word in words
            for match in get_close_matches(word.lower(), spelled, n=3, cutoff=0.7)
        ]
        return list(dict.fromkeys(spelled[match] for match in near))[:3]


def _parts(expression: str) -> Iterator[list[str]]:
    """The lower-case words between punctuation marks, without leading determiners and without
    possessives.
    """
    text = unicodedata.normalize("NFKC", expression).lower()
    part: list[str] = []
    for word in [*_WORD.findall(text), "."]:
        if word not in _PUNCTUATION:
            part.append(word)
            continue
        words = _without_determiners(part)
        if words:
            yield words
        part = []


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
    """The word itself and what it may be the plural of; only known words count, so a wrong guess
    does no harm.
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
