"""A scene: a background with 2 to 8 objects, drawn from a seed, and the mask of each object.

The mask is exactly what is seen of the object. The same seed, split and size give the same bytes
with the same NumPy and Pillow, so the order of the draws must stay as it is. The two splits share
no glyph variant, no background family and no stream of random numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.data.scenes.backgrounds import draw_background
from ris.data.scenes.glyphs import Split, Variant, kinds, picture, variants_of

MIN_OBJECTS, MAX_OBJECTS = 2, 8
"""How many objects a scene has."""

MIN_VISIBLE = 0.65
"""The share of an object that must stay visible."""

_COUNTS = (0.1, 0.19, 0.22, 0.2, 0.14, 0.09, 0.06)  # how often 2, 3, ... 8 objects
# smallest and largest scale among 2, 3, ... 8 objects, shares of the side
_SCALES = (
    (0.15, 0.4),
    (0.14, 0.38),
    (0.14, 0.33),
    (0.14, 0.3),
    (0.14, 0.27),
    (0.14, 0.25),
    (0.14, 0.23),
)
_OFTEN = {"man": 2.5, "woman": 2.5, "child": 1.8}  # people are what most expressions are about
_TRIES = 40  # positions tried for one object before it is left out
_STREAM = {"train": 1, "heldout": 2}
Rng = np.random.Generator


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene of side S."""

    kind: str
    """The kind of thing, such as "dog"."""

    variant: str
    """Which picture of its kind it is."""

    mask: NDArray[np.bool_]
    """bool [S, S]: where its alpha is above one half and nothing covers it."""

    centre: tuple[float, float]
    """Centroid of the mask, x then y, pixels."""

    area: int
    """Visible pixels."""

    size: float
    """Drawn scale: the square root of the upright picture's width times height, pixels."""


@dataclass(frozen=True)
class Scene:
    """An image and what is on it."""

    seed: int
    """Its number in the split."""

    split: Split
    """The split that it belongs to."""

    image: NDArray[np.uint8]
    """The pixels, uint8 RGB [S, S, 3]."""

    objects: tuple[SceneObject, ...]
    """What is on it, back to front."""


@dataclass(frozen=True)
class _Plan:
    """One object before it is drawn."""

    variant: Variant
    """What is drawn."""

    scale: float
    """How large: a share of the scene's side."""

    where: tuple[float, float] | None = None
    """About where its centre goes, x and y in 0..1; None for anywhere."""


def random_stream(split: Split, *numbers: int) -> Rng:
    """A generator for these numbers; streams of different splits or numbers are independent.

    Raises:
        ValueError: For an unknown split or a negative number.
    """
    if split not in _STREAM:
        raise ValueError(f'split is {split!r}; it is "train" or "heldout"')
    if min(numbers) < 0:
        raise ValueError(f"seeds are 0 or more, got {min(numbers)}")
    entropy = np.random.SeedSequence([_STREAM[split], len(numbers), *numbers])
    return np.random.Generator(np.random.PCG64(entropy))


def make_scene(seed: int, split: Split = "train", size: int = 256) -> Scene:
    """Draws scene number `seed` of a split at size x size pixels.

    Raises:
        ValueError: For a negative seed, an unknown split or a size below 64.
    """
    if size < 64:
        raise ValueError(f"size is {size}; a scene needs at least 64 pixels")
    rng = random_stream(split, seed)
    canvas = Image.fromarray(draw_background(rng, split, size))

    labels = np.full((size, size), -1, np.int8)  # number of the object on top, -1 for none
    full: list[int] = []  # pixels of each object before anything covered it
    placed: list[tuple[Variant, float]] = []
    for plan in _plan(rng, split):
        sprite, scale = _sprite(rng, plan, size)
        solid = np.asarray(sprite.getchannel("A")) > 127
        corner = _place(rng, plan, solid, labels, full)
        if corner is None:
            continue
        x, y = corner
        labels[y : y + solid.shape[0], x : x + solid.shape[1]][solid] = len(placed)
        canvas.paste(sprite, (x, y), sprite)
        full.append(int(solid.sum()))
        placed.append((plan.variant, scale))

    objects = tuple(
        _object(variant, labels == number, scale) for number, (variant, scale) in enumerate(placed)
    )
    return Scene(seed, split, np.asarray(canvas), objects)


def _object(variant: Variant, mask: NDArray[np.bool_], scale: float) -> SceneObject:
    ys, xs = np.nonzero(mask)
    return SceneObject(
        kind=variant.kind,
        variant=variant.name,
        mask=mask,
        centre=(float(xs.mean()), float(ys.mean())),
        area=len(xs),
        size=scale,
    )


def _plan(rng: Rng, split: Split) -> list[_Plan]:
    """What is in the scene: mostly a group of one kind, and other things.

    The group is in a row, in a column or scattered.
    """
    index = int(rng.choice(len(_COUNTS), p=_COUNTS))
    count = index + MIN_OBJECTS
    odds = np.array([_OFTEN.get(kind, 1.0) for kind in kinds()])
    names = rng.choice(kinds(), count, replace=False, p=odds / odds.sum())

    groups = _groups(rng, count)
    scales = _scales(rng, index, count)
    if groups[0] > 1 and rng.random() < 0.35:
        _single_out(rng, scales, groups[0], _SCALES[index])

    plans: list[_Plan] = []
    for number, members in enumerate(groups):
        spots = _spots(rng, members) if number == 0 and members > 1 else [None] * members
        for spot in spots:
            options = variants_of(str(names[number]), split)
            plans.append(_Plan(options[rng.integers(len(options))], scales[len(plans)], spot))
    return [plans[i] for i in rng.permutation(len(plans))]


