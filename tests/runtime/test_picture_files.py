"""Files of every kind, whole and damaged, and everything else that may be given for an image."""

from __future__ import annotations

import contextlib
import io
import struct
import sys
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image, PngImagePlugin

from ris.engines.errors import ImageError
from ris.runtime import BUILT_IN, load, picture_files
from ris.runtime.image import TooManyPixels, image_size, load_picture, load_rgb

RGB = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)


def png(path, **options):
    Image.fromarray(RGB).save(path, **options)
    return path


@pytest.mark.parametrize("kind", ["zTXt", "iTXt", "tEXt", "iCCP"])
@pytest.mark.parametrize("behind", [True, False])
def test_a_png_with_a_long_text_or_profile_is_read(tmp_path, monkeypatch, kind, behind):
    """1.5 MB of it, before the pixels or behind them, also where the orientation is told."""
    monkeypatch.setattr(PngImagePlugin, "MAX_TEXT_MEMORY", 1_000_000)  # 64 MB take seconds
    limit = 1_500_000
    content = {
        "zTXt": b"Comment\0\0" + zlib.compress(bytes(limit)),
        "iTXt": b"Comment\0\1\0\0\0" + zlib.compress(bytes(limit)),
        "tEXt": b"Comment\0" + b"x" * limit,
        "iCCP": b"Profile\0\0" + zlib.compress(bytes(limit)),
    }[kind]
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = png(tmp_path / "a.png", exif=exif).read_bytes()
    checksum = zlib.crc32(kind.encode() + content)
    chunk = struct.pack(">I4s", len(content), kind.encode()) + content + struct.pack(">I", checksum)
    place = len(whole) - 12 if behind else 33  # before IEND, or after IHDR
    (tmp_path / "a.png").write_bytes(whole[:place] + chunk + whole[place:])

    np.testing.assert_array_equal(load_rgb(tmp_path / "a.png"), np.rot90(RGB, -1))
    assert image_size(tmp_path / "a.png") == (30, 20)
    np.testing.assert_array_equal(load_rgb((tmp_path / "a.png").read_bytes()), np.rot90(RGB, -1))
    assert PngImagePlugin.MAX_TEXT_CHUNK < 1_500_000  # Pillow's limits are the user's


