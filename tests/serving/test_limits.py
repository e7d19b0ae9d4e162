"""The limits that every door shares: what is refused before any pixel is decoded, and how."""

from __future__ import annotations

import io
import pickle
import struct
import time
import zlib

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ris.engines.errors import EngineError, ExpressionError, ImageError
from ris.runtime.image import load_rgb
from ris.serving.limits import LimitError, Limits, status_of
from serving_helpers import picture_bytes


def png_that_claims(width: int, height: int) -> bytes:
    """A PNG of a few bytes whose header promises many pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        length, checksum = struct.pack(">I", len(data)), struct.pack(">I", zlib.crc32(kind + data))
        return length + kind + data + checksum

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 1000)
    signature = b"\x89PNG\r\n\x1a\n"
    return signature + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF"])
def test_images_of_the_usual_kinds_are_decoded(kind):
    rgb = Limits().decode(picture_bytes(1, 50, 40, kind))
    assert rgb.shape == (40, 50, 3)
    assert rgb.dtype == np.uint8


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"/etc/passwd",
        b"file:///etc/passwd",
        b"http://127.0.0.1/x.png",
        pickle.dumps({"a": 1}),
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        picture_bytes(1)[:200],
    ],
)
def test_what_is_no_image_is_refused_and_nothing_else_is_opened(data, monkeypatch):
    opened = []
    monkeypatch.setattr("builtins.open", lambda *a, **k: opened.append(a))
    monkeypatch.setattr(pickle, "loads", lambda *a, **k: opened.append(a))
    with pytest.raises(ImageError) as refused:
        Limits().decode(data)
    assert status_of(refused.value) == 400
    assert not opened


@pytest.mark.parametrize("size", [(30_000, 30_000), (8_000, 7_000)])
def test_a_pixel_bomb_is_refused_by_its_header(size):
    start = time.perf_counter()
    with pytest.raises(LimitError, match="pixels, the limit is 50 megapixels"):
        Limits().decode(png_that_claims(*size))
    assert time.perf_counter() - start < 5
    assert status_of(LimitError("", 413)) == 413


def test_a_large_file_is_refused_before_it_is_looked_at():
    with pytest.raises(LimitError, match=r"1\.0 MB, at most 0\.5 MB"):
        Limits(image_bytes=500_000).decode(b"x" * 1_000_000)


def test_expressions_are_counted_and_measured():
    limits = Limits(expressions=2, characters=10)
    limits.check_expressions(["a", "b"])
    with pytest.raises(ExpressionError, match="nothing to look for"):
        limits.check_expressions([])
    with pytest.raises(LimitError, match="3 expressions, at most 2"):
        limits.check_expressions(["a", "b", "c"])
    with pytest.raises(LimitError, match="11 characters, at most 10"):
        limits.check_expressions(["a" * 11])


def test_pixels_times_expressions_are_bounded_and_more_where_masks_are_sent():
    limits = Limits()
    limits.check_answer(50_000_000, 8, masks=False)
    limits.check_answer(50_000_000, 1, masks=True)
    with pytest.raises(LimitError, match=r"9 masks of 50\.0 megapixels are more than") as most:
        limits.check_answer(50_000_000, 9, masks=False)
    with pytest.raises(LimitError, match="more than the 50 MB that are sent; ask for rle_counts"):
        limits.check_answer(50_000_000, 2, masks=True)
    assert status_of(most.value) == 413


def test_pixels_are_counted_from_the_header():
    assert Limits().pixels_of(png_that_claims(3000, 2000)) == 6_000_000
    with pytest.raises(LimitError, match="the limit is 50 megapixels"):
        Limits().pixels_of(png_that_claims(30_000, 30_000))
    with pytest.raises(ImageError):
        Limits().pixels_of(b"no image")


def test_time_runs_out():
    deadline = Limits(seconds=0.01).deadline()
    time.sleep(0.02)
    with pytest.raises(LimitError, match=r"longer than 0\.01 s") as late:
        deadline.check()
    assert status_of(late.value) == 504


def test_what_is_not_the_senders_fault_is_ours():
    assert status_of(EngineError("the engine failed")) == 500


def test_exif_and_animation_are_read_as_elsewhere():
    first, second = Image.new("RGB", (20, 10), "red"), Image.new("RGB", (20, 10), "blue")
    buffer = io.BytesIO()
    first.save(buffer, "GIF", save_all=True, append_images=[second])
    assert Limits().decode(buffer.getvalue())[0, 0].tolist() == [255, 0, 0]
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    first.save(buffer, "JPEG", exif=exif)
    assert Limits().decode(buffer.getvalue()).shape == (20, 10, 3)


def test_a_picture_is_the_same_through_a_door_as_from_a_file(tmp_path):
    """Sixteen bits, a long text, and an orientation beside a malformed entry."""
    levels = np.arange(200, dtype=np.uint16).reshape(10, 20) * 300
    entries = struct.pack(">HHII", 0x0112, 3, 1, 6 << 16)
    entries += struct.pack(">HHII", 0x011A, 10, 1, 0x7FFFFFFF)
    exif = b"MM\0*" + struct.pack(">IH", 8, 2) + entries + bytes(4)
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 1_500_000, zip=True)
    Image.fromarray(levels).save(tmp_path / "a.png", exif=exif, pnginfo=text)
    seen = Limits().decode((tmp_path / "a.png").read_bytes())
    np.testing.assert_array_equal(seen, load_rgb(tmp_path / "a.png"))
    np.testing.assert_array_equal(seen[..., 0], np.rot90(np.rint(levels / 257), -1))


def test_a_line_of_pixels_is_refused_before_it_is_decoded():
    """Its mask's logits would be millions wide, and many high."""
    for width, height in ((2_000_000, 1), (1, 2_000_000)):
        data = png_that_claims(width, height)
        for read in (Limits().decode, Limits().pixels_of):
            with pytest.raises(LimitError, match="the limit is 65535 to a side") as refused:
                read(data)
            assert status_of(refused.value) == 413


def test_the_header_says_how_many_pixels_there_are():
    assert Limits().pixels_of(png_that_claims(3000, 2000)) == 6_000_000
    with pytest.raises(LimitError, match=r"at most 0\.0001 MB"):
        Limits(image_bytes=100).pixels_of(b"x" * 101)
