"""For maintainers: writes the glyph atlas and its index from the font file.

    python -m ris.data.scenes.build_atlas /usr/share/fonts/truetype/noto/NotoColorEmoji.ttf

The same font gives the same bytes every time. Needs a Pillow with raqm
(`PIL.features.check("raqm")`), which joins hair and skin tone into one glyph. The font is Debian's
fonts-noto-color-emoji; its version is written to the index.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import struct
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont, features

from ris.data.scenes.glyph_source import Source
from ris.data.scenes.glyph_table import sources

STRIKE = 109
"""The only size of the font's bitmaps, pixels."""

LONGEST = 112
"""The longest side of a glyph in the atlas, pixels."""

COLUMNS = 16
"""Glyphs in a row of the atlas."""

DATA = Path(__file__).parent / "data"
"""Where the package keeps the atlas and its index."""


def draw_glyph(font: ImageFont.FreeTypeFont, text: str) -> Image.Image:
    """One glyph, RGBA, cut to its visible box and scaled down to `LONGEST`.

    Raises:
        ValueError: Where the text is not one glyph in this font.
    """
    canvas = Image.new("RGBA", (3 * STRIKE + 200, STRIKE + 80), (0, 0, 0, 0))
    ImageDraw.Draw(canvas).text((20, 20), text, font=font, embedded_color=True)
    box = canvas.getbbox()
    if box is None or box[2] - box[0] > 140:
        codes = " ".join(f"U+{ord(c):04X}" for c in text)
        raise ValueError(f"{text!r} ({codes}) is not one glyph in this font")

    glyph = canvas.crop(box)
    factor = LONGEST / max(glyph.size)
    if factor < 1:
        size = (round(glyph.width * factor), round(glyph.height * factor))
        glyph = glyph.resize(size, Image.Resampling.LANCZOS)

    pixels = np.asarray(glyph).copy()
    pixels[pixels[..., 3] < 8] = 0  # what cannot be seen costs bytes
    glyph = Image.fromarray(pixels)
    return glyph.crop(glyph.getbbox())


def font_version(font_bytes: bytes) -> str:
    """The version string of a TrueType font (name table, id 5).

    Raises:
        ValueError: Where the font has none.
    """
    tables = struct.unpack(">H", font_bytes[4:6])[0]
    for i in range(tables):
        tag, _, start, _ = struct.unpack(">4sIII", font_bytes[12 + 16 * i : 28 + 16 * i])
        if tag == b"name":
            version = _version_of(font_bytes, start)
            if version is not None:
                return version
    raise ValueError("the font states no version")


def _version_of(font_bytes: bytes, start: int) -> str | None:
    """The version in the name table at `start`, or None."""
    _, count, strings = struct.unpack(">HHH", font_bytes[start : start + 6])
    for i in range(count):
        at = start + 6 + 12 * i
        platform, _, _, name, length, offset = struct.unpack(">6H", font_bytes[at : at + 12])
        if name == 5:
            raw = font_bytes[start + strings + offset :][:length]
            return raw.decode("utf-16-be" if platform in (0, 3) else "latin-1")
    return None


def build(font_path: Path, folder: Path) -> None:
    """Writes glyphs.png and glyphs.json to `folder`."""
    if not features.check("raqm"):
        raise SystemExit(
            "this Pillow has no raqm, so hair and skin tone cannot be joined; Pillow's wheel has it"
        )
    data = font_path.read_bytes()
    font = ImageFont.truetype(io.BytesIO(data), STRIKE, layout_engine=ImageFont.Layout.RAQM)
    table = sources()
    atlas, boxes = _draw_atlas(font, table)

    lines = ",\n".join("  " + json.dumps(_entry(source, boxes[source.text])) for source in table)
    head = json.dumps(
        {
            "font": "Noto Color Emoji",
            "font_version": font_version(data),
            "font_sha256": hashlib.sha256(data).hexdigest(),
            "licence": "SIL Open Font License 1.1, see OFL.txt",
        }
    )
    index = f'{head[:-1]}, "variants": [\n{lines}\n]}}\n'  # one variant a line, for diffs

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "glyphs.json").write_text(index, encoding="utf-8")
    atlas.save(folder / "glyphs.png", optimize=True)


def _draw_atlas(
    font: ImageFont.FreeTypeFont, table: list[Source]
) -> tuple[Image.Image, dict[str, list[int]]]:
    """The atlas with every glyph once, and the box of each text in it."""
    texts = list(dict.fromkeys(source.text for source in table))
    rows = -(-len(texts) // COLUMNS)
    atlas = Image.new("RGBA", (COLUMNS * LONGEST, rows * LONGEST), (0, 0, 0, 0))
    boxes: dict[str, list[int]] = {}
    for i, text in enumerate(texts):
        glyph = draw_glyph(font, text)
        x, y = i % COLUMNS * LONGEST, i // COLUMNS * LONGEST
        atlas.paste(glyph, (x, y))
        boxes[text] = [x, y, x + glyph.width, y + glyph.height]
    return atlas, boxes


def _entry(source: Source, box: list[int]) -> dict[str, object]:
    """What the index says of a variant; what is usual is left out."""
    entry: dict[str, object] = {
        "kind": source.kind,
        "variant": source.variant,
        "split": source.split,
        "codes": [f"{ord(c):X}" for c in source.text],
        "box": box,
    }
    if source.hue:
        entry["hue"] = source.hue
    if source.gain != (1.0, 1.0, 1.0):
        entry["gain"] = list(source.gain)
    if source.look:
        entry["look"] = source.look
    return entry


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m ris.data.scenes.build_atlas", description=__doc__
    )
    parser.add_argument("font", type=Path, help="NotoColorEmoji.ttf")
    parser.add_argument(
        "--out",
        type=Path,
        default=DATA,
        help="folder for glyphs.png and glyphs.json",
    )
    args = parser.parse_args()
    build(args.font, args.out)


if __name__ == "__main__":
    main()
