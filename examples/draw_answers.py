"""The README's picture: drawn scenes, what is asked of each, and what the built-in demo answers.

    python examples/draw_answers.py                 # writes docs/images/examples.png
    python examples/draw_answers.py --count 2000    # how many answers of the score are right

The scenes are consecutive ones of the held-out split, and each is asked its first expression: both
as `ris-eval` has them. Nothing is picked by eye. The first scene is the earliest one from which on
as many of the tiles are wrong as the score lets expect (`choose_tiles`).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter, ImageFont

from ris.data.samples import AnnotatedImage, Truth, scene_images
from ris.runtime import BUILT_IN, Model, Segmentation, load
from ris.runtime.masks import mask_from_logits, overlay

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

PICTURE = Path(__file__).parent.parent / "docs" / "images" / "examples.png"
ENGINE = "onnxruntime"
"""The same engine everywhere, so that the same answers are drawn everywhere."""

RIGHT, ASKED = 1768, 2000
"""Right answers, and all those behind the table of docs/measurements/demo.md (`--count`)."""

COLUMNS, ROWS = 4, 4
TILES = COLUMNS * ROWS
WRONG = round(TILES * (1 - RIGHT / ASKED))
"""Tiles that are wrong, where the picture is wrong as often as the score."""

SIDE = 320
"""Pixels of a scene in the picture; it is asked at the score's 256."""

GAP, MARGIN = 20, 20
"""Pixels between tiles, and around all of them."""

FONT_SIZE, LINES, LEADING = 23, 2, 28
"""The expression below a tile: pixels, lines at most, and pixels from line to line."""

FRAME = 5
"""Pixels of the frame around a tile with a verdict."""

HALO = 2
"""Pixels of the white line around a mask."""

INK, RED, GREEN = (30, 30, 30), (214, 20, 40), (0, 120, 70)
TINT = (255, 0, 200)
"""The colour of masks; no thing in the scenes has it."""


@dataclass(frozen=True)
class Tile:
    """One scene with one expression, and the answer."""

    name: str
    """The scene's split and number, as in `ris-eval`'s results."""

    rgb: NDArray[np.uint8]
    """The scene, [256, 256, 3]."""

    truth: Truth
    """The expression and what it means."""

    answer: Segmentation
    """What the bundle says; its mask is empty where it refuses."""

    @property
    def is_right(self) -> bool:
        """What is there is found with an IoU of at least 0.5, what is not there is refused."""
        if not self.truth.targeted:
            return self.answer.is_no_target

        shared = (self.answer.mask & self.truth.mask).sum()
        return bool(2 * shared >= (self.answer.mask | self.truth.mask).sum())

    @property
    def verdict(self) -> str:
        """What the tile says beside the expression; nothing where the thing was found."""
        if self.is_right:
            return "" if self.truth.targeted else "not there: refused"
        if not self.truth.targeted:
            return "wrong: it is not there"
        return "wrong: refused, it is there" if self.answer.is_no_target else "wrong"


def ask(model: Model, image: AnnotatedImage) -> list[Tile]:
    """All that is asked of one scene, answered."""
    scene = model.encode_image(image.rgb)
    answers = scene.segment_many([truth.expression for truth in image.truths])
    return [
        Tile(image.name, image.rgb, truth, answer)
        for truth, answer in zip(image.truths, answers, strict=True)
    ]


def first_expressions(model: Model, first: int = 0) -> Iterator[Tile]:
    """The held-out scenes from number `first` on, without end, each with its first expression."""
    for number in count(first):
        (image,) = scene_images("heldout", 1, first=number)
        yield from ask(model, image)


def choose_tiles(answered: Iterable[Tile]) -> list[Tile]:
    """The first `TILES` in a row with exactly `WRONG` wrong answers.

    Raises ValueError where there is no such row.
    """
    row: list[Tile] = []
    for tile in answered:
        row = [*row, tile][-TILES:]
        if len(row) == TILES and sum(not tile.is_right for tile in row) == WRONG:
            return row
    raise ValueError(f"no {TILES} answers in a row have exactly {WRONG} wrong ones")


