"""How a variant of a kind of thing is made from a glyph: plain, in a skin tone, or recoloured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TONES = ("", "\U0001f3fb", "\U0001f3fc", "\U0001f3fd", "\U0001f3fe", "\U0001f3ff")
"""No skin tone, and the five modifiers from light to dark."""

PLAIN = (1.0, 1.0, 1.0)
"""The gain that changes nothing."""

Tint = tuple[float, tuple[float, float, float]]
"""Hue in degrees, and gain of red, green and blue."""


@dataclass(frozen=True)
class Source:
    """One variant: the text that gives the glyph, and how it is recoloured."""

    kind: str
    """The kind of thing, such as "dog"."""

    variant: str
    """Tells it from the others of its kind."""

    text: str
    """The characters that the font draws as one glyph."""

    split: Literal["train", "heldout"] = "train"
    """The only split that may draw it."""

    hue: float = 0.0
    """By how many degrees the hue is turned."""

    gain: tuple[float, float, float] = PLAIN
    """What red, green and blue are multiplied by after that."""

    look: str | None = None
    """A word that tells it from others of its kind: "red" (apple), "bearded" (man), "girl". None
    where there is none."""


def toned(
    kind: str,
    name: str,
    around: tuple[str, str],
    heldout: tuple[int, ...],
    look: str | None = None,
) -> list[Source]:
    """A person in every skin tone.

    Args:
        kind: The kind of all.
        name: Start of the variants' names; the tone's number follows.
        around: The text before and after the tone.
        heldout: Numbers of the tones that are held out.
        look: The look of all.
    """
    before, after = around
    return [
        Source(
            kind=kind,
            variant=f"{name}-{i}",
            text=before + tone + after,
            split="heldout" if i in heldout else "train",
            look=look,
        )
        for i, tone in enumerate(TONES)
    ]


def plain(
    kind: str,
    train: dict[str, str],
    heldout: dict[str, str],
    looks: dict[str, str] | None = None,
) -> list[Source]:
    """Plain glyphs of a kind.

    Args:
        kind: The kind of all.
        train: Variant name -> text.
        heldout: The same for the held-out split.
        looks: Variant name -> look, where it has one.
    """
    looks = looks or {}
    out = [Source(kind, name, text, "train", look=looks.get(name)) for name, text in train.items()]
    for name, text in heldout.items():
        out.append(Source(kind, name, text, "heldout", look=looks.get(name)))
    return out


def recoloured(
    kind: str,
    name: str,
    text: str,
    train: dict[str, Tint],
    heldout: dict[str, Tint],
    looks: dict[str, str] | None = None,
) -> list[Source]:
    """One glyph in several colours.

    Args:
        kind: The kind of all.
        name: Start of the variants' names; the suffix follows.
        text: The glyph.
        train: Suffix -> how the glyph is recoloured.
        heldout: The same for the held-out split.
        looks: Suffix -> look, where it has one.
    """
    looks = looks or {}
    return [
        Source(
            kind=kind,
            variant=f"{name}-{suffix}",
            text=text,
            split="train" if suffix in train else "heldout",
            hue=hue,
            gain=gain,
            look=looks.get(suffix),
        )
        for suffix, (hue, gain) in (train | heldout).items()
    ]
