"""Writes referring expressions about one scene, with the objects they mean.

The wording is in `phrases`, the nouns in `words`, and the rules by which an expression picks
objects in `meaning`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from ris.data.scenes import meaning, phrases
from ris.data.scenes.scene import Scene, SceneObject
from ris.data.scenes.words import NOUNS, Noun, category, covers, usable

Kind = Literal["plain", "position", "ordinal", "relation", "size", "several", "no_target"]
"""What sort of expression a sample is."""

Wanted = Kind | Literal["too_many", "unrelated"]
"""What may be asked for: a kind, or one sort of "no_target" alone. "too_many" is a number that the
scene does not reach, "unrelated" a relation to a thing that it does not show."""

Group = tuple[Noun, list[int]]
"""A noun, and the objects of the scene that it is said of."""

Rng = np.random.Generator
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


@dataclass(frozen=True)
class Sample:
    """An expression and what it means in its scene."""

    expression: str
    """The text, in lower case."""

    kind: Kind
    """What sort of expression it is."""

    targets: tuple[int, ...]
    """Indices into `Scene.objects`, ascending; empty where there is no target."""

    category: str | None
    """The COCO category nearest to the head noun; None where there is none."""

    mirrored: str | None
    """The expression with left and right swapped. None for an expression without these words, and
    where the swapped one does not clearly mean another object."""

    mirrored_targets: tuple[int, ...] = ()
    """What `mirrored` means, always something else than `targets`."""


class Writer:
    """Makes expressions about one scene, each at random.

    The order in which the methods draw random numbers must stay as it is: the same seed has to give
    the same expressions.
    """

    def __init__(self, scene: Scene, rng: Rng) -> None:
        self._scene, self._rng, self._things = scene, rng, scene.objects
        self._side = scene.image.shape[0]

        # nouns said of something here, and those said of nothing here
        self._groups: list[Group] = []
        self._absent: list[Noun] = []
        for noun in NOUNS:
            if not usable(noun, self._things):
                continue
            found = [i for i, thing in enumerate(self._things) if covers(noun, thing)]
            if found:
                self._groups.append((noun, found))
            else:
                self._absent.append(noun)

        self._makers: dict[Wanted, Callable[[], Sample | None]] = {
            "plain": self._plain,
            "position": self._position,
            "ordinal": self._ordinal,
            "relation": self._relation,
            "size": self._size,
            "several": self._several,
            "no_target": self._no_target,
            "too_many": self._too_many,
            "unrelated": self._unrelated,
        }

    def write(self, wanted: Wanted) -> Sample | None:
        """A sample of this kind, or None where the attempt leads to nothing clear in this scene."""
        return self._makers[wanted]()

    def _one_of(self, options: Sequence[str]) -> str:
        return options[int(self._rng.integers(len(options)))]

    def _weighted(self, weights: Sequence[float]) -> int:
        """An index, drawn by these weights."""
        shares = np.array(weights)
        return int(self._rng.choice(len(weights), p=shares / shares.sum()))

    def _group(self, least: int, most: int = 99) -> Group | None:
        """A noun said of `least` to `most` objects: first the objects are drawn, then the noun."""
        fitting = [(noun, found) for noun, found in self._groups if least <= len(found) <= most]
        if not fitting:
            return None

        odds: dict[tuple[int, ...], float] = {}
        for noun, found in fitting:
            # rather "man" and "apple" than "person" and "red apple"
            usual = noun.look is None and len(noun.kinds) == 1
            objects = tuple(found)
            odds[objects] = max(odds.get(objects, 0.0), 1.0 if usual else 0.45)
        chosen = list(odds)[self._weighted(list(odds.values()))]

        nouns = [noun for noun, found in fitting if tuple(found) == chosen]
        return nouns[self._weighted([noun.weight for noun in nouns])], list(chosen)

    def _objects(self, found: list[int]) -> list[SceneObject]:
        return [self._things[i] for i in found]

    def _phrase(self, form: str, noun: Noun, **words: str) -> str | None:
        """An expression of this form; None where the split has no phrasing for it."""
        options = phrases.phrasings(form, noun.one, self._scene.split)
        if not options:
            return None
        return phrases.article(self._one_of(options).format(n=noun.one, ns=noun.many, **words))

    def _sample(
        self, text: str | None, kind: Kind, targets: Sequence[int], noun: Noun
    ) -> Sample | None:
        """The sample of a text about `noun`; None where there is no text."""
        if text is None:
            return None
        return Sample(text, kind, tuple(sorted(targets)), category(noun), None)

    def _with_mirror(self, sample: Sample, found: list[int], other: int | None) -> Sample:
        """The sample with its mirrored expression, where that means another object."""
        if other is None or (found[other],) == sample.targets:
            return sample
        text = phrases.swap_sides(sample.expression)
        return replace(sample, mirrored=text, mirrored_targets=(found[other],))

    def _plain(self) -> Sample | None:
        group = self._group(1, 1)
        if group is None:
            return None
        noun, found = group
        return self._sample(self._phrase("plain", noun), "plain", found, noun)

    def _position(self) -> Sample | None:
        group = self._group(2) if self._rng.random() < 0.92 else self._group(1, 1)
        if group is None:
            return None
        noun, found = group
        things = self._objects(found)

        if len(found) == 3 and self._rng.random() < 0.3:
            which = meaning.middle(things, self._side)
            if which is None:
                return None
            return self._sample(self._phrase("middle", noun), "position", [found[which]], noun)

        form, direction, word = self._direction()
        which = meaning.extreme(things, direction, self._side)
        if which is None:
            return None
        text = self._phrase(form, noun, d=word)
        sample = self._sample(text, "position", [found[which]], noun)
        if sample is None or form != "side" or len(found) < 2:
            return sample
        other = meaning.extreme(things, _OPPOSITE[direction], self._side)
        return self._with_mirror(sample, found, other)

    def _direction(self) -> tuple[str, str, str]:
        """Form, direction, and the word for it."""
        roll = self._rng.random()
        if roll < 0.62:
            word = self._one_of(("left", "right"))
            return "side", word, word
        form, table = ("level", phrases.LEVELS) if roll < 0.88 else ("upper", phrases.UPPERS)
        word = self._one_of(tuple(table))
        return form, table[word], word

    def _ordinal(self) -> Sample | None:
        group = self._group(2)
        if group is None:
            return None
        noun, found = group
        number = 1 + int(self._rng.integers(min(len(found), len(phrases.ORDINALS))))
        # left and right three times as often as top and bottom
        directions = ("left", "right", "left", "right", "left", "right", "top", "bottom")
        direction = self._one_of(directions)

        things = self._objects(found)
        which = meaning.nth(things, number, direction, self._side)
        if which is None:
            return None
        text = self._phrase("ordinal", noun, o=phrases.ORDINALS[number - 1], d=direction)
        sample = self._sample(text, "ordinal", [found[which]], noun)
        if sample is None or direction not in ("left", "right"):
            return sample
        other = meaning.nth(things, number, _OPPOSITE[direction], self._side)
        return self._with_mirror(sample, found, other)

    def _relation(self) -> Sample | None:
        group = self._group(2) if self._rng.random() < 0.6 else self._group(1)
        anchor = self._group(1, 1)
        if group is None or anchor is None or set(group[0].kinds) & set(anchor[0].kinds):
            return None
        noun, found = group
        other, (place,) = anchor

        # "beside" holds least often, so it is tried more often
        relation = self._one_of((*phrases.RELATIONS, "beside", "beside", "beside"))
        things = self._objects(found)
        which = meaning.related(things, self._things[place], relation, self._side)
        if which is None:
            return None
        words = self._one_of(phrases.RELATIONS[relation])
        text = self._phrase("relation", noun, r=words, m=other.one)
        return self._sample(text, "relation", [found[which]], noun)

    def _size(self) -> Sample | None:
        group = self._group(2)
        if group is None:
            return None
        noun, found = group
        large = bool(self._rng.random() < 0.5)
        which = meaning.by_size(self._objects(found), large)
        if which is None:
            return None
        text = self._phrase("size", noun, z=self._size_word(large, len(found)))
        return self._sample(text, "size", [found[which]], noun)

    def _size_word(self, large: bool, count: int) -> str:
        of_two = count == 2 and self._rng.random() < 0.3
        if large:
            return self._one_of(phrases.LARGER if of_two else phrases.LARGE)
        return self._one_of(phrases.SMALLER if of_two else phrases.SMALL)

    def _several(self) -> Sample | None:
        if self._rng.random() < 0.25:
            return self._pair()
        group = self._group(2)
        if group is None:
            return None
        noun, found = group
        form = "all"
        if self._rng.random() < 0.5 and len(found) in phrases.COUNTS:
            form = "both" if len(found) == 2 and self._rng.random() < 0.5 else "count"
        text = self._phrase(form, noun, c=phrases.COUNTS.get(len(found), ""))
        return self._sample(text, "several", found, noun)

    def _pair(self) -> Sample | None:
        """ "the dog and the cat"."""
        first, second = self._group(1, 1), self._group(1, 1)
        if first is None or second is None or set(first[0].kinds) & set(second[0].kinds):
            return None
        text = self._phrase("and", first[0], m=second[0].one)
        return self._sample(text, "several", first[1] + second[1], first[0])

    def _no_target(self) -> Sample | None:
        """An absent thing in any wording, or what `_too_many` or `_unrelated` gives."""
        roll = self._rng.random()
        if roll < 0.15:
            return self._too_many()
        if roll < 0.27:
            return self._unrelated()
        noun = self._absent_noun()
        return self._sample(self._text_of_any_form(noun), "no_target", (), noun)

    def _absent_noun(self) -> Noun:
        """A noun of no object here.

        A wrong look of a kind that is here (a red apple among green ones) is drawn more often.
        """
        here = {thing.kind for thing in self._things}
        weights = [
            noun.weight * (1 if not noun.look else 0.3 + 2 * (noun.kinds[0] in here))
            for noun in self._absent
        ]
        return self._absent[self._weighted(weights)]

    def _too_many(self) -> Sample | None:
        """ "third dog from the left" where there are two dogs."""
        group = self._group(1, len(phrases.ORDINALS) - 1)
        if group is None:
            return None
        noun, found = group
        number = len(found) + 1 + int(self._rng.random() < 0.3 and len(found) <= 2)
        direction = self._one_of(("left", "right", "left", "right", "top", "bottom"))
        text = self._phrase("ordinal", noun, o=phrases.ORDINALS[number - 1], d=direction)
        return self._sample(text, "no_target", (), noun)

    def _unrelated(self) -> Sample | None:
        """ "dog next to the tree" where there is a dog and no tree."""
        group = self._group(1)
        if group is None:
            return None
        noun, _ = group
        text = self._relation_text(noun, self._absent_noun())
        return self._sample(text, "no_target", (), noun)

    def _relation_text(self, noun: Noun, other: Noun) -> str | None:
        """ "NOUN next to the OTHER", in any relation."""
        words = phrases.RELATIONS[self._one_of(tuple(phrases.RELATIONS))]
        if noun == other:
            return None
        return self._phrase("relation", noun, r=self._one_of(words), m=other.one)

    def _text_of_any_form(self, noun: Noun) -> str | None:
        """An expression about the noun; forms are as frequent as where there are targets."""
        roll = self._rng.random()
        if roll < 0.3:
            return self._phrase("plain", noun)
        if roll < 0.6:
            if self._rng.random() < 0.12:
                return self._phrase("middle", noun)
            form, _, word = self._direction()
            return self._phrase(form, noun, d=word)
        if roll < 0.7:
            ordinal = self._one_of(phrases.ORDINALS[:3])
            direction = self._one_of(tuple(_OPPOSITE))
            return self._phrase("ordinal", noun, o=ordinal, d=direction)
        if roll < 0.82:
            other = self._group(1, 1)
            return None if other is None else self._relation_text(noun, other[0])
        if roll < 0.9:
            word = self._size_word(bool(self._rng.random() < 0.5), 2)
            return self._phrase("size", noun, z=word)
        form = self._one_of(("all", "all", "count", "both"))
        return self._phrase(form, noun, c=phrases.COUNTS[2 + int(self._rng.integers(2))])
