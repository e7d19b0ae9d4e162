"""A sheet of answers: each picture with the answer tinted and what is right outlined."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from ris.runtime.masks import COLOURS, overlay

SIDE = 256
"""The side of a tile's picture in pixels."""

COLUMNS = 4
"""Tiles in a row."""

_WORDS = 18  # pixels below a picture for its words


@dataclass(frozen=True)
class Tile:
    """One answer of a sheet."""

    rgb: NDArray[np.uint8]
    """The picture, uint8 [h, w, 3]."""

    mask: NDArray[np.bool_]
    """The answer, bool [H, W]."""

    truth: NDArray[np.bool_]
    """What is right, bool [H, W]."""

    words: str
    """What was asked."""


def sheet(tiles: Sequence[Tile]) -> NDArray[np.uint8]:
    """The tiles in rows, uint8 RGB [H, W, 3]: answers red, what is right outlined in green."""
    rows = -(-len(tiles) // COLUMNS)
    page = Image.new("RGB", (COLUMNS * SIDE, rows * (SIDE + _WORDS)), "white")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for i, tile in enumerate(tiles):
        x, y = i % COLUMNS * SIDE, i // COLUMNS * (SIDE + _WORDS)
        page.paste(Image.fromarray(_painted(tile)), (x, y))
        words = tile.words
        while draw.textlength(words, font) > SIDE - 6:
            words = words[:-2]
        draw.text((x + 3, y + SIDE + 1), words, "black", font)
    return np.asarray(page)


def _painted(tile: Tile) -> NDArray[np.uint8]:
    """The picture with both masks, uint8 [SIDE, SIDE, 3]."""
    mask, inside = (
        _square(np.asarray(one, np.uint8), Image.Resampling.NEAREST).astype(np.bool_)
        for one in (tile.mask, tile.truth)
    )
    rgb = overlay(_square(tile.rgb, Image.Resampling.BILINEAR), mask, COLOURS[0])
    edge = inside.copy()
    edge[1:-1, 1:-1] &= ~(
        inside[2:, 1:-1] & inside[:-2, 1:-1] & inside[1:-1, 2:] & inside[1:-1, :-2]
    )
    rgb[edge] = COLOURS[2]
    return rgb


def _square(values: NDArray[np.uint8], resampling: Image.Resampling) -> NDArray[np.uint8]:
    return np.asarray(Image.fromarray(values).resize((SIDE, SIDE), resampling))
