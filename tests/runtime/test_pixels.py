"""Levels and colours: what has 16 bits has 16 bits, and transparent is white, in every mode."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageCms

from ris.engines.errors import ImageError
from ris.runtime.image import load_rgb

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
GREY = np.asarray(Image.fromarray(RGB).convert("L"))
DEEP = GREY.astype(np.uint16) * 257
WHITE = [255, 255, 255]


def saved(image: Image.Image, kind: str, **options) -> io.BytesIO:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer


def pgm(levels: np.ndarray, top: int) -> bytes:
    height, width = levels.shape
    return f"P5 {width} {height} {top}\n".encode() + levels.astype(">u2").tobytes()


@pytest.mark.parametrize("kind", ["png", "tiff", "jpeg2000"])
def test_sixteen_bits_are_sixteen_bits_however_dark(kind):
    np.testing.assert_array_equal(load_rgb(saved(Image.fromarray(DEEP), kind))[..., 0], GREY)
    dark = GREY.astype(np.uint16)  # at most 255 of 65535
    assert load_rgb(saved(Image.fromarray(dark), kind)).max() == 1


def test_sixteen_bits_in_memory_and_in_a_pgm_file():
    for mode in ("I;16", "I;16L", "I;16B"):
        image = Image.fromarray(GREY.astype(np.int32)).convert(mode)
        assert load_rgb(image).max() == 1
    np.testing.assert_array_equal(load_rgb(pgm(DEEP, 65535))[..., 0], GREY)
    assert load_rgb(pgm(GREY.astype(np.uint16), 65535)).max() == 1


def test_each_level_of_sixteen_bits_is_rounded():
    levels = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    want = np.rint(levels / 257).astype(np.uint8)
    np.testing.assert_array_equal(load_rgb(saved(Image.fromarray(levels), "png"))[..., 0], want)


def test_a_tiff_file_may_have_white_at_0_and_12_bits():
    negative = saved(Image.fromarray(DEEP), "tiff", tiffinfo={262: 0})
    np.testing.assert_array_equal(load_rgb(negative)[..., 0], 255 - GREY)
    # two levels of 12 bits in three bytes, in rows of 2 pixels
    twelve = saved(Image.new("L", (3, 1)), "tiff")
    content = bytearray(twelve.getvalue())
    with Image.open(twelve) as opened:
        tags = {tag: opened.tag_v2[tag] for tag in (256, 258, 273)}
    assert tags[258] == (8,)
    for tag, value in ((256, 2), (258, 12)):
        place = content.index(tag.to_bytes(2, "little"), 8)
        content[place + 8 : place + 10] = value.to_bytes(2, "little")
    start = tags[273][0]
    content[start : start + 3] = bytes([0xFF, 0xF0, 0x80])  # 4095, 128
    assert load_rgb(bytes(content))[0, :, 0].tolist() == [255, 8]


def test_numbers_that_do_not_say_what_white_is():
    values = GREY.astype(np.float32)
    for image in (values / 255, values, values * 257):
        np.testing.assert_array_equal(load_rgb(Image.fromarray(image))[..., 0], GREY)
    np.testing.assert_array_equal(load_rgb(Image.fromarray(GREY.astype(np.int32)))[..., 0], GREY)
    with pytest.raises(ImageError, match="not finite"):
        load_rgb(Image.fromarray(np.full((2, 2), np.inf, np.float32)))


@pytest.mark.parametrize(
    ("mode", "transparent"),
    [("L", int(GREY[0, 0])), ("RGB", tuple(int(v) for v in RGB[0, 0])), ("1", 0), ("I;16", None)],
)
def test_a_transparent_level_or_colour_is_white(mode, transparent):
    image = Image.fromarray(DEEP) if mode == "I;16" else Image.fromarray(RGB).convert(mode)
    image.putpixel((0, 0), {"I;16": 5, "1": 0}.get(mode, transparent))
    value = 5 if mode == "I;16" else transparent
    got = load_rgb(saved(image, "png", transparency=value))
    assert got[0, 0].tolist() == WHITE


@pytest.mark.parametrize("mode", ["LA", "La", "RGBA", "RGBa"])
def test_alpha_lies_over_white_in_every_mode(mode):
    rgba = np.dstack([GREY, GREY, GREY, np.full_like(GREY, 255)])
    rgba[:, :10, 3] = 0
    image = Image.fromarray(rgba)
    if mode in ("LA", "La"):
        image = image.convert("LA")
    got = load_rgb(image.convert(mode))
    assert (got[:, :10] == 255).all()
    np.testing.assert_array_equal(got[:, 10:, 0], GREY[:, 10:])


def test_a_palette_with_transparency_lies_over_white():
    image = Image.fromarray(RGB).convert("P", palette=Image.Palette.ADAPTIVE, colors=8)
    index = np.asarray(image)
    want = np.asarray(image.convert("RGB")).copy()
    want[index == 3] = 255
    for kind, transparency in (("png", 3), ("png", bytes([255] * 3 + [0] + [255] * 4)), ("gif", 3)):
        got = load_rgb(saved(image, kind, transparency=transparency))
        np.testing.assert_array_equal(got, want)


def test_lab_is_converted():
    srgb, lab = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    picture = Image.fromarray(RGB)
    converted = ImageCms.applyTransform(picture, ImageCms.buildTransform(srgb, lab, "RGB", "LAB"))
    for source in (converted, saved(converted, "tiff")):
        assert np.abs(load_rgb(source).astype(int) - RGB).mean() < 2


def test_embedded_profiles_change_nothing():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    with_profile = saved(Image.fromarray(RGB), "png", icc_profile=profile)
    np.testing.assert_array_equal(load_rgb(with_profile), RGB)
