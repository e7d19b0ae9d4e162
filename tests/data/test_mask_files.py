"""Masks as pictures: what says which pixels are the object is read, all else is refused."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from ris.data.datasets.mask_files import read_mask
from ris.engines.errors import RisError

MASK = np.zeros((40, 60), bool)
MASK[5:20, 10:30] = True
BLACK_WHITE = np.where(MASK[..., None], np.uint8(255), np.uint8(0)).repeat(3, axis=2)


def levels(**values):
    """uint8 [40, 60]: 0 around, and the values in the object, on its rim, in a corner."""
    picture = np.zeros((40, 60), np.uint8)
    picture[MASK] = values.get("inside", 255)
    if "rim" in values:
        picture[4, 10:30] = values["rim"]
    if "corner" in values:
        picture[30:, 50:] = values["corner"]
    return picture


def palette(index, colours, **options):
    image = Image.fromarray(index)
    image.putpalette([part for colour in colours for part in colour])
    assert image.mode == "P"
    return image


def with_alpha(rgb, alpha):
    return Image.fromarray(np.dstack([rgb, alpha]))


ALPHA = np.where(MASK, np.uint8(255), np.uint8(0))
PHOTO = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
RED, WHITE = (220, 20, 60), (255, 255, 255)

READ = {
    "0 and 255": Image.fromarray(levels()),
    "0 and 1": Image.fromarray(levels(inside=1)),
    "one bit": Image.fromarray(MASK),
    "16 bits": Image.fromarray(levels(inside=1).astype(np.uint16) * 40000),
    "16 bits, dark": Image.fromarray(levels(inside=1).astype(np.uint16)),
    "black and white": Image.fromarray(BLACK_WHITE),
    "black and a colour": Image.fromarray(BLACK_WHITE // 255 * np.uint8([0, 200, 0])),
    "a palette, black first": palette(levels(inside=1), [(0, 0, 0), RED]),
    "a palette, black last": palette(1 - levels(inside=1), [WHITE, (0, 0, 0)]),
    "an opaque alpha": with_alpha(BLACK_WHITE, np.full_like(ALPHA, 255)),
    "white where opaque": with_alpha(BLACK_WHITE, ALPHA),
    "black where opaque": with_alpha(BLACK_WHITE * 0, ALPHA),
    "a photo cut out": with_alpha(PHOTO, ALPHA),
    "grey with alpha": Image.fromarray(np.dstack([levels(), ALPHA]), "LA"),
}


@pytest.mark.parametrize("kind", READ)
def test_a_mask_is_read(tmp_path, kind):
    for name in ("a.png", "a.tif"):
        if name == "a.tif" and READ[kind].mode == "LA":
            continue
        READ[kind].save(tmp_path / name)
        np.testing.assert_array_equal(read_mask(tmp_path / name), MASK)


@pytest.mark.parametrize("name", ["a.jpg", "a.webp"])
@pytest.mark.parametrize("kind", ["0 and 255", "black and white"])
def test_a_lossy_mask_has_its_edges_where_they_were(tmp_path, name, kind):
    READ[kind].save(tmp_path / name, quality=70)
    with Image.open(tmp_path / name) as opened:
        assert len(np.unique(np.asarray(opened))) > 2
    np.testing.assert_array_equal(read_mask(tmp_path / name), MASK)


@pytest.mark.parametrize("name", ["a.png", "a.jpg"])
def test_an_empty_mask_and_a_full_one(tmp_path, name):
    for value in (0, 255):
        Image.fromarray(np.full((40, 60), value, np.uint8)).save(tmp_path / name)
        np.testing.assert_array_equal(read_mask(tmp_path / name), np.full((40, 60), value == 255))


def test_a_mask_file_is_upright(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    for name in ("a.png", "a.tif"):
        READ["0 and 255"].save(tmp_path / name, exif=exif)
        np.testing.assert_array_equal(read_mask(tmp_path / name), np.rot90(MASK, -1))


REFUSED = {
    "a rim of 255": (Image.fromarray(levels(inside=1, rim=255)), r"it has 3 values \(0, 1, 255\)"),
    "several objects": (Image.fromarray(levels(inside=1, corner=2)), r"3 values \(0, 1, 2\)"),
    "no 0": (Image.fromarray(levels(inside=1) + np.uint8(1)), r"it has 2 values \(1, 2\)"),
    "soft edges": (
        Image.fromarray(levels()).resize((90, 60), Image.Resampling.BILINEAR),
        r"it has \d+ values \(0, .*, \.\.\.\)",
    ),
    "a photo": (Image.fromarray(PHOTO), r"it has \d+ colours"),
    "no black": (
        Image.fromarray(np.where(MASK[..., None], np.uint8(RED), np.uint8(WHITE))),
        "it has 2 colours, and none is black",
    ),
    "a palette with a rim": (
        palette(levels(inside=1, rim=2), [(0, 0, 0), RED, WHITE]),
        "it has 3 colours",
    ),
    "a palette of one colour": (
        palette(levels(inside=1), [(0, 0, 0), (0, 0, 0)]),
        "several entries of its palette have one colour",
    ),
    "half transparent": (with_alpha(PHOTO, ALPHA // 2 + 1), "transparent to several degrees"),
    "two ways to read it": (
        with_alpha(
            BLACK_WHITE,
            np.where(np.arange(40)[:, None] < 30, np.uint8(255), np.uint8(0))
            * np.ones((1, 60), np.uint8),
        ),
        "black, another colour and transparent pixels",
    ),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_a_mask_that_does_not_say_what_the_object_is_is_refused(tmp_path, kind):
    picture, words = REFUSED[kind]
    picture.save(tmp_path / "a.png")
    with pytest.raises(RisError, match=rf"a\.png does not say what the object is: .*{words}"):
        read_mask(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("picture", "words"),
    [(levels(inside=1), "nowhere brighter than"), (PHOTO, "of it is neither dark nor bright")],
)
def test_a_lossy_picture_that_is_no_mask_is_refused(tmp_path, picture, words):
    Image.fromarray(picture).save(tmp_path / "a.jpg")
    with pytest.raises(RisError, match=f"it is JPEG and .*{words}"):
        read_mask(tmp_path / "a.jpg")


def test_a_file_that_is_no_picture(tmp_path):
    (tmp_path / "a.png").write_bytes(b"x")
    with pytest.raises(RisError, match="not an image that can be read"):
        read_mask(tmp_path / "a.png")
