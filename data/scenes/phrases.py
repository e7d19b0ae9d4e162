"""The sentence templates, and which of them each split may use.

Slots: {n} singular noun, {ns} plural, {d} a direction, {o} an ordinal, {m} the other noun, {r} a
relation, {c} a count in words, {z} a size word.

**Which split says what.** A phrasing is a template together with its head noun. Templates marked
`+` belong to the held-out split, whatever the noun. Of the others, a quarter of the pairs of
template and noun, chosen by a checksum, is held out too. Training uses only pairs that are not held
out, the held-out split only pairs that are, so no held-out expression can occur in training. Every
word and every construction ("at the", "left side", "that is ...") occurs in training in some other
combination: "guy at the left side" is held out, "guy on the left side" and "guy at the left" are
not.
"""

from __future__ import annotations

import zlib

from ris.data.scenes.glyphs import Split

TEMPLATES: dict[str, tuple[str, ...]] = {
    "plain": (
        "{n}",
        "the {n}",
        "a {n}",
        "that {n}",
        "the {n} in the picture",
        "{n} in the image",
        "a {n} in the photo",
        "find the {n}",
        "+ that {n} in the photo",
        "+ find that {n}",
        "+ the {n} in the image",
    ),
    "side": (
        "{d} {n}",
        "the {d} {n}",
        "{n} on the {d}",
        "the {n} on the {d}",
        "{n} at the {d}",
        "{n} on the {d} side",
        "the {n} on the {d} side",
        "far {d} {n}",
        "{n} on the far {d}",
        "{d}most {n}",
        "the {d}most {n}",
        "the {n} that is on the {d}",
        "find the {d} {n}",
        "+ {n} at the {d} side",
        "+ the {n} at the far {d}",
        "+ the {n} that is at the {d}",
        "+ that {n} on the {d}",
    ),
    "level": (
        "{d} {n}",
        "the {d} {n}",
        "{n} at the {d}",
        "the {n} at the {d}",
        "{n} on the {d}",
        "{d}most {n}",
        "the {d}most {n}",
        "the {n} that is at the {d}",
        "find the {d} {n}",
        "+ the {n} that is on the {d}",
        "+ that {n} at the {d}",
    ),
    "upper": (
        "{d} {n}",
        "the {d} {n}",
        "find the {d} {n}",
        "the {d} {n} in the picture",
        "+ that {d} {n}",
        "+ the {d} {n} in the image",
    ),
    "middle": (
        "middle {n}",
        "the middle {n}",
        "{n} in the middle",
        "the {n} in the middle",
        "center {n}",
        "the {n} in the center",
        "+ {n} in the center",
        "+ the {n} that is in the middle",
    ),
    "ordinal": (
        "{o} {n} from the {d}",
        "the {o} {n} from the {d}",
        "{o} {n} from {d}",
        "{o} {n} counting from the {d}",
        "the {n} that is {o} from the {d}",
        "+ the {o} {n} counting from the {d}",
        "+ {n} that is {o} from the {d}",
    ),
    "relation": (
        "{n} {r} the {m}",
        "the {n} {r} the {m}",
        "{n} {r} a {m}",
        "the {n} that is {r} the {m}",
        "find the {n} {r} the {m}",
        "+ the {n} {r} a {m}",
        "+ {n} that is {r} the {m}",
        "+ that {n} {r} the {m}",
    ),
    "size": (
        "{z} {n}",
        "the {z} {n}",
        "find the {z} {n}",
        "the {z} {n} in the picture",
        "the {n} that is {z}",
        "+ {n} that is {z}",
        "+ the {z} {n} in the image",
    ),
    "all": (
        "all {ns}",
        "all the {ns}",
        "all of the {ns}",
        "every {n}",
        "each {n}",
        "all the {ns} in the picture",
        "find all the {ns}",
        "+ every {n} in the picture",
        "+ find all {ns}",
        "+ each {n} in the image",
    ),
    "count": (
        "the {c} {ns}",
        "{c} {ns}",
        "all {c} {ns}",
        "find the {c} {ns}",
        "+ all the {c} {ns}",
        "+ the {c} {ns} in the picture",
    ),
    "both": (
        "both {ns}",
        "both the {ns}",
        "both of the {ns}",
        "+ find both {ns}",
        "+ both {ns} in the picture",
    ),
    "and": (
        "the {n} and the {m}",
        "{n} and {m}",
        "both the {n} and the {m}",
        "+ the {n} and {m}",
        "+ find the {n} and the {m}",
    ),
}
"""Form -> its templates."""

ORDINALS = ("first", "second", "third", "fourth", "fifth")
COUNTS = {2: "two", 3: "three", 4: "four", 5: "five"}

# words for a direction -> the direction, for the forms "level" and "upper"
LEVELS = {"top": "top", "bottom": "bottom"}
UPPERS = {"upper": "top", "lower": "bottom", "highest": "top", "lowest": "bottom"}
RELATIONS: dict[str, tuple[str, ...]] = {
    "beside": ("next to", "beside", "near"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "left": ("to the left of", "left of"),
    "right": ("to the right of", "right of"),
}
"""Relation -> the words for it."""

LARGE, SMALL = ("biggest", "largest"), ("smallest", "littlest")
LARGER, SMALLER = ("bigger", "larger"), ("smaller",)  # of two

_HELD_OUT = "+ "


def phrasings(form: str, noun: str, split: Split) -> list[str]:
    """The templates of a form that a split may use with this head noun; there may be none.

    They come without their mark.
    """
    own = [template for template in TEMPLATES[form] if _split_of(form, template, noun) == split]
    return [template.removeprefix(_HELD_OUT) for template in own]


def _split_of(form: str, template: str, noun: str) -> Split:
    if template.startswith(_HELD_OUT):
        return "heldout"
    checksum = zlib.crc32(f"{form}|{template}|{noun}".encode())
    return "heldout" if checksum % 4 == 0 else "train"


def article(text: str) -> str:
    """ "a apple" -> "an apple"."""
    words = text.split()
    for i, word in enumerate(words[:-1]):
        if word == "a" and words[i + 1][0] in "aeiou":
            words[i] = "an"
    return " ".join(words)


def swap_sides(text: str) -> str:
    """The text with left and right exchanged, in leftmost and rightmost too."""
    other = {"left": "right", "right": "left", "leftmost": "rightmost", "rightmost": "leftmost"}
    return " ".join(other.get(word, word) for word in text.split())
