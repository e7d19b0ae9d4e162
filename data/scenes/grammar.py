"""Referring expressions for a scene, with the objects they mean.

The wording is in `phrases`, the nouns in `words`, and the rules by which an expression picks
objects in `meaning`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ris.data.scenes import meaning, phrases
from ris.data.scenes.scene import Scene, SceneObject, random_stream
from ris.data.scenes.words import NOUNS, Noun, category, covers, usable

Kind = Literal["plain", "position", "ordinal", "relation", "size", "several", "no_target"]
Wanted = Kind | Literal["too_many", "unrelated"]
"""What may be asked for: a kind, or one sort of "no target" alone: a number that there is not, or a
relation to a thing that there is not."""
WEIGHTS: dict[Wanted, float] = {
    "plain": 0.19,
    "position": 0.20,
    "ordinal": 0.08,
    "relation": 0.27,
    "size": 0.12,
    "several": 0.07,
    "no_target": 0.12,
}
"""How often each kind is tried first; what a scene does not allow goes to the others, so that about
22 % are plain, 26 % position, 9 % ordinal, 13 % relation, 8 % size, 10 % several and 12 % no target
in the end."""
_ATTEMPTS = 12  # at one kind before another is tried
MOST_SAMPLES = 1000
Rng = np.random.Generator


@dataclass(frozen=True)
class Sample:
    """An expression and what it means in its scene."""

    expression: str
    kind: Kind
    targets: tuple[
        int, ...
    ]  # indices into Scene.objects, ascending; empty where there is no target
    category: str | None  # the COCO category nearest to the head noun; None where there is none
    mirrored: (
        str | None
    )  # left/right expressions over two or more of the kind: the same with left and right swapped
    mirrored_targets: tuple[
        int, ...
    ] = ()  # what `mirrored` means, always something else than `targets`


class _Writer:
    """Makes expressions for one scene."""

    def __init__(self, scene: Scene, rng: Rng):
        self.scene, self.rng, self.things = scene, rng, scene.objects
        self.side = scene.image.shape[0]
        self.groups: list[
            tuple[Noun, list[int]]
        ] = []  # nouns said of something here, with the objects
        self.absent: list[Noun] = []  # nouns said of nothing here
        for noun in NOUNS:
            if usable(noun, self.things):
                found = [i for i, thing in enumerate(self.things) if covers(noun, thing)]
                if found:
                    self.groups.append((noun, found))
                else:
                    self.absent.append(noun)
        self.makers: dict[Wanted, Callable[[], Sample | None]] = {
            "plain": self.plain,
            "position": self.position,
            "ordinal": self.ordinal,
            "relation": self.relation,
            "size": self.size,
            "several": self.several,
            "no_target": self.no_target,
            "too_many": self.too_many,
            "unrelated": self.unrelated,
        }

    def one_of(self, options: Sequence[str]) -> str:
        return options[int(self.rng.integers(len(options)))]

    def group(self, least: int, most: int = 99) -> tuple[Noun, list[int]] | None:
        """A noun said of `least` to `most` objects: an object group first, then one of the words
        for it.
        """
        fitting = [(noun, found) for noun, found in self.groups if least <= len(found) <= most]
        if not fitting:
            return None
        odds: dict[tuple[int, ...], float] = {}
        for noun, found in fitting:
            usual = (
                noun.look is None and len(noun.kinds) == 1
            )  # rather "man" and "apple" than "person" and "red apple"
            odds[tuple(found)] = max(odds.get(tuple(found), 0.0), 1.0 if usual else 0.45)
        shares = np.array(list(odds.values()))
        chosen = list(odds)[int(self.rng.choice(len(odds), p=shares / shares.sum()))]
        nouns = [noun for noun, found in fitting if tuple(found) == chosen]
        weights = np.array([noun.weight for noun in nouns])
        return nouns[int(self.rng.choice(len(nouns), p=weights / weights.sum()))], list(chosen)

    def objects(self, found: list[int]) -> list[SceneObject]:
        return [self.things[i] for i in found]

    def write(self, form: str, noun: Noun, **words: str) -> str | None:
        """An expression of this form; None where the split has no phrasing for it."""
        options = phrases.phrasings(form, noun.one, self.scene.split)
        if not options:
            return None
        return phrases.article(self.one_of(options).format(n=noun.one, ns=noun.many, **words))

    def sample(
        self, text: str | None, kind: Kind, targets: Sequence[int], noun: Noun
    ) -> Sample | None:
        return (
            None
            if text is None
            else Sample(text, kind, tuple(sorted(targets)), category(noun), None)
        )

    def plain(self) -> Sample | None:
        picked = self.group(1, 1)
        return picked and self.sample(self.write("plain", picked[0]), "plain", picked[1], picked[0])

    def position(self) -> Sample | None:
        picked = self.group(2) if self.rng.random() < 0.92 else self.group(1, 1)
        if picked is None:
            return None
        noun, found = picked
        things = self.objects(found)
        if len(found) == 3 and self.rng.random() < 0.3:
            which = meaning.middle(things, self.side)
            return (
                None
                if which is None
                else self.sample(self.write("middle", noun), "position", [found[which]], noun)
            )
        form, direction, word = self.direction()
        which = meaning.extreme(things, direction, self.side)
        if which is None:
            return None
        sample = self.sample(self.write(form, noun, d=word), "position", [found[which]], noun)
        if sample is None or form != "side" or len(found) < 2:
            return sample
        return self.with_mirror(
            sample, found, meaning.extreme(things, _OPPOSITE[direction], self.side)
        )

    def direction(self) -> tuple[str, str, str]:
        """Form, direction, and the word for it."""
        roll = self.rng.random()
        if roll < 0.62:
            word = self.one_of(("left", "right"))
            return "side", word, word
        table = phrases.LEVELS if roll < 0.88 else phrases.UPPERS
        word = self.one_of(tuple(table))
        return ("level" if table is phrases.LEVELS else "upper"), table[word], word

    def with_mirror(self, sample: Sample, found: list[int], other: int | None) -> Sample:
        """The sample with its mirrored expression, where that means another object."""
        if other is None or (found[other],) == sample.targets:
            return sample
        text = phrases.swap_sides(sample.expression)
        return Sample(
            sample.expression, sample.kind, sample.targets, sample.category, text, (found[other],)
        )

    def ordinal(self) -> Sample | None:
        picked = self.group(2)
        if picked is None:
            return None
        noun, found = picked
        number = 1 + int(self.rng.integers(min(len(found), len(phrases.ORDINALS))))
        direction = self.one_of(
            ("left", "right", "left", "right", "left", "right", "top", "bottom")
        )
        things = self.objects(found)
        which = meaning.nth(things, number, direction, self.side)
        if which is None:
            return None
        text = self.write("ordinal", noun, o=phrases.ORDINALS[number - 1], d=direction)
        sample = self.sample(text, "ordinal", [found[which]], noun)
        if sample is None or direction not in ("left", "right"):
            return sample
        return self.with_mirror(
            sample, found, meaning.nth(things, number, _OPPOSITE[direction], self.side)
        )

    def relation(self) -> Sample | None:
        picked = self.group(2) if self.rng.random() < 0.6 else self.group(1)
        anchor = self.group(1, 1)
        if picked is None or anchor is None or set(picked[0].kinds) & set(anchor[0].kinds):
            return None
        noun, found = picked
        relation = self.one_of(
            (*phrases.RELATIONS, "beside", "beside", "beside")
        )  # the rarest to hold
        which = meaning.related(self.objects(found), self.things[anchor[1][0]], relation, self.side)
        if which is None:
            return None
        text = self.write(
            "relation", noun, r=self.one_of(phrases.RELATIONS[relation]), m=anchor[0].one
        )
        return self.sample(text, "relation", [found[which]], noun)

    def size(self) -> Sample | None:
        picked = self.group(2)
        if picked is None:
            return None
        noun, found = picked
        large = bool(self.rng.random() < 0.5)
        which = meaning.by_size(self.objects(found), large)
        if which is None:
            return None
        return self.sample(
            self.write("size", noun, z=self.size_word(large, len(found))),
            "size",
            [found[which]],
            noun,
        )

    def size_word(self, large: bool, count: int) -> str:
        of_two = count == 2 and self.rng.random() < 0.3
        if large:
            return self.one_of(phrases.LARGER if of_two else phrases.LARGE)
        return self.one_of(phrases.SMALLER if of_two else phrases.SMALL)

    def several(self) -> Sample | None:
        if self.rng.random() < 0.25:
            return self.pair()
        picked = self.group(2)
        if picked is None:
            return None
        noun, found = picked
        form = "all"
        if self.rng.random() < 0.5 and len(found) in phrases.COUNTS:
            form = "both" if len(found) == 2 and self.rng.random() < 0.5 else "count"
        return self.sample(
            self.write(form, noun, c=phrases.COUNTS.get(len(found), "")), "several", found, noun
        )

    def pair(self) -> Sample | None:
        """ "the dog and the cat"."""
        first, second = self.group(1, 1), self.group(1, 1)
        if first is None or second is None or set(first[0].kinds) & set(second[0].kinds):
            return None
        return self.sample(
            self.write("and", first[0], m=second[0].one), "several", first[1] + second[1], first[0]
        )

    def no_target(self) -> Sample | None:
        """An absent thing in any wording, a number that there is not, or a relation to an absent
        thing.
        """
        roll = self.rng.random()
        if roll < 0.15:
            return self.too_many()
        if roll < 0.27:
            return self.unrelated()
        noun = self.absent_noun()
        return self.sample(self.text_of_any_form(noun), "no_target", (), noun)

    def absent_noun(self) -> Noun:
        """A noun of no object here; a wrong look of a kind that is here (a red apple among green
        ones) a bit more.
        """
        here = {thing.kind for thing in self.things}
        weights = np.array(
            [n.weight * (1 if not n.look else 0.3 + 2 * (n.kinds[0] in here)) for n in self.absent]
        )
        return self.absent[int(self.rng.choice(len(self.absent), p=weights / weights.sum()))]

    def too_many(self) -> Sample | None:
        """ "third dog from the left" where there are two dogs."""
        picked = self.group(1, len(phrases.ORDINALS) - 1)
        if picked is None:
            return None
        noun, found = picked
        number = len(found) + 1 + int(self.rng.random() < 0.3 and len(found) <= 2)
        direction = self.one_of(("left", "right", "left", "right", "top", "bottom"))
        text = self.write("ordinal", noun, o=phrases.ORDINALS[number - 1], d=direction)
        return self.sample(text, "no_target", (), noun)

    def unrelated(self) -> Sample | None:
        """ "dog next to the tree" where there is a dog and no tree."""
        picked = self.group(1)
        if picked is None:
            return None
        return self.sample(
            self.relation_text(picked[0], self.absent_noun()), "no_target", (), picked[0]
        )

    def relation_text(self, noun: Noun, other: Noun) -> str | None:
        words = phrases.RELATIONS[self.one_of(tuple(phrases.RELATIONS))]
        return (
            None
            if noun == other
            else self.write("relation", noun, r=self.one_of(words), m=other.one)
        )

    def text_of_any_form(self, noun: Noun) -> str | None:
        """An expression about the noun, of a kind that is as frequent here as where there are
        targets.
        """
        roll = self.rng.random()
        if roll < 0.3:
            return self.write("plain", noun)
        if roll < 0.6:
            if self.rng.random() < 0.12:
                return self.write("middle", noun)
            form, _, word = self.direction()
            return self.write(form, noun, d=word)
        if roll < 0.7:
            return self.write(
                "ordinal",
                noun,
                o=self.one_of(phrases.ORDINALS[:3]),
                d=self.one_of(tuple(_OPPOSITE)),
            )
        if roll < 0.82:
            other = self.group(1, 1)
            return None if other is None else self.relation_text(noun, other[0])
        if roll < 0.9:
            return self.write("size", noun, z=self.size_word(bool(self.rng.random() < 0.5), 2))
        form = self.one_of(("all", "all", "count", "both"))
        return self.write(form, noun, c=phrases.COUNTS[2 + int(self.rng.integers(2))])


_ABSENT = ("no_target", "too_many", "unrelated")
_OPPOSITE = {"left": "right", "right": "left", "top": "bottom", "bottom": "top"}


def make_samples(
    scene: Scene, seed: int, count: int, weights: Mapping[Wanted, float] = WEIGHTS
) -> list[Sample]:
    """`count` samples with distinct expressions, of mixed kinds; the same for the same scene, seed
    and weights.

    weights: how often each kind is tried first. What kinds there are depends on the scene: with no
    two of a kind there is nothing to count. ValueError for a negative seed or a count above 1000,
    and where the scene does not give that many distinct expressions (hundreds are no problem).
    """
    if not 0 <= count <= MOST_SAMPLES:
        raise ValueError(f"count is {count}; a scene gives 0 to {MOST_SAMPLES} samples")
    rng = random_stream(scene.split, scene.seed, seed)
    writer = _Writer(scene, rng)
    names, shares = list(weights), np.array(list(weights.values()))
    shares = shares / shares.sum()
    samples: dict[str, Sample] = {}
    for _ in range(count):
        sample = None
        for _ in range(50):
            sample = _first_possible(writer, rng, names, shares, samples)
            if sample is not None:
                break
        if sample is None:
            raise ValueError(
                f"scene {scene.seed} gives only {len(samples)} distinct expressions, {count} were"
                " wanted"
            )
        samples[sample.expression] = sample
    return list(samples.values())


def _first_possible(
    writer: _Writer,
    rng: Rng,
    names: list[Wanted],
    weights: NDArray[np.float64],
    taken: dict[str, Sample],
) -> Sample | None:
    """A new sample of a kind drawn by weight, or else of another kind that the scene allows; no
    target comes last.
    """
    order = [names[i] for i in rng.choice(len(names), len(names), replace=False, p=weights)]
    for name in order[:1] + sorted(order[1:], key=_ABSENT.__contains__):
        for _ in range(_ATTEMPTS):
            sample = writer.makers[name]()
            if sample is not None and sample.expression not in taken:
                return sample
    return None


def target_mask(scene: Scene, sample: Sample) -> NDArray[np.bool_]:
    """bool [S, S]: the visible pixels of all targets; nothing where there is no target."""
    mask = np.zeros(scene.image.shape[:2], np.bool_)
    for i in sample.targets:
        mask |= scene.objects[i].mask
    return mask


def vocabulary_words() -> list[str]:
    """Every word that any expression of any split can have, sorted."""
    words = {"an", "leftmost", "rightmost", "topmost", "bottommost", "left", "right"}
    words |= {*phrases.ORDINALS, *phrases.COUNTS.values(), *phrases.LEVELS, *phrases.UPPERS}
    texts = [t for forms in phrases.TEMPLATES.values() for t in forms]
    texts += [r for options in phrases.RELATIONS.values() for r in options]
    texts += [*phrases.LARGE, *phrases.SMALL, *phrases.LARGER, *phrases.SMALLER]
    texts += [word for noun in NOUNS for word in (noun.one, noun.many)]
    words |= {word for text in texts for word in text.split() if word.isalpha()}
    return sorted(words)
