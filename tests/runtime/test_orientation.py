"""A picture is upright whatever else its EXIF block has in it, and in whichever file."""

from __future__ import annotations

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps, PngImagePlugin

from ris.runtime.image import image_size, load_picture, load_rgb
from ris.runtime.orientation import exif_orientation, turned_mask

SHORT, ASCII, RATIONAL, SIGNED_RATIONAL = 3, 2, 5, 10
ORIENTATION = (0x0112, SHORT, 1, 6 << 16)
RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def block(*entries: tuple[int, int, int, int], order: str = ">") -> bytes:
    """An EXIF block of these entries: tag, type, count, and value or offset."""
    mark = b"MM\0*" if order == ">" else b"II*\0"
    written = b"".join(struct.pack(f"{order}HHII", *entry) for entry in entries)
    head = mark + struct.pack(f"{order}IH", 8, len(entries))
    return head + written + bytes(4)


BAD_ENTRIES = {
    "a number over zero": (0x011A, SIGNED_RATIONAL, 1, 8),
    "a value beyond the end": (0x010F, ASCII, 5000, 0x7FFFFFFF),
    "a count of billions": (0x0110, RATIONAL, 0xFFFFFFFF, 8),
    "an unknown type": (0x0100, 99, 1, 1),
}


@pytest.mark.parametrize("bad", BAD_ENTRIES)
@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("kind", ["jpg", "png", "webp"])
def test_a_malformed_entry_does_not_lose_the_orientation(tmp_path, bad, first, kind):
    entries = [BAD_ENTRIES[bad], ORIENTATION] if first else [ORIENTATION, BAD_ENTRIES[bad]]
    path = tmp_path / f"a.{kind}"
    Image.fromarray(RGB).resize((300, 200)).save(path, exif=b"Exif\0\0" + block(*entries))
    for draft in (None, 50):
        picture = load_picture(path, draft)
        assert (picture.height, picture.width, picture.orientation) == (300, 200, 6)
        assert picture.pixels.size[1] > picture.pixels.size[0]
    assert image_size(path) == (300, 200)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "avif"])
def test_every_format_is_turned_as_pillow_turns_it(tmp_path, kind, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{kind}"
    options = {"compression": "tiff_lzw"} if kind == "tif" and orientation % 2 else {}
    Image.fromarray(RGB).save(path, exif=exif, **options)
    with Image.open(path) as opened:
        want = np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))
    picture = load_picture(path)
    np.testing.assert_array_equal(np.asarray(picture.pixels), want)
    assert picture.orientation == orientation
    assert image_size(path) == want.shape[:2]
    mask = np.arange(600).reshape(20, 30) % 7 == 0
    assert turned_mask(mask, orientation).shape == want.shape[:2]


def test_a_mask_turns_with_its_picture():
    for orientation in range(1, 9):
        exif = Image.Exif()
        exif[0x0112] = orientation
        buffer = io.BytesIO()
        Image.fromarray(RGB).save(buffer, "png", exif=exif)
        shown = load_rgb(buffer)
        np.testing.assert_array_equal(
            turned_mask(RGB[..., 0] > 99, orientation), shown[..., 0] > 99
        )


def test_a_png_may_have_its_orientation_behind_the_pixels(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "png", exif=block(ORIENTATION))
    whole = buffer.getvalue()
    start = whole.index(b"eXIf") - 4
    length = 12 + struct.unpack(">I", whole[start : start + 4])[0]
    exif, rest = whole[start : start + length], whole[:start] + whole[start + length :]
    (tmp_path / "a.png").write_bytes(rest[:-12] + exif + rest[-12:])
    assert image_size(tmp_path / "a.png") == (30, 20)
    assert load_rgb(tmp_path / "a.png").shape == (30, 20, 3)


def test_orientation_in_a_png_text_and_in_xmp(tmp_path):
    text = PngImagePlugin.PngInfo()
    data = b"Exif\0\0" + block(ORIENTATION)
    text.add_text("Raw profile type exif", f"\nexif\n{len(data):8}\n{data.hex()}\n")
    Image.fromarray(RGB).save(tmp_path / "a.png", pnginfo=text)
    xmp = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    Image.fromarray(RGB).save(tmp_path / "b.webp", xmp=xmp)
    for name in ("a.png", "b.webp"):
        assert load_rgb(tmp_path / name).shape == (30, 20, 3)


@pytest.mark.parametrize(
    ("data", "orientation"),
    [
        (block(ORIENTATION), 6),
        (b"Exif\0\0" + block(ORIENTATION), 6),
        (block((0x0112, SHORT, 1, 6), order="<"), 6),
        (block((0x0112, SHORT, 1, 9 << 16)), None),
        (block((0x0112, SHORT, 1, 0)), None),
        (block((0x0112, SHORT, 2, 6 << 16)), None),
        (block((0x0112, RATIONAL, 1, 6 << 16)), None),
        (block((0x0100, SHORT, 1, 6 << 16)), None),
        (block(ORIENTATION)[:15], None),
        (b"MM\0*\xff\xff\xff\xff", None),
        (b"Exif\0\0", None),
        (b"", None),
    ],
)
def test_what_an_exif_block_says(data, orientation):
    assert exif_orientation(data) == orientation


def test_any_bytes_are_an_exif_block_without_an_error():
    random = np.random.default_rng(0)
    whole = bytearray(block(*BAD_ENTRIES.values(), ORIENTATION))
    for _ in range(2000):
        damaged = whole.copy()
        for place in random.integers(0, len(damaged), 3):
            damaged[place] = random.integers(256)
        assert exif_orientation(bytes(damaged[: random.integers(len(damaged) + 1)])) in (
            *range(1, 9),
            None,
        )