def count_right(model: Model, samples: int) -> int:
    """How many of the first `samples` held-out expressions, which `ris-eval` asks, are right."""
    images = scene_images("heldout", samples)
    return sum(tile.is_right for image in images for tile in ask(model, image))


def draw_scene(tile: Tile) -> Image.Image:
    """The scene with the answer's mask in colour and a white line around it, `SIDE` pixels wide."""
    scene = Image.fromarray(tile.rgb).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    if tile.answer.is_no_target:
        return scene

    # from the logits: a mask of 256 pixels enlarged would have steps
    mask = mask_from_logits(tile.answer.logits, SIDE, SIDE)
    grown = Image.fromarray(mask).convert("L").filter(ImageFilter.MaxFilter(2 * HALO + 1))
    pixels = overlay(np.asarray(scene), mask, TINT)
    pixels[(np.asarray(grown) > 0) & ~mask] = 255
    return Image.fromarray(pixels)


def wrap(text: str, font: Font, width: int) -> list[str]:
    """The words in lines of at most `width` pixels."""
    lines: list[str] = []
    for word in text.split():
        if lines and font.getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def draw_tile(sheet: Image.Image, tile: Tile, corner: tuple[int, int]) -> None:
    """The scene with its left top corner there, a frame and a verdict, the expression below."""
    x, y = corner
    font = ImageFont.load_default(FONT_SIZE)
    draw = ImageDraw.Draw(sheet)
    sheet.paste(draw_scene(tile), (x, y))

    if tile.verdict:
        colour = GREEN if tile.is_right else RED
        box = (x - FRAME, y - FRAME, x + SIDE + FRAME - 1, y + SIDE + FRAME - 1)
        draw.rectangle(box, outline=colour, width=FRAME)
        width = round(font.getlength(tile.verdict))
        draw.rectangle((x - FRAME, y - FRAME, x + width + 12, y + LEADING + 4), fill=colour)
        draw.text((x + 4, y + LEADING // 2), tile.verdict, "white", font, anchor="lm")

    for line, text in enumerate(wrap(f"“{tile.truth.expression}”", font, SIDE)):
        draw.text((x, y + SIDE + FRAME + 4 + line * LEADING), text, INK, font)


def draw_picture(tiles: list[Tile]) -> Image.Image:
    """All tiles, row by row."""
    height = SIDE + FRAME + 4 + LINES * LEADING
    size = (
        2 * MARGIN + COLUMNS * SIDE + (COLUMNS - 1) * GAP,
        2 * MARGIN + ROWS * height + (ROWS - 1) * GAP,
    )
    sheet = Image.new("RGB", size, "white")
    for place, tile in enumerate(tiles):
        row, column = divmod(place, COLUMNS)
        corner = MARGIN + column * (SIDE + GAP), MARGIN + row * (height + GAP)
        draw_tile(sheet, tile, corner)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=PICTURE, help="the picture's file")
    parser.add_argument(
        "--count", type=int, metavar="N", help="count right answers to N expressions instead"
    )
    given = parser.parse_args()

    with load(BUILT_IN, engine=ENGINE) as model:
        if given.count:
            print(f"{count_right(model, given.count)} of {given.count} answers are right")
            return
        tiles = choose_tiles(first_expressions(model))

    given.out.parent.mkdir(parents=True, exist_ok=True)
    picture = draw_picture(tiles)
    # Pillow dithers towards a given palette only; without dithering the skies have steps
    palette = picture.quantize(256, kmeans=3)
    shown = picture.quantize(palette=palette, dither=Image.Dither.FLOYDSTEINBERG)
    shown.save(given.out, optimize=True)
    print(f"{tiles[0].name} to {tiles[-1].name}, {WRONG} of {TILES} wrong: {given.out}")


if __name__ == "__main__":
    main()
