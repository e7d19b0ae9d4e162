"""Drawn scenes in more colours and shapes than there are glyphs and backgrounds.

Otherwise a model learns the glyphs and backgrounds by heart.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ris.data.scenes import COLOURS, Scene, draw_background, hue_turn, variant_colours

Float = NDArray[np.float32]

LIGHTS = np.linspace(0.78, 1.28, 11, dtype=np.float32)
"""Factors by which the light of two pictures may differ where their distance is measured."""

APART = 15.0
"""Root mean square in grey levels: two pictures of one shape that are nearer are one variant."""

_GREY = np.array([0.299, 0.587, 0.114], np.float32)
"""What each channel gives to the grey level."""

_TRIES = 4
"""Draws of a paint before an object keeps its own colours."""

_CELLS = 6
"""The grid of a warp is this many cells wide."""

_SHARE = 0.03
"""The furthest that a warp moves a corner of its grid, either way, as a share of the side."""


def warped(scene: Scene, rng: np.random.Generator) -> Scene:
    """Half the scenes as they are, half pulled out of shape like rubber.

    Masks, centres and areas follow the image. A warp that leaves a thing without pixels is dropped:
    the scene stays as it is.
    """
    side = scene.image.shape[0]
    if rng.random() < 0.5:
        return scene
    mesh = _mesh(side, rng)

    def pulled(picture: NDArray[np.uint8], resampling: Image.Resampling) -> NDArray[np.uint8]:
        image = Image.fromarray(picture)
        return np.asarray(image.transform((side, side), Image.Transform.MESH, mesh, resampling))

    labels = np.zeros((side, side), np.uint8)
    for label, thing in enumerate(scene.objects, start=1):
        labels[thing.mask] = label
    labels = pulled(labels, Image.Resampling.NEAREST)

    things = []
    for label, thing in enumerate(scene.objects, start=1):
        mask = labels == label
        ys, xs = np.nonzero(mask)
        if not len(xs):
            return scene
        centre = (float(xs.mean()), float(ys.mean()))
        things.append(replace(thing, mask=mask, centre=centre, area=len(xs)))

    image = pulled(scene.image, Image.Resampling.BILINEAR)
    return replace(scene, image=image, objects=tuple(things))


def _mesh(side: int, rng: np.random.Generator) -> list[Any]:
    """Pillow's mesh of a random warp: each cell's box, and the quadrangle that is drawn there."""
    line = np.linspace(0, side, _CELLS + 1)
    grid = np.stack(np.meshgrid(line, line, indexing="xy"), -1)  # [row, column, xy]
    reach = rng.uniform(0.2, 1.0) * _SHARE * side
    grid[1:-1, 1:-1] += rng.uniform(-reach, reach, (_CELLS - 1, _CELLS - 1, 2))

    edges = [int(edge) for edge in np.rint(line)]
    mesh = []
    for row in range(_CELLS):
        for column in range(_CELLS):
            box = (edges[column], edges[row], edges[column + 1], edges[row + 1])
            (nw, ne), (sw, se) = grid[row : row + 2, column : column + 2]
            corners = np.concatenate([nw, sw, se, ne])  # in Pillow's order
            mesh.append((box, tuple(float(v) for v in corners)))
    return mesh


def vary(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scene's image in other colours, with clutter behind its objects: uint8 RGB [S, S, 3].

    Some images get blur and noise, too. The scene's masks stay true. Objects change colour where no
    held-out variant comes near (`repainted`); kinds that are told apart by colour ("red apple")
    change little. Backgrounds stay training's: faded, mixed with another one, and with flat shapes
    on them.
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
        blur = ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0)))
        out = np.asarray(Image.fromarray(out).filter(blur))
    return out


def repainted(pixels: Float, kind: str, variant: str, rng: np.random.Generator) -> Float:
    """An object's pixels with another hue, saturation, tint and contrast.

    Args:
        pixels: RGB, float32 [P, 3].
        kind: The object's kind. A kind with names for colours keeps its hue but for a shade.
        variant: Which of the kind's glyphs it is.
        rng: Draws the colours.

    Returns:
        float32 [P, 3]; `pixels` itself where no draw stays away from every held-out variant.
    """
    own, held_out = variant_colours(kind, variant)
    # a glyph that is near a held-out one already may stay as near
    limits = [min(APART, distance(own, other)) for other in held_out]
    for _ in range(_TRIES):
        paint = _object_paint(kind, rng)
        power = float(rng.uniform(0.7, 1.5))
        new = _developed(own @ paint, power)
        pairs = zip(held_out, limits, strict=True)
        if all(distance(new, other) >= limit for other, limit in pairs):
            return _developed(pixels @ paint, power)
    return pixels


def _object_paint(kind: str, rng: np.random.Generator) -> Float:
    if kind in COLOURS:
        hue, saturation = float(rng.normal(0, 4)), float(rng.uniform(0.7, 1.2))
        return _paint(hue, saturation, rng.uniform(0.9, 1.08, 3))

    gain = rng.uniform(0.75, 1.2, 3) if rng.random() < 0.6 else rng.uniform(0.4, 1.25, 3)
    return _paint(float(rng.normal(0, 40)), float(rng.uniform(0.0, 1.25)), gain)


def _developed(pixels: Float, power: float) -> Float:
    """Grey levels raised to a power, 255 staying itself: below 1 the middle ones are lighter."""
    return (255 * (np.clip(pixels, 0, 255) / 255) ** power).astype(np.float32)


def distance(colours: Float, other: Float) -> float:
    """Root mean square of the difference of two pictures' pixels [P, 3], in the best light."""
    lit = np.clip(colours * LIGHTS[:, None, None], 0, 255)
    return float(np.sqrt(((lit - other) ** 2).mean((1, 2)).min()))


def _paint(hue: float, saturation: float, gain: NDArray[np.float64]) -> Float:
    """The matrix [3, 3] that changes colours: pixels [P, 3] @ matrix.

    It turns hues by `hue` degrees, then scales saturation (0: grey), then each channel by `gain`.
    """
    fade = saturation * np.eye(3) + (1 - saturation) * np.outer(_GREY, np.ones(3))
    matrix: Float = (hue_turn(hue).T @ fade * gain).astype(np.float32)
    return matrix


def _cluttered(image: Float, behind: NDArray[np.bool_], rng: np.random.Generator) -> Float:
    """The image with 2 to 24 flat triangles, quadrangles and lines.

    Their colours are near those of the image's background, which is where `behind` is true.
    """
    size = image.shape[0]
    canvas = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    draw, colours = ImageDraw.Draw(canvas), image[behind]
    count, reach = int(rng.integers(2, 25)), float(rng.uniform(0.03, 0.25)) * size

    for _ in range(count):
        middle = rng.uniform(0, size, 2)
        offsets = rng.uniform(-reach, reach, (int(rng.integers(2, 5)), 2))
        corners = [(float(x), float(y)) for x, y in middle + offsets]
        colour = colours[int(rng.integers(len(colours)))] * rng.uniform(0.7, 1.3)
        fill = tuple(int(v) for v in np.clip(colour, 0, 255))
        if len(corners) == 2:
            draw.line(corners, fill, int(rng.integers(1, 6)))
        else:
            draw.polygon(corners, fill)
    return np.asarray(canvas, np.float32)
