"""The example's pictures (cpp/examples/pictures.hpp) beside Python's reader: the same pixels."""

from __future__ import annotations

import ctypes
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from libris_helper import pointer
from ris.runtime.image import load_rgb

HEIGHT, WIDTH = 21, 34
RNG = np.random.default_rng(0)
GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6
CHANNELS = {GREY: 1, RGB: 3, PALETTE: 1, GREY_ALPHA: 2, RGBA: 4}
ORIENTATION_6 = b"MM\0*" + struct.pack(">IHHHII", 8, 1, 0x0112, 3, 1, 6 << 16) + bytes(4)
XMP = b'<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


@pytest.fixture
def read(internals, tmp_path):
    """Decodes a file's bytes, uint8 [H, W, 3]; a str where they are refused."""

    def decoded(content, suffix):
        path = tmp_path / f"picture.{suffix}"
        path.write_bytes(content)
        room, size = np.zeros(1 << 22, np.uint8), (ctypes.c_int * 2)()
        message = ctypes.create_string_buffer(1000)
        count = ctypes.c_size_t(room.size)
        internals.test_picture(str(path).encode(), pointer(room), count, size, message)
        if message.value:
            return message.value.decode()
        return room[: 3 * size[0] * size[1]].reshape(size[1], size[0], 3)

    return decoded


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(kind, bits, levels=None, before=(), behind=()):
    """A PNG file of one colour type and depth, with chunks before and behind its pixels.

    levels: below which all samples stay.
    """
    samples = RNG.integers(0, levels or 1 << bits, (HEIGHT, WIDTH * CHANNELS[kind]), np.uint16)
    if bits == 16:
        rows = samples.astype(">u2").view(np.uint8).reshape(HEIGHT, -1)
    elif bits == 8:
        rows = samples.astype(np.uint8)
    else:
        digits = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
        rows = np.packbits(digits.reshape(HEIGHT, -1).astype(np.uint8), axis=1)
    lines = b"".join(b"\0" + row.tobytes() for row in rows)
    head = struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, kind, 0, 0, 0)
    chunks = [chunk(b"IHDR", head), *before, chunk(b"IDAT", zlib.compress(lines)), *behind]
    return b"\x89PNG\r\n\x1a\n" + b"".join([*chunks, chunk(b"IEND", b"")])


PLTE = chunk(b"PLTE", RNG.integers(0, 256, 48, np.uint8).tobytes())
PNGS = {
    "grey of 16 bits": png(GREY, 16),
    "grey of 16 bits, dark": png(GREY, 16, levels=200),
    "grey of 16 bits, one level transparent": png(
        GREY, 16, levels=9, before=[chunk(b"tRNS", b"\0\5")]
    ),
    **{f"grey of {bits} bits": png(GREY, bits) for bits in (1, 2, 4, 8)},
    "grey, one level transparent": png(GREY, 8, levels=9, before=[chunk(b"tRNS", b"\0\5")]),
    "grey and alpha": png(GREY_ALPHA, 8),
    "grey and alpha of 16 bits": png(GREY_ALPHA, 16),
    "RGB of 16 bits": png(RGB, 16),
    "RGB, one colour transparent": png(RGB, 8, levels=2, before=[chunk(b"tRNS", b"\0\1\0\0\0\1")]),
    "RGBA": png(RGBA, 8),
    "RGBA of 16 bits": png(RGBA, 16),
    "palette": png(PALETTE, 4, before=[PLTE]),
    "palette with alpha": png(PALETTE, 4, before=[PLTE, chunk(b"tRNS", bytes(range(0, 256, 16)))]),
    "EXIF": png(RGB, 8, before=[chunk(b"eXIf", ORIENTATION_6)]),
    "EXIF behind the pixels": png(RGB, 8, behind=[chunk(b"eXIf", ORIENTATION_6)]),
    "EXIF as text": png(
        RGB,
        8,
        before=[
            chunk(
                b"tEXt",
                b"Raw profile type exif\0\nexif\n      32\n"
                + (b"Exif\0\0" + ORIENTATION_6).hex().encode()
                + b"\n",
            )
        ],
    ),
    "XMP": png(RGB, 8, before=[chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP)]),
    "EXIF before XMP": png(
        RGB,
        8,
        before=[
            chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + XMP.replace(b'"6"', b'"3"')),
            chunk(b"eXIf", ORIENTATION_6),
        ],
    ),
    "a text of two megabytes": png(
        RGB, 8, before=[chunk(b"tEXt", b"Comment\0" + b"x" * (2 << 20))]
    ),
    "a packed text of forty megabytes": png(
        RGB, 8, before=[chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(40 << 20)))]
    ),
    "a damaged colour profile": png(RGB, 8, before=[chunk(b"iCCP", b"x\0\0" + b"no profile")]),
}