def test_a_damaged_png_with_texts_is_damaged(tmp_path):
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 100, zip=True)
    whole = png(tmp_path / "a.png", pnginfo=text).read_bytes()
    (tmp_path / "a.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ImageError, match=r"a\.png is damaged or cut short"):
        load_rgb(tmp_path / "a.png")


@pytest.mark.parametrize("kind", ["avif", "webp", "dds", "tif", "jp2", "gif", "bmp", "ico", "pcx"])
def test_flipped_bytes_give_a_picture_or_one_sentence(tmp_path, picture, kind):
    path = tmp_path / f"a.{kind}"
    Image.fromarray(picture).resize((96, 64)).save(path)
    whole, random = path.read_bytes(), np.random.default_rng(1)
    said = []
    for _ in range(40):
        damaged = bytearray(whole)
        for place in random.integers(0, len(whole), 4) % random.choice([64, len(whole)]):
            damaged[place] ^= random.integers(1, 256)
        path.write_bytes(damaged)
        try:
            assert load_rgb(path).dtype == np.uint8
        except ImageError as error:
            said.append(str(error))
    assert all(str(path) in sentence and "\n" not in sentence for sentence in said)
    assert said or kind == "bmp"


def test_any_exception_of_a_decoder_is_one_sentence(tmp_path, monkeypatch):
    """Decoders of formats that are not at hand here raise what they like."""
    png(tmp_path / "a.png")
    raised = RuntimeError("one\ntwo"), struct.error("unpack"), MemoryError(), RecursionError("deep")
    for error in raised:
        monkeypatch.setattr(
            picture_files, "to_rgb", lambda *given, e=error: (_ for _ in ()).throw(e)
        )
        with pytest.raises(ImageError, match=r"a\.png (is damaged|does not fit)") as caught:
            load_rgb(tmp_path / "a.png")
        assert "\n" not in str(caught.value)


def test_bytes_and_open_files_are_read(tmp_path):
    path = png(tmp_path / "a.png")
    content = path.read_bytes()
    buffer = io.BytesIO()
    Image.fromarray(RGB).save(buffer, "png")  # it stands at its end
    with path.open("rb") as file:
        for source in (content, bytearray(content), io.BytesIO(content), buffer, file):
            np.testing.assert_array_equal(load_rgb(source), RGB)


@pytest.mark.parametrize("given", [None, [[1]], 3, object(), {"a": 1}])
def test_another_kind_of_thing_is_named(given):
    with pytest.raises(ImageError, match=f"an image is a path, .*; got {type(given).__name__}"):
        load_rgb(given)


def test_a_model_takes_bytes_and_names_what_it_does_not_take(tmp_path):
    content = png(tmp_path / "a.png").read_bytes()
    with load(BUILT_IN, engine="onnxruntime") as model:
        want = model.encode_image(tmp_path / "a.png").segment("left man")
        got = model.encode_image(io.BytesIO(content)).segment("left man")
        np.testing.assert_array_equal(got.logits, want.logits)
        for given in (None, [[1]], b"x"):
            with pytest.raises(ImageError):
                model.encode_image(given)


def test_files_that_hold_no_image():
    with pytest.raises(ImageError, match="open it in binary mode"):
        load_rgb(io.StringIO("x"))
    for source in (b"x", io.BytesIO(b"x"), b""):
        with pytest.raises(ImageError, match="the image is not an image that can be read"):
            load_rgb(source)


@pytest.mark.parametrize(
    ("name", "words"),
    [("a\0b.png", "null byte"), ("x" * 300, "name too long"), ("nothere.png", "no such image")],
)
def test_a_path_that_cannot_be_opened(tmp_path, name, words):
    with pytest.raises(ImageError, match=words):
        load_rgb(str(tmp_path / name))


def test_a_file_name_that_is_no_text_is_shown(tmp_path):
    name = b"\xe9.png".decode("utf-8", "surrogateescape")
    with pytest.raises(ImageError, match="\ufffd\\.png: no such image file"):
        load_rgb(tmp_path / name)


def test_pixels_are_counted_before_they_are_decoded(tmp_path):
    path = png(tmp_path / "a.png")
    with pytest.raises(TooManyPixels, match=r"a\.png is 30x20 pixels, the limit is 0\.0005 mega"):
        load_picture(path, pixels=500)
    for source in (Image.fromarray(RGB), RGB):
        with pytest.raises(TooManyPixels, match="30x20 pixels"):
            load_picture(source, pixels=500)


def test_only_the_formats_that_are_allowed(tmp_path):
    content = png(tmp_path / "a.png").read_bytes()
    assert load_picture(content, formats=("JPEG", "PNG", "NOSUCH")).width == 30
    with pytest.raises(ImageError, match="not an image that can be read"):
        load_picture(content, formats=("JPEG",))


HEIC = struct.pack(">I4s4sI4s", 20, b"ftyp", b"heic", 0, b"mif1")


def test_heic_names_the_plug_in(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(ImageError, match=r"a\.heic cannot be read: HEIC needs pillow-heif \(pip"):
        load_rgb(tmp_path / "a.heic")


def test_heic_is_read_by_a_plug_in_that_the_user_registered(tmp_path, monkeypatch):
    """As pillow-heif's opener does it."""

    def opener(file, name):
        image = Image.fromarray(RGB)
        image.format = "HEIF"
        return image

    monkeypatch.setitem(Image.OPEN, "HEIF", (opener, lambda head: head[4:12] == b"ftypheic"))
    monkeypatch.setattr(Image, "ID", [*Image.ID, "HEIF"])
    (tmp_path / "a.heic").write_bytes(HEIC)
    np.testing.assert_array_equal(load_rgb(tmp_path / "a.heic"), RGB)


def test_nothing_is_warned_of(tmp_path):
    """Neither a large size below the limit nor a wrong part of a file that has its pixels."""
    Image.new("L", (10_000, 9_000)).save(tmp_path / "large.png", compress_level=1)
    bad = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02\0\0\xff\xff\x7f\xff\xff\xff"
    Image.fromarray(RGB).save(tmp_path / "exif.jpg", exif=bad)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert image_size(tmp_path / "large.png") == (9_000, 10_000)
        load_rgb(tmp_path / "exif.jpg")


def test_the_users_warnings_are_as_they_were_after_many_threads(tmp_path):
    Image.fromarray(RGB).save(tmp_path / "a.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        before = list(warnings.filters)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(load_rgb, [tmp_path / "a.png"] * 400))
        assert warnings.filters == before


@pytest.mark.parametrize("kind", [b"tEXt", b"eXIf", b"abCd"])
def test_a_chunk_takes_no_more_memory_than_the_file_has(tmp_path, kind):
    whole = png(tmp_path / "a.png").read_bytes()
    claimed = struct.pack(">I4s", 2**31 - 1, kind) + b"x" * 100
    for place in (33, len(whole) - 12):  # after IHDR, or before IEND
        (tmp_path / "a.png").write_bytes(whole[:place] + claimed + whole[place:])
        tracemalloc.start()
        try:
            for read in (load_rgb, image_size):
                with contextlib.suppress(ImageError):
                    read(tmp_path / "a.png")
            assert tracemalloc.get_traced_memory()[1] < 10_000_000
        finally:
            tracemalloc.stop()


def test_a_decoder_that_closes_the_file_leaves_one_sentence(tmp_path):
    size = struct.pack("<2i", 32, 32)
    head = b"FTEX" + struct.pack("<i", 0) + size + struct.pack("<2i", 1, 1)
    (tmp_path / "a.ftex").write_bytes(head + struct.pack("<3i", 0, 32, 64) + bytes(64))
    with pytest.raises(ImageError, match=r"a\.ftex is damaged or cut short"):
        load_rgb(tmp_path / "a.ftex")


def test_a_name_of_any_length_and_kind_stays_in_its_sentence(tmp_path):
    for name in ("x" * 5000 + ".png", "two\nlines.png", "null\0.png", "\ud83d.png"):
        with pytest.raises(ImageError) as caught:
            load_rgb(tmp_path / name)
        assert len(str(caught.value)) < 400
        assert str(caught.value).isprintable()
