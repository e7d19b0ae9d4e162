"""The pictures that scenes are made of: glyphs of Noto Color Emoji from the atlas in `data/`.

`data/glyphs.png` holds every glyph once; `data/glyphs.json` says which variants there are: kind,
name, split, the box in the atlas, and how the glyph is recoloured. `build_atlas` writes both from
the font.
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
    """One picture of a kind. `box` is left, top, right, bottom in the atlas; `hue` is in
    degrees.
    """

    kind: str
    name: str
    split: Split
    box: tuple[int, int, int, int]
    hue: float
    gain: tuple[float, float, float]
    look: str | None


@cache
def all_variants() -> tuple[Variant, ...]:
    """Every variant of both splits, in the atlas's order."""
    index = json.loads(_data("glyphs.json").decode("utf-8"))
    return tuple(
        Variant(
            v["kind"],
            v["variant"],
            v["split"],
            tuple(v["box"]),
            v.get("hue", 0.0),
            tuple(v.get("gain", (1.0, 1.0, 1.0))),
            v.get("look"),
        )
        for v in index["variants"]
    )


@cache
def variants_of(kind: str, split: Split) -> tuple[Variant, ...]:
    """The variants of a kind that a split may draw. Raises KeyError for an unknown kind."""
    found = tuple(v for v in all_variants() if v.kind == kind and v.split == split)
    if not found:
        raise KeyError(f"no glyphs for {kind!r}; the kinds are {', '.join(kinds())}")
    return found


@cache
def kinds() -> tuple[str, ...]:
    """The kinds of thing there are, in the atlas's order."""
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
    """Colours of a variant at up to 400 of its pixels, float32 RGB [P, 3], and those of every
    held-out variant of its kind with about the same outline at the same places."""
    (own,) = [v for v in all_variants() if (v.kind, v.name) == (kind, name)]
    shown = picture(own)
    solid = np.asarray(shown.getchannel("A")) > 127
    inside = np.flatnonzero(solid.ravel())
    inside = inside[np.linspace(0, len(inside) - 1, min(400, len(inside))).astype(int)]

    def colours(image: Image.Image) -> NDArray[np.float32]:
        found: NDArray[np.float32] = (
            np.asarray(image)[..., :3].reshape(-1, 3)[inside].astype(np.float32)
        )
        return found

    others = [
        picture(v).resize(shown.size, Image.Resampling.BILINEAR)
        for v in variants_of(kind, "heldout")
    ]
    alike = []
    for other in others:
        covered = np.asarray(other.getchannel("A")) > 127
        if (solid & covered).sum() > 0.85 * (solid | covered).sum():
            alike.append(colours(other))
    return colours(shown), alike


def recoloured(
    rgba: NDArray[np.uint8], hue: float, gain: tuple[float, float, float]
) -> NDArray[np.uint8]:
    """uint8 RGBA [H, W, 4] with its hue turned by `hue` degrees about the grey axis, then each
    channel times `gain`.
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
