"""Any image becomes RGB as a viewer shows it; what cannot be read gets one sentence."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ris.engines.errors import ImageError
from ris.runtime.image import MAX_PIXELS, load_picture, load_rgb

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def test_rgb_is_unchanged(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png"), RGB)
    np.testing.assert_array_equal(load_rgb(str(tmp_path / "a.png")), RGB)
    np.testing.assert_array_equal(load_rgb(Image.fromarray(RGB)), RGB)
    np.testing.assert_array_equal(load_rgb(RGB), RGB)


@pytest.mark.parametrize(
    "mode", ["L", "LA", "1", "P", "RGBA", "CMYK", "YCbCr", "HSV", "I", "F", "I;16"]
)
def test_every_mode_becomes_rgb(tmp_path, mode):
    grey = Image.fromarray(RGB).convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(grey, np.uint16) * 257)
    else:
        image = Image.fromarray(RGB).convert("L" if mode in ("I", "F") else "RGB").convert(mode)
    got = load_rgb(image)
    assert got.shape == (20, 30, 3)
    assert got.dtype == np.uint8
    shown = grey if mode in ("I;16", "I", "F") else image
    np.testing.assert_array_equal(got, np.asarray(shown.convert("RGB")))


@pytest.mark.parametrize(
    ("suffix", "mode"),
    [
        ("tif", "I;16"),
        ("png", "I;16"),
        ("tif", "CMYK"),
        ("jpg", "CMYK"),
        ("gif", "P"),
        ("webp", "RGB"),
        ("bmp", "L"),
        ("tif", "F"),
    ],
)
def test_files_of_many_kinds(tmp_path, suffix, mode):
    path = tmp_path / f"a.{suffix}"
    grey = np.asarray(Image.fromarray(RGB).convert("L"))
    if mode == "I;16":
        image = Image.fromarray(grey.astype(np.uint16) * 257)
    else:
        image = Image.fromarray(RGB).convert(mode)
    image.save(path)
    got = load_rgb(path)
    assert got.shape == (20, 30, 3)
    if mode == "I;16":
        np.testing.assert_array_equal(got[..., 0], grey)


def test_transparent_pixels_are_white(tmp_path):
    rgba = np.dstack([RGB, np.zeros((20, 30), np.uint8)])
    rgba[:, 15:, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "a.png")
    for source in (tmp_path / "a.png", rgba):
        got = load_rgb(source)
        assert (got[:, :15] == 255).all()
        np.testing.assert_array_equal(got[:, 15:], RGB[:, 15:])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path, orientation):
    image = Image.fromarray(RGB)
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    turned = {
        1: RGB,
        2: RGB[:, ::-1],
        3: RGB[::-1, ::-1],
        4: RGB[::-1],
        5: RGB.transpose(1, 0, 2),
        6: np.rot90(RGB, -1),
        7: RGB[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(RGB, 1),
    }
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png"), turned[orientation])


def test_a_hundred_megapixels_are_read(tmp_path):
    Image.new("L", (10000, 10000), 7).save(tmp_path / "a.png")
    assert load_rgb(tmp_path / "a.png").shape == (10000, 10000, 3)


def test_what_cannot_be_read_is_said_in_one_sentence(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image at all")
    (tmp_path / "empty.png").write_bytes(b"")
    noise = np.random.default_rng(0).integers(0, 256, (200, 200, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:3000])
    Image.new("L", (13000, 13000)).save(tmp_path / "huge.png")
    cases = {
        "nothere.jpg": "no such image file",
        "text.jpg": "not an image that can be read",
        "empty.png": "not an image that can be read",
        "cut.jpg": "damaged or cut short",
        "huge.png": f"13000x13000 pixels, the limit is {MAX_PIXELS // 10**6} megapixels",
        ".": "is a folder",
    }
    for name, message in cases.items():
        with pytest.raises(ImageError, match=message) as caught:
            load_rgb(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4, 2), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros(4, np.uint8),
    ],
)
def test_arrays_that_are_no_images(array):
    with pytest.raises(ImageError, match="must be uint8"):
        load_rgb(array)


def test_values_that_are_not_numbers(tmp_path):
    Image.fromarray(np.full((4, 4), np.nan, np.float32)).save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="not finite"):
        load_rgb(tmp_path / "a.tif")


@pytest.mark.parametrize("orientation", [1, 6])
def test_a_draft_of_a_large_jpeg(tmp_path, orientation):
    """It has fewer pixels and the same size to the outside; levels move by one or so on average."""
    smooth = Image.fromarray(RGB).resize((1200, 800), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112] = orientation
    smooth.save(tmp_path / "a.jpg", quality=95, exif=exif)
    exact, draft = load_picture(tmp_path / "a.jpg"), load_picture(tmp_path / "a.jpg", 256)
    size = (1200, 800) if orientation == 6 else (800, 1200)
    assert (draft.height, draft.width) == (exact.height, exact.width) == size
    assert max(draft.pixels.size) == 600  # a quarter would be 200 high

    def square(picture):
        resized = picture.pixels.resize((256, 256), Image.Resampling.BILINEAR)
        return np.asarray(resized, np.float32)

    assert np.abs(square(exact) - square(draft)).mean() < 2
    Image.fromarray(RGB).save(tmp_path / "b.png")
    assert load_picture(tmp_path / "b.png", 4).pixels.size == (30, 20)  # only JPEG decoders can


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "gif", "tiff", "bmp"])
def test_a_file_cut_anywhere_is_one_sentence(tmp_path, picture, kind):
    whole, cut = tmp_path / f"whole.{kind}", tmp_path / f"cut.{kind}"
    exif = Image.Exif()
    exif[0x0112] = 6
    options = {"exif": exif} if kind in ("jpg", "png", "webp") else {}
    Image.fromarray(picture).save(whole, **options)
    data = whole.read_bytes()
    for length in (0, 1, 2, 5, 11, 30, 100, 200, 400, 700, len(data) // 2):
        cut.write_bytes(data[:length])
        with pytest.raises(ImageError, match=r"cut\."):
            load_rgb(cut)
