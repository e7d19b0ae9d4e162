"""What is behind the objects: gradients, noise, patterns and simple landscapes.

Training draws from one set of families and palettes, the held-out split from another: no held-out
background has a pattern or a base hue that training has seen. Hues are told apart by 30-degree
sectors of the colour circle: training takes the even ones (0-30, 60-90, ...), held-out the odd
ones.
"""

from __future__ import annotations

import colorsys
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.data.scenes.glyphs import Split

Float = NDArray[np.float32]
Rng = np.random.Generator
_SECTOR = 30  # degrees


def draw_background(rng: Rng, split: Split, size: int) -> NDArray[np.uint8]:
    """A background of a family that the split may use, uint8 RGB [size, size, 3]."""
    family = FAMILIES[split][rng.integers(len(FAMILIES[split]))]
    canvas = family(rng, split, size)
    grain = float(rng.choice([0.0, 0.0, 3.0, 6.0]))
    if grain:
        noise = rng.integers(-256, 256, (size, size, 1), dtype=np.int16).astype(np.float32)
        canvas = canvas + noise * np.float32(grain / 256)
    return np.clip(canvas, 0, 255).astype(np.uint8)


def hue_of(rng: Rng, split: Split) -> float:
    """A hue in degrees, from the sectors of the split."""
    sector = 2 * int(rng.integers(180 // _SECTOR)) + (split == "heldout")
    return float(sector * _SECTOR + rng.uniform(1, _SECTOR - 1))


def _colour(hue: float, saturation: float, value: float) -> Float:
    """The hue in degrees, saturation and value in 0..1 -> float32 RGB [3] in 0..255."""
    return np.array(colorsys.hsv_to_rgb(hue % 360 / 360, saturation, value), np.float32) * 255


def _palette(rng: Rng, split: Split, count: int) -> list[Float]:
    """The colours of one picture: of low to medium saturation and of similar brightness."""
    value = rng.uniform(0.35, 0.95)
    colours = []
    for _ in range(count):
        hue, saturation = hue_of(rng, split), rng.uniform(0.05, 0.6)
        own = float(np.clip(value + rng.uniform(-0.22, 0.22), 0.2, 1))
        colours.append(_colour(hue, saturation, own))
    return colours


def _mix(weight: Float, a: Float, b: Float) -> Float:
    """weight [S, S], colours [3] -> [S, S, 3]: `a` where the weight is 0, `b` where it is 1."""
    return a + weight[..., None] * (b - a)


def _axes(size: int) -> tuple[Float, Float]:
    """x [1, S] and y [S, 1] in 0..1."""
    line = ((np.arange(size, dtype=np.float32) + 0.5) / size).astype(np.float32)
    return line[None, :], line[:, None]


def _slanted(rng: Rng, size: int) -> Float:
    """Position along a random direction, [S, S], in about -0.7..0.7."""
    x, y = _axes(size)
    angle = rng.uniform(0, 2 * np.pi)
    cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    return ((x - 0.5) * cos + (y - 0.5) * sin).astype(np.float32)


def _smooth(rng: Rng, size: int, cells: int) -> Float:
    """Smooth random values, [S, S], 0..1: a coarse random grid, enlarged."""
    coarse = Image.fromarray(rng.integers(0, 256, (cells, cells), dtype=np.uint8))
    enlarged = coarse.resize((size, size), Image.Resampling.BICUBIC)
    return np.asarray(enlarged, np.float32) / np.float32(255)


def _plain(rng: Rng, split: Split, size: int) -> Float:
    (colour,) = _palette(rng, split, 1)
    return np.broadcast_to(colour, (size, size, 3))


def _gradient(rng: Rng, split: Split, size: int) -> Float:
    a, b = _palette(rng, split, 2)
    return _mix(np.clip(_slanted(rng, size) + 0.5, 0, 1), a, b)


def _radial(rng: Rng, split: Split, size: int) -> Float:
    a, b = _palette(rng, split, 2)
    x, y = _axes(size)
    cx, cy = rng.uniform(0.2, 0.8, 2).astype(np.float32)
    return _mix(np.clip(np.sqrt((x - cx) ** 2 + (y - cy) ** 2), 0, 1), a, b)


def _noise(rng: Rng, split: Split, size: int) -> Float:
    a, b, c = _palette(rng, split, 3)
    out = _mix(_smooth(rng, size, int(rng.integers(3, 9))), a, b)

    fine = _smooth(rng, size, int(rng.integers(12, 48)))[..., None]
    out += (fine - 0.5) * (c - a) * np.float32(rng.uniform(0.2, 0.7))
    return out


def _stripes(rng: Rng, split: Split, size: int) -> Float:
    a, b = _palette(rng, split, 2)
    across = _slanted(rng, size)
    number = np.float32(rng.uniform(4, 14))
    return _mix((across * number % 1 < 0.5).astype(np.float32), a, b)


def _checks(rng: Rng, split: Split, size: int) -> Float:
    a, b = _palette(rng, split, 2)
    x, y = _axes(size)
    cells = np.float32(rng.uniform(4, 12))
    odd = (np.floor(x * cells) + np.floor(y * cells)) % 2
    return _mix(odd.astype(np.float32), a, b)


def _sky_and_ground(rng: Rng, split: Split, size: int) -> Float:
    """A sky that pales towards the horizon, and a flat ground with some texture."""
    x, y = _axes(size)
    horizon = np.float32(rng.uniform(0.3, 0.7))
    # in training's sector of hues 180-210; the sky of `_hills` is in held-out's 210-240
    sky = _colour(rng.uniform(181, 209), rng.uniform(0.2, 0.6), rng.uniform(0.75, 1))
    ground = _ground(rng, split)

    pale = np.clip(y / horizon, 0, 1) * np.float32(0.6) + 0 * x
    above = _mix(pale, sky, np.full(3, 245, np.float32))

    grain = _smooth(rng, size, int(rng.integers(16, 64)))[..., None]
    texture = (grain - 0.5) * np.float32(rng.uniform(5, 40))
    below = ground * (np.float32(1.1) - 0.4 * y[..., None]) + texture
    return np.where((y < horizon)[..., None], above, below)


def _ground(rng: Rng, split: Split) -> Float:
    """Grass, sand or water, of hues inside the split's sectors."""
    hues = {"train": (75.0, 130.0, 20.0), "heldout": (105.0, 40.0, 220.0)}[split]
    hue = hues[rng.integers(3)] + rng.uniform(-9, 9)
    return _colour(hue, rng.uniform(0.2, 0.6), rng.uniform(0.45, 0.85))


def _dots(rng: Rng, split: Split, size: int) -> Float:
    a, b = _palette(rng, split, 2)
    x, y = _axes(size)
    cells, radius = np.float32(rng.uniform(4, 12)), np.float32(rng.uniform(0.2, 0.42))
    inside = (x * cells % 1 - 0.5) ** 2 + (y * cells % 1 - 0.5) ** 2 < radius**2
    return _mix(inside.astype(np.float32), a, b)


def _waves(rng: Rng, split: Split, size: int) -> Float:
    a, b = _palette(rng, split, 2)
    bend = _smooth(rng, size, 4) * np.float32(rng.uniform(0.5, 2))
    phase = _slanted(rng, size) * np.float32(rng.uniform(15, 50)) + np.float32(2 * np.pi) * bend
    return _mix((0.5 + 0.5 * np.sin(phase)).astype(np.float32), a, b)


def _patches(rng: Rng, split: Split, size: int) -> Float:
    """A few areas of flat colour with curved borders."""
    colours = np.stack(_palette(rng, split, 4))
    steps = np.clip(_smooth(rng, size, int(rng.integers(3, 7))) * 4, 0, 3).astype(np.intp)
    return colours[steps]


def _bricks(rng: Rng, split: Split, size: int) -> Float:
    a, b = _palette(rng, split, 2)
    x, y = _axes(size)
    rows = np.float32(rng.uniform(6, 14))
    along = x * rows / 2 + 0.5 * (np.floor(y * rows) % 2)
    joint = (along % 1 < 0.06) | (y * rows % 1 < 0.12)
    texture = (_smooth(rng, size, 24)[..., None] - 0.5) * np.float32(20)
    return _mix(joint.astype(np.float32), a, b) + texture


def _hills(rng: Rng, split: Split, size: int) -> Float:
    """A sky and two rolling hills, one behind the other."""
    x, y = _axes(size)
    sky = _colour(rng.uniform(211, 239), rng.uniform(0.15, 0.5), rng.uniform(0.75, 1))
    out = _mix(np.clip(y + 0 * x, 0, 1), sky, np.full(3, 250, np.float32))
    ground = _ground(rng, split)
    far, near = rng.uniform(0.35, 0.5), rng.uniform(0.55, 0.7)
    for level, shade in ((far, 0.8), (near, 1.0)):
        wave = x * np.float32(rng.uniform(4, 10)) + np.float32(rng.uniform(0, 6))
        crest = level + 0.08 * np.sin(wave)
        out = np.where((y > crest)[..., None], ground * np.float32(shade), out)
    return out.astype(np.float32)


Family = Callable[[Rng, Split, int], Float]
FAMILIES: dict[Split, tuple[Family, ...]] = {
    "train": (_plain, _gradient, _radial, _noise, _stripes, _checks, _sky_and_ground),
    "heldout": (_dots, _waves, _patches, _bricks, _hills),
}
"""Split -> the families that it draws its backgrounds from."""
