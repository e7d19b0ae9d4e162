"""Drawn scenes in more colours and shapes than there are glyphs and backgrounds, so that neither is
learnt by heart.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ris.data.scenes import COLOURS, Scene, draw_background, hue_turn, variant_colours

Float = NDArray[np.float32]
LIGHTS = np.linspace(
    0.78, 1.28, 11, dtype=np.float32
)  # by how much the light of two scenes may differ
APART = 15.0  # grey levels, r.m.s.: nearer than this, two pictures of one shape are one variant
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_TRIES = 4
_CELLS = 6  # a warp's grid is that many cells wide
_SHARE = 0.03  # of the side: the furthest that a warp moves a corner of its grid, either way


def warped(scene: Scene, rng: np.random.Generator) -> Scene:
    """Half the scenes as they are, half as on rubber that is pulled here and there; masks, centres
    and areas with it. No thing loses all its pixels: such a draw gives the scene as it is."""
    side = scene.image.shape[0]
    if rng.random() < 0.5:
        return scene
    line = np.linspace(0, side, _CELLS + 1)
    grid = np.stack(np.meshgrid(line, line, indexing="xy"), -1)  # [row, column, xy]
    reach = rng.uniform(0.2, 1.0) * _SHARE * side
    grid[1:-1, 1:-1] += rng.uniform(-reach, reach, (_CELLS - 1, _CELLS - 1, 2))
    line = np.rint(line).astype(int)
    mesh = []
    for row in range(_CELLS):
        for column in range(_CELLS):
            box = (line[column], line[row], line[column + 1], line[row + 1])
            corners = grid[
                row : row + 2, column : column + 2
            ]  # as Pillow wants them: nw, sw, se, ne
            quad = np.concatenate([corners[0, 0], corners[1, 0], corners[1, 1], corners[0, 1]])
            mesh.append((tuple(int(v) for v in box), tuple(float(v) for v in quad)))
    labels = np.zeros((side, side), np.uint8)
    for i, thing in enumerate(scene.objects):
        labels[thing.mask] = i + 1

    def pulled(picture: NDArray[np.uint8], how: Image.Resampling) -> NDArray[np.uint8]:
        return np.asarray(
            Image.fromarray(picture).transform((side, side), Image.Transform.MESH, mesh, how)
        )

    labels = pulled(labels, Image.Resampling.NEAREST)
    things = []
    for i, thing in enumerate(scene.objects):
        ys, xs = np.nonzero(labels == i + 1)
        if not len(xs):
            return scene
        things.append(
            replace(
                thing,
                mask=labels == i + 1,
                centre=(float(xs.mean()), float(ys.mean())),
                area=len(xs),
            )
        )
    return replace(
        scene, image=pulled(scene.image, Image.Resampling.BILINEAR), objects=tuple(things)
    )


def vary(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scene's image in other colours, with clutter behind its objects, and sometimes blur and
    noise: uint8 RGB [S, S, 3]. Masks stay true.

    Objects change colour where no held-out variant comes near (`repainted`); kinds that are told
    apart by colour ("red apple") only a little. Backgrounds stay training's: faded, mixed with
    another one, and with flat shapes on them.
    """
    image = scene.image.astype(np.float32)
    behind = np.ones(image.shape[:2], np.bool_)
    for thing in scene.objects:
        behind &= ~thing.mask
        if rng.random() < 0.5:
            image[thing.mask] = repainted(image[thing.mask], thing.kind, thing.variant, rng)
    if rng.random() < 0.4:
        other = draw_background(rng, "train", image.shape[0]).astype(np.float32)
        share = rng.uniform(0.1, 0.6)
        image[behind] = (1 - share) * image[behind] + share * other[behind]
    if rng.random() < 0.5:
        image[behind] = _cluttered(image, behind, rng)[behind]
    if rng.random() < 0.6:
        paint = _paint(0.0, float(rng.uniform(0.1, 1.3)), rng.uniform(0.75, 1.2, 1))
        image[behind] = image[behind] @ paint
    if rng.random() < 0.3:
        image += rng.normal(0, rng.uniform(1, 8), image.shape)
    out = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        out = np.asarray(
            Image.fromarray(out).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0))))
        )
    return out


def repainted(pixels: Float, kind: str, variant: str, rng: np.random.Generator) -> Float:
    """Pixels [P, 3] of an object of this kind and variant, with another hue, saturation, tint and
    contrast; unchanged where no draw stays away from every held-out variant. Kinds with names for
    colours keep their hue but for a shade.
    """
    own, held_out = variant_colours(kind, variant)
    limits = [min(APART, distance(own, other)) for other in held_out]
    for _ in range(_TRIES):
        if kind in COLOURS:
            paint = _paint(
                float(rng.normal(0, 4)), float(rng.uniform(0.7, 1.2)), rng.uniform(0.9, 1.08, 3)
            )
        else:
            gain = rng.uniform(0.75, 1.2, 3) if rng.random() < 0.6 else rng.uniform(0.4, 1.25, 3)
            paint = _paint(float(rng.normal(0, 40)), float(rng.uniform(0.0, 1.25)), gain)
        power = float(rng.uniform(0.7, 1.5))
        new = _developed(own @ paint, power)
        if all(
            distance(new, other) >= limit for other, limit in zip(held_out, limits, strict=True)
        ):
            return _developed(pixels @ paint, power)
    return pixels


def _developed(pixels: Float, power: float) -> Float:
    """Grey levels raised to a power, 255 staying itself: below 1 the middle ones are lighter, above
    1 darker.
    """
    return (255 * (np.clip(pixels, 0, 255) / 255) ** power).astype(np.float32)


def distance(colours: Float, other: Float) -> float:
    """Root of the mean squared difference of two pictures' pixels [P, 3], in the light that makes
    it least.
    """
    lit = np.clip(colours * LIGHTS[:, None, None], 0, 255)
    return float(np.sqrt(((lit - other) ** 2).mean((1, 2)).min()))


def _paint(hue: float, saturation: float, gain: NDArray[np.float64]) -> Float:
    """The matrix [3, 3] that turns hues by some degrees, then scales saturation (0: grey) and each
    channel; pixels [P, 3] are multiplied by it from the left."""
    fade = saturation * np.eye(3) + (1 - saturation) * np.outer(_GREY, np.ones(3))
    matrix: Float = (hue_turn(hue).T @ fade * gain).astype(np.float32)
    return matrix


def _cluttered(image: Float, behind: NDArray[np.bool_], rng: np.random.Generator) -> Float:
    """The image with 2 to 24 flat triangles, quadrangles and lines in about the colours of its
    background.
    """
    size = image.shape[0]
    canvas = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    draw, colours = ImageDraw.Draw(canvas), image[behind]
    count, reach = int(rng.integers(2, 25)), float(rng.uniform(0.03, 0.25)) * size
    for _ in range(count):
        middle = rng.uniform(0, size, 2)
        corners = [
            (float(x), float(y))
            for x, y in middle + rng.uniform(-reach, reach, (int(rng.integers(2, 5)), 2))
        ]
        colour = colours[int(rng.integers(len(colours)))] * rng.uniform(0.7, 1.3)
        fill = tuple(int(v) for v in np.clip(colour, 0, 255))
        if len(corners) == 2:
            draw.line(corners, fill, int(rng.integers(1, 6)))
        else:
            draw.polygon(corners, fill)
    return np.asarray(canvas, np.float32)