def _groups(rng: Rng, count: int) -> list[int]:
    """How many objects there are of each kind; the first is the largest group."""
    groups: list[int] = []
    if rng.random() < 0.8:
        groups.append(min(count, int(rng.choice([2, 3, 4, 5], p=[0.42, 0.33, 0.19, 0.06]))))
        if count - groups[0] >= 2 and rng.random() < 0.35:
            groups.append(2)
    return groups + [1] * (count - sum(groups))


def _scales(rng: Rng, index: int, count: int) -> list[float]:
    """A scale for each object: all alike in some scenes, anything in the range in the others."""
    low, high = _SCALES[index]
    if rng.random() < 0.25:
        middle = rng.uniform(low * 1.15, high * 0.87)
        return [float(s) for s in rng.uniform(middle * 0.87, middle * 1.15, count)]
    return [float(s) for s in rng.uniform(low, high, count)]


def _single_out(rng: Rng, scales: list[float], members: int, limits: tuple[float, float]) -> None:
    """Makes one of the first `members` clearly the largest or the smallest of them.

    `limits` are the smallest and the largest scale.
    """
    low, high = limits
    if rng.random() < 0.5:
        border = float(rng.uniform(low * 1.35, high / 1.05))
        own, others = (border, high), (low, border / 1.3)
    else:
        border = float(rng.uniform(low * 1.05, high / 1.35))
        own, others = (low, border), (border * 1.3, high)
    for i in range(members):
        scales[i] = float(rng.uniform(*others))
    scale = float(rng.uniform(*own))
    scales[int(rng.integers(members))] = scale


def _spots(rng: Rng, members: int) -> list[tuple[float, float] | None]:
    """Where the members of a group go: a row, a column, or anywhere."""
    layout = rng.random()
    if layout > 0.5:
        return [None] * members
    start, stop = rng.uniform(0.1, 0.25), rng.uniform(0.75, 0.9)
    along = np.linspace(start, stop, members) + rng.uniform(-0.05, 0.05, members)
    across = rng.uniform(0.2, 0.8) + rng.uniform(-0.1, 0.1, members)
    row = layout < 0.33
    return [
        (float(a), float(b)) if row else (float(b), float(a))
        for a, b in zip(along, across, strict=True)
    ]


def _sprite(rng: Rng, plan: _Plan, size: int) -> tuple[Image.Image, float]:
    """The object as it will be pasted, RGBA, cut to its box, and its drawn scale in pixels."""
    glyph = picture(plan.variant)
    factor = plan.scale * size / (glyph.width * glyph.height) ** 0.5
    factor = min(factor, 0.45 * size / max(glyph.size))
    width, height = max(4, round(glyph.width * factor)), max(4, round(glyph.height * factor))
    sprite = glyph.resize((width, height), Image.Resampling.BICUBIC)

    if rng.random() < 0.5:
        sprite = sprite.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    angle = float(rng.normal(0, 9)) if rng.random() < 0.92 else float(rng.uniform(-40, 40))
    if abs(angle) > 2:
        sprite = sprite.rotate(angle, Image.Resampling.BILINEAR, expand=True)

    light = float(rng.uniform(0.85, 1.08))
    red, green, blue, alpha = sprite.split()
    table = [min(255, round(v * light)) for v in range(256)]
    sprite = Image.merge("RGBA", (red.point(table), green.point(table), blue.point(table), alpha))
    return sprite.crop(alpha.getbbox()), (width * height) ** 0.5


def _place(
    rng: Rng, plan: _Plan, solid: NDArray[np.bool_], labels: NDArray[np.int8], full: list[int]
) -> tuple[int, int] | None:
    """The left top corner of an object's box, or None where it fits nowhere.

    Most objects avoid all others while that works; the rest may cover up to a third of what is
    there.

    Args:
        rng: What the draws are taken from.
        plan: The object.
        solid: bool [h, w]: the pixels of its box that it covers.
        labels: int8 [S, S]: the number of the object on top, -1 for none.
        full: Pixels of each object that was placed, before anything covered it.
    """
    height, width = solid.shape
    size = labels.shape[0]
    visible = np.zeros(0, np.intp)
    if full:
        visible = np.bincount(labels[labels >= 0], minlength=len(full))
    floor = np.ceil(np.array(full) * MIN_VISIBLE) if full else visible
    apart = rng.random() < 0.7

    for attempt in range(_TRIES):
        x, y = _corner(rng, plan, attempt, size, (width, height))
        under = labels[y : y + height, x : x + width][solid]
        under = under[under >= 0]
        if not len(under):
            return x, y
        if apart and attempt < _TRIES * 3 // 4:
            continue
        if np.all(visible - np.bincount(under, minlength=len(full)) >= floor):
            return x, y
    return None


def _corner(
    rng: Rng, plan: _Plan, attempt: int, size: int, box: tuple[int, int]
) -> tuple[int, int]:
    """The left top corner to try for a box, (width, height), in a scene of this size.

    The first half of the attempts are near the planned place, the others anywhere.
    """
    width, height = box
    if plan.where is None or attempt >= _TRIES // 2:
        return int(rng.integers(size - width + 1)), int(rng.integers(size - height + 1))
    spread = 0.01 * attempt
    x = round((plan.where[0] + rng.uniform(-spread, spread)) * size - width / 2)
    y = round((plan.where[1] + rng.uniform(-spread, spread)) * size - height / 2)
    return min(max(x, 0), size - width), min(max(y, 0), size - height)
