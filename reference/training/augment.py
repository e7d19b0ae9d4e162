"""Drawn scenes in more colours than there are glyphs and backgrounds, so that shapes are what training goes by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from ris.calibration.scenes import COLOURS, Scene, draw_background, hue_turn, variant_colours

Float = NDArray[np.float32]
LIGHTS = np.linspace(0.78, 1.28, 11, dtype=np.float32)  # by how much the light of two scenes may differ
APART = 15.0  # grey levels, r.m.s.: nearer than this, two pictures of one shape are one variant
_GREY = np.array([0.299, 0.587, 0.114], np.float32)
_TRIES = 4


def vary(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scene's image in other colours, with clutter behind its objects, and sometimes blur and noise: uint8 RGB
    [S, S, 3]. Masks stay true.

    Objects change colour where no held-out variant comes near (`repainted`); kinds that are told apart by colour ("red
    apple") keep theirs. Backgrounds stay training's: faded, mixed with another one, and with flat shapes on them.
    """
    image = scene.image.astype(np.float32)
    behind = np.ones(image.shape[:2], np.bool_)
    for thing in scene.objects:
        behind &= ~thing.mask
        if thing.kind not in COLOURS and rng.random() < 0.4:
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
        out = np.asarray(Image.fromarray(out).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0)))))
    return out


def repainted(pixels: Float, kind: str, variant: str, rng: np.random.Generator) -> Float:
    """Pixels [P, 3] of an object of this kind and variant, with another hue, saturation and tint; unchanged where no
    draw stays away from every held-out variant."""
    own, held_out = variant_colours(kind, variant)
    limits = [min(APART, distance(own, other)) for other in held_out]
    for _ in range(_TRIES):
        paint = _paint(float(rng.normal(0, 40)), float(rng.uniform(0.0, 1.25)), rng.uniform(0.75, 1.2, 3))
        new = own @ paint
        if all(distance(new, other) >= limit for other, limit in zip(held_out, limits, strict=True)):
            painted: Float = pixels @ paint
            return painted
    return pixels


def distance(colours: Float, other: Float) -> float:
    """Root of the mean squared difference of two pictures' pixels [P, 3], in the light that makes it least."""
    lit = np.clip(colours * LIGHTS[:, None, None], 0, 255)
    return float(np.sqrt(((lit - other) ** 2).mean((1, 2)).min()))


def _paint(hue: float, saturation: float, gain: NDArray[np.float64]) -> Float:
    """The matrix [3, 3] that turns hues by some degrees, then scales saturation (0: grey) and each channel; pixels
    [P, 3] are multiplied by it from the left."""
    fade = saturation * np.eye(3) + (1 - saturation) * np.outer(_GREY, np.ones(3))
    matrix: Float = (hue_turn(hue).T @ fade * gain).astype(np.float32)
    return matrix


def _cluttered(image: Float, behind: NDArray[np.bool_], rng: np.random.Generator) -> Float:
    """The image with 2 to 24 flat triangles, quadrangles and lines in about the colours of its background."""
    size = image.shape[0]
    canvas = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    draw, colours = ImageDraw.Draw(canvas), image[behind]
    count, reach = int(rng.integers(2, 25)), float(rng.uniform(0.03, 0.25)) * size
    for _ in range(count):
        middle = rng.uniform(0, size, 2)
        corners = [(float(x), float(y)) for x, y in middle + rng.uniform(-reach, reach, (int(rng.integers(2, 5)), 2))]
        colour = colours[int(rng.integers(len(colours)))] * rng.uniform(0.7, 1.3)
        fill = tuple(int(v) for v in np.clip(colour, 0, 255))
        if len(corners) == 2:
            draw.line(corners, fill, int(rng.integers(1, 6)))
        else:
            draw.polygon(corners, fill)
    return np.asarray(canvas, np.float32)
