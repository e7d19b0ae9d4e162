"""The nouns: what a thing may be called, and which objects each word covers."""

from __future__ import annotations

from dataclasses import dataclass

from ris.data.scenes.glyphs import looks
from ris.data.scenes.scene import SceneObject

PEOPLE = ("man", "woman", "child")
"""The kinds that are people."""


@dataclass(frozen=True)
class Noun:
    """A word for a kind of thing, for some variants of it, or for several kinds."""

    one: str
    """Singular."""

    many: str
    """Plural."""

    kinds: tuple[str, ...]
    """The kinds that it is said of."""

    look: str | None = None
    """The look of the variants that it is said of; None for all variants."""

    weight: float = 1.0
    """How often it is picked among the words for the same thing."""


# kind -> the words for it: singular, plural, weight
_WORDS: dict[str, tuple[tuple[str, str, float], ...]] = {
    "man": (("man", "men", 3), ("guy", "guys", 1.2), ("gentleman", "gentlemen", 0.8)),
    "woman": (("woman", "women", 2.5), ("lady", "ladies", 1.2)),
    "child": (("child", "children", 1.5), ("kid", "kids", 1)),
    "dog": (("dog", "dogs", 1),),
    "cat": (("cat", "cats", 1),),
    "horse": (("horse", "horses", 1),),
    "cow": (("cow", "cows", 1),),
    "elephant": (("elephant", "elephants", 1),),
    "bird": (("bird", "birds", 1),),
    "car": (("car", "cars", 2), ("automobile", "automobiles", 0.7)),
    "bus": (("bus", "buses", 1),),
    "bicycle": (("bicycle", "bicycles", 1), ("bike", "bikes", 1)),
    "tree": (("tree", "trees", 1),),
    "flower": (("flower", "flowers", 1),),
    "umbrella": (("umbrella", "umbrellas", 1),),
    "chair": (("chair", "chairs", 2), ("seat", "seats", 0.7)),
    "clock": (("clock", "clocks", 1),),
    "apple": (("apple", "apples", 1),),
    "banana": (("banana", "bananas", 1),),
    "pizza": (("pizza", "pizzas", 1.5), ("pizza slice", "pizza slices", 0.7)),
    "ball": (("ball", "balls", 1),),
    "cup": (("cup", "cups", 1.5), ("mug", "mugs", 1)),
    "guitar": (("guitar", "guitars", 1),),
    "book": (("book", "books", 1),),
}

COLOURS = {
    "apple": ("red", "green"),
    "car": ("red", "blue", "green", "yellow"),
    "cat": ("black", "orange"),
    "book": ("red", "green", "blue"),
}
"""Kind -> the colours that tell its variants apart."""

_NOT_IN_COCO = ("tree", "flower", "guitar")
COCO = {kind: kind for kind in _WORDS if kind not in _NOT_IN_COCO}
COCO |= {**dict.fromkeys(PEOPLE, "person"), "ball": "sports ball"}
"""Kind -> the nearest COCO category; trees, flowers and guitars have none."""


def _nouns() -> tuple[Noun, ...]:
    out = []
    for kind, words in _WORDS.items():
        out += [Noun(one, many, (kind,), weight=weight) for one, many, weight in words]

    out.append(Noun("person", "people", PEOPLE, weight=1.2))
    out.append(Noun("boy", "boys", ("child",), "boy"))
    out.append(Noun("girl", "girls", ("child",), "girl"))
    out.append(Noun("bearded man", "bearded men", ("man",), "bearded"))

    for kind, colours in COLOURS.items():
        one, many, _ = _WORDS[kind][0]
        out += [Noun(f"{colour} {one}", f"{colour} {many}", (kind,), colour) for colour in colours]
    return tuple(out)


NOUNS = _nouns()
"""Every noun that expressions use."""


def covers(noun: Noun, thing: SceneObject) -> bool:
    """Whether the noun may be said of the object."""
    if thing.kind not in noun.kinds:
        return False
    return noun.look is None or looks()[thing.kind, thing.variant] == noun.look


def usable(noun: Noun, things: tuple[SceneObject, ...]) -> bool:
    """Whether the noun is clear in a scene of these things.

    A colour is said only where every object of the kind has a clear one.
    """
    if noun.look is None:
        return True
    found = [looks()[thing.kind, thing.variant] for thing in things if thing.kind in noun.kinds]
    return None not in found


def category(noun: Noun) -> str | None:
    """The nearest COCO category of what the noun names."""
    return COCO.get(noun.kinds[0])