@pytest.mark.parametrize("name", PNGS)
def test_a_png_is_what_python_reads(read, name):
    np.testing.assert_array_equal(read(PNGS[name], "png"), load_rgb(PNGS[name]))


def jpeg(*segments):
    """A JPEG file with these segments of kind APP1."""
    buffer = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)).save(buffer, "jpeg")
    whole = buffer.getvalue()
    parts = [b"\xff\xe1" + struct.pack(">H", len(data) + 2) + data for data in segments]
    return whole[:2] + b"".join(parts) + whole[2:]


def exif(*entries):
    """An EXIF segment with these entries: tag, type, count, value or offset."""
    written = b"".join(struct.pack(">HHII", *entry) for entry in entries)
    return b"Exif\0\0MM\0*" + struct.pack(">IH", 8, len(entries)) + written + bytes(4)


SIX = (0x0112, 3, 1, 6 << 16)
XMP_SEGMENT = b"http://ns.adobe.com/xap/1.0/\0" + XMP
SEGMENTS = {
    "upright": [],
    "a number over zero": [exif((0x011A, 10, 1, 8), SIX)],
    "a value beyond the end": [exif((0x010F, 2, 5000, 0x7FFFFFFF), SIX)],
    "a count of billions, behind": [exif(SIX, (0x0110, 5, 0xFFFFFFFF, 8))],
    "an unknown type": [exif((0x0100, 99, 1, 1), SIX)],
    "an orientation of two numbers": [exif((0x0112, 3, 2, 6 << 16))],
    "an orientation of 9": [exif((0x0112, 3, 1, 9 << 16))],
    "no entries": [exif()],
    "a block that is cut": [exif(SIX)[:20]],
    "XMP": [XMP_SEGMENT],
    "XMP, and EXIF without orientation": [exif((0x0100, 3, 1, 1)), XMP_SEGMENT],
    "XMP, and EXIF with another": [XMP_SEGMENT, exif((0x0112, 3, 1, 3 << 16))],
    **{f"EXIF {n}": [exif((0x0112, 3, 1, n << 16))] for n in range(1, 9)},
    "XMP in single quotes": [XMP_SEGMENT.replace(b'"', b"'")],
    "XMP with a word for a number": [XMP_SEGMENT.replace(b"6", b"six")],
}


@pytest.mark.parametrize("name", SEGMENTS)
def test_a_jpeg_is_turned_as_python_turns_it(read, name):
    content = jpeg(*SEGMENTS[name])
    got, want = read(content, "jpg"), load_rgb(content)
    assert got.shape == want.shape
    assert np.abs(got.astype(int) - want).max() <= 2  # two builds of libjpeg


@pytest.mark.parametrize("suffix", ["png", "jpg", "ppm"])
def test_a_damaged_picture_is_one_sentence(read, suffix):
    buffer = io.BytesIO()
    picture = RNG.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(picture).save(buffer, {"jpg": "jpeg"}.get(suffix, suffix))
    whole = buffer.getvalue()
    for content in (b"", whole[:1], whole[:20], whole[: len(whole) // 2], b"GIF89a" + whole):
        message = read(content, suffix)
        assert isinstance(message, str)
        assert "picture" in message
        assert "\n" not in message


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_a_mutated_picture_is_a_picture_or_one_sentence(read, kind):
    whole = jpeg(exif(SIX), XMP_SEGMENT) if kind == "jpg" else PNGS["EXIF as text"]
    rng = np.random.default_rng(1)
    for _ in range(300):
        content = np.frombuffer(whole, np.uint8).copy()
        content[rng.integers(2, len(content), 3)] = rng.integers(0, 256, 3)
        got = read(content[: rng.integers(2, 2 * len(content))].tobytes(), kind)
        assert isinstance(got, np.ndarray) or "\n" not in got
