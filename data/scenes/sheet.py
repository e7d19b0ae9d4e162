"""Contact sheets: scenes as pictures, with expressions and the masks they mean."""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw

from ris.data.scenes.grammar import make_samples, target_mask
from ris.data.scenes.scene import Scene, Split, make_scene

_LINE = 16  # pixels of text under a picture
_TINT = np.array([255, 0, 60], np.float32)


def expression_tiles(scene: Scene, seed: int, count: int) -> list[Image.Image]:
    """A picture for each of `count` expressions, which stands below it.

    The targets are tinted, everything else is dimmed.
    """
    side = scene.image.shape[0]
    tiles = []
    for sample in make_samples(scene, seed, count):
        mask = target_mask(scene, sample)[..., None]
        pixels = np.where(mask, 0.65 * scene.image + 0.35 * _TINT, 0.6 * scene.image)
        tile = Image.new("RGB", (side, side + _LINE), (255, 255, 255))
        tile.paste(Image.fromarray(pixels.astype(np.uint8)), (0, 0))
        caption = f"{sample.expression} [{sample.kind}]"
        ImageDraw.Draw(tile).text((2, side + 2), caption, fill=(0, 0, 0))
        tiles.append(tile)
    return tiles


def contact_sheet(split: Split, seeds: range, per_scene: int = 4, size: int = 256) -> Image.Image:
    """A row for each scene: the scene itself, then expressions about it.

    Args:
        split: The split of the scenes.
        seeds: Their numbers.
        per_scene: Expressions a scene.
        size: The side of a scene in pixels.
    """
    width, height = (per_scene + 1) * size, len(seeds) * (size + _LINE)
    sheet = Image.new("RGB", (width, height), (255, 255, 255))
    for row, seed in enumerate(seeds):
        scene = make_scene(seed, split, size)
        tiles = [Image.fromarray(scene.image), *expression_tiles(scene, seed, per_scene)]
        for column, tile in enumerate(tiles):
            sheet.paste(tile, (column * size, row * (size + _LINE)))
    return sheet
