"""Drawn scenes in more colours than there are glyphs and backgrounds, so that shapes are what training goes by."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ris.calibration.scenes import Scene, draw_background, looks

_GREY = np.array([0.299, 0.587, 0.114], np.float32)


def vary(scene: Scene, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The scene's image with its objects' and its background's saturation and brightness changed, sometimes another
    background shining through, blur and noise: uint8 RGB [S, S, 3]; masks stay true.

    Hues do not change: held-out variants and backgrounds differ from training's in hue and must not be drawn here. What
    an expression may name by its looks ("red apple") changes little.
    """
    image = scene.image.astype(np.float32)
    behind = np.ones(image.shape[:2], np.bool_)
    for thing in scene.objects:
        behind &= ~thing.mask
        if rng.random() < 0.6:
            named = looks()[thing.kind, thing.variant] is not None
            image[thing.mask] = _recoloured(image[thing.mask], rng, (0.85, 1.1) if named else (0.0, 1.25), named)
    if rng.random() < 0.4:
        other = draw_background(rng, "train", image.shape[0]).astype(np.float32)
        share = rng.uniform(0.1, 0.6)
        image[behind] = (1 - share) * image[behind] + share * other[behind]
    if rng.random() < 0.7:
        image[behind] = _recoloured(image[behind], rng, (0.1, 1.3), False)
    middle = image.mean()
    image = middle + rng.uniform(0.85, 1.15) * (image - middle) + rng.uniform(-12, 12)
    if rng.random() < 0.3:
        image += rng.normal(0, rng.uniform(1, 8), image.shape)
    out = np.clip(np.rint(image), 0, 255).astype(np.uint8)
    if rng.random() < 0.25:
        out = np.asarray(Image.fromarray(out).filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0)))))
    return out


def _recoloured(
    pixels: NDArray[np.float32], rng: np.random.Generator, saturation: tuple[float, float], named: bool
) -> NDArray[np.float32]:
    """pixels [P, 3] with another saturation (a factor) and brightness."""
    grey = (pixels @ _GREY)[:, None]
    light = rng.uniform(0.92, 1.08) if named else rng.uniform(0.75, 1.2)
    changed = (grey + np.float32(rng.uniform(*saturation)) * (pixels - grey)) * np.float32(light)
    return changed.astype(np.float32)
