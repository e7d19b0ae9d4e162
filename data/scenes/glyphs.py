"""The pictures that scenes are made of: glyphs of Noto Color Emoji from the atlas in `data/`.

`data/glyphs.png` holds every glyph once. `data/glyphs.json` lists the variants: kind, name, split,
the box in the atlas, and how the glyph is recoloured. `build_atlas` writes both from the font.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Split = Literal["train", "heldout"]


@dataclass(frozen=True)
class Variant:
    """One picture of a kind of thing: a glyph, and how it is recoloured."""

    kind: str
    """The kind of thing, such as "dog"."""

    name: str
    """Tells it from the others of its kind."""

    split: Split
    """The only split that may draw it."""

    box: tuple[int, int, int, int]
    """Where the glyph is in the atlas: left, top, right, bottom, pixels."""

    hue: float
    """By how many degrees the hue is turned, 0 for none."""

    gain: tuple[float, float, float]
    """What red, green and blue are multiplied by after that."""

    look: str | None
    """A word that tells it from others of its kind ("red"), or None."""


@cache
def all_variants() -> tuple[Variant, ...]:
    """Every variant of both splits, in the atlas's order."""
    index = json.loads(_data("glyphs.json").decode("utf-8"))
    return tuple(
        Variant(
            kind=entry["kind"],
            name=entry["variant"],
            split=entry["split"],
            box=tuple(entry["box"]),
            hue=entry.get("hue", 0.0),
            gain=tuple(entry.get("gain", (1.0, 1.0, 1.0))),
            look=entry.get("look"),
        )
        for entry in index["variants"]
    )


@cache
def variants_of(kind: str, split: Split) -> tuple[Variant, ...]:
    """The variants of a kind that a split may draw.

    Raises:
        KeyError: For an unknown kind.
    """
    found = tuple(v for v in all_variants() if v.kind == kind and v.split == split)
    if not found:
        raise KeyError(f"no glyphs for {kind!r}; the kinds are {', '.join(kinds())}")
    return found


@cache
def kinds() -> tuple[str, ...]:
    """The kinds of thing, in the atlas's order."""
    return tuple(dict.fromkeys(v.kind for v in all_variants()))


@cache
def looks() -> dict[tuple[str, str], str | None]:
    """(kind, variant name) -> the word that tells this variant from others of its kind, or None."""
    return {(v.kind, v.name): v.look for v in all_variants()}


@cache
def picture(variant: Variant) -> Image.Image:
    """The variant's picture, RGBA, recoloured, cut to its box. Callers must not change it."""
    glyph = _atlas().crop(variant.box)
    if variant.hue == 0.0 and variant.gain == (1.0, 1.0, 1.0):
        return glyph
    return Image.fromarray(recoloured(np.asarray(glyph), variant.hue, variant.gain))


@cache
def variant_colours(kind: str, name: str) -> tuple[NDArray[np.float32], list[NDArray[np.float32]]]:
    """The colours of a variant, and those of the held-out variants of its kind that look like it.

    Returns:
        The colours at up to 400 of its pixels, float32 RGB [P, 3], and at the same places those of
        every held-out variant of its kind with about the same outline.
    """
    (own,) = [v for v in all_variants() if (v.kind, v.name) == (kind, name)]
    shown = picture(own)
    solid = _solid(shown)
    inside = np.flatnonzero(solid.ravel())
    inside = inside[np.linspace(0, len(inside) - 1, min(400, len(inside))).astype(int)]

    alike = []
    for variant in variants_of(kind, "heldout"):
        other = picture(variant).resize(shown.size, Image.Resampling.BILINEAR)
        covered = _solid(other)
        if (solid & covered).sum() > 0.85 * (solid | covered).sum():
            alike.append(_colours_at(other, inside))
    return _colours_at(shown, inside), alike


def _solid(image: Image.Image) -> NDArray[np.bool_]:
    """bool [H, W]: where an RGBA image is more than half opaque."""
    return np.asarray(image.getchannel("A")) > 127


def _colours_at(image: Image.Image, places: NDArray[np.intp]) -> NDArray[np.float32]:
    """float32 RGB [P, 3] at these indices into the image's pixels."""
    found: NDArray[np.float32] = (
        np.asarray(image)[..., :3].reshape(-1, 3)[places].astype(np.float32)
    )
    return found


def recoloured(
    rgba: NDArray[np.uint8], hue: float, gain: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """The image, uint8 RGBA [H, W, 4], in other colours.

    Its hue is turned by `hue` degrees about the grey axis, then each channel is multiplied by
    `gain`.
    """
    out = rgba.copy()
    out[..., :3] = np.clip(np.rint((rgba[..., :3] @ hue_turn(hue).T) * gain), 0, 255)
    out[rgba[..., 3] == 0] = 0
    return out


def hue_turn(hue: float) -> NDArray[np.float64]:
    """The matrix [3, 3] that turns a colour, a column, by `hue` degrees about the grey axis."""
    cos, sin = math.cos(math.radians(hue)), math.sin(math.radians(hue))
    third, root = (1 - cos) / 3, sin / math.sqrt(3)
    return np.array(
        [
            [cos + third, third - root, third + root],
            [third + root, cos + third, third - root],
            [third - root, third + root, cos + third],
        ]
    )


@cache
def _atlas() -> Image.Image:
    with resources.as_file(resources.files("ris.data.scenes") / "data" / "glyphs.png") as path:
        return Image.open(path).convert("RGBA")


def _data(name: str) -> bytes:
    return (resources.files("ris.data.scenes") / "data" / name).read_bytes()
