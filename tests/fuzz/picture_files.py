"""Good pictures in every form that Pillow writes, and some that it only reads."""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

HEIGHT, WIDTH = 36, 44
EXACT = 0.0
LOSSY = 12.0


@dataclass(frozen=True)
class Good:
    """A picture as a file."""

    name: str
    """The file's name."""

    data: bytes
    """Its content."""

    rgb: np.ndarray
    """uint8 [H, W, 3]: what it shows."""

    tolerance: float | None = EXACT
    """By how many levels the mean of a pixel's difference may be off. None: it is another picture,
    resized or of fewer colours, or Pillow does not read it everywhere."""


def _drawn() -> np.ndarray:
    """uint8 [H, W, 3]: smooth colours with two boxes, different in each corner."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    rgb = np.stack([x * 5, y * 6, 200 - x * 2 - y], axis=-1).astype(np.uint8)
    rgb[4:14, 6:20] = (250, 30, 40)
    rgb[22:32, 28:40] = (20, 40, 240)
    return rgb


RGB = _drawn()
GREY = RGB[..., 0].copy()
ALPHA = np.where(np.arange(WIDTH) < WIDTH // 2, 255, 0).astype(np.uint8)[None].repeat(HEIGHT, 0)
BITS = GREY > 100
SHARES = GREY.astype(np.float32) / GREY.max()
INDEX = (RGB[..., 0] // 32).astype(np.uint8)
PALETTE = np.random.default_rng(5).integers(0, 256, (8, 3)).astype(np.uint8)


def _grey(values: np.ndarray) -> np.ndarray:
    return np.repeat(values[..., None], 3, axis=2)


def _over_white(rgb: np.ndarray) -> np.ndarray:
    return np.where(ALPHA[..., None] > 0, rgb, 255).astype(np.uint8)


def _paletted() -> Image.Image:
    image = Image.frombytes("P", (WIDTH, HEIGHT), INDEX.tobytes())
    image.putpalette(PALETTE.tobytes())
    return image


MODES: dict[str, tuple[Image.Image, np.ndarray]] = {
    "RGB": (Image.fromarray(RGB), RGB),
    "L": (Image.fromarray(GREY), _grey(GREY)),
    "1": (Image.fromarray(BITS), _grey(BITS.astype(np.uint8) * 255)),
    "P": (_paletted(), PALETTE[INDEX]),
    "RGBA": (Image.fromarray(np.dstack([RGB, ALPHA])), _over_white(RGB)),
    "LA": (Image.fromarray(np.dstack([GREY, ALPHA])), _over_white(_grey(GREY))),
    "I;16": (Image.fromarray(GREY.astype(np.uint16) * 257), _grey(GREY)),
    "F": (Image.fromarray(SHARES), _grey(np.rint(SHARES * 255).astype(np.uint8))),
    "CMYK": (Image.fromarray(RGB).convert("CMYK"), RGB),
}
"""Pillow's mode -> the picture in it, and what it shows."""


def _exif(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    exif[ExifTags.Base.Make] = "Camera"
    return exif.tobytes()


def _saved(form: str, mode: str = "RGB", tolerance: float | None = EXACT, **options: Any) -> Good:
    image, rgb = MODES[mode]
    file = io.BytesIO()
    image.save(file, form, **options)
    suffix = form.lower().replace("jpeg2000", "jp2")
    return Good(f"picture.{suffix}", file.getvalue(), rgb, tolerance)


def _frames(form: str, **options: Any) -> Good:
    other = Image.fromarray(RGB[::-1].copy())
    return _saved(form, save_all=True, append_images=[other, other], **options)


def _turned(good: Good) -> Good:
    """What a picture with orientation 6 shows: it lies on its left side."""
    return Good(good.name, good.data, np.rot90(good.rgb, -1), good.tolerance)


def jpeg() -> Iterator[Good]:
    """JPEG, MPO among it."""
    best = {"quality": 95, "subsampling": 0}
    yield _saved("JPEG", tolerance=LOSSY, **best)
    yield _saved("JPEG", tolerance=LOSSY, quality=80)
    yield _saved("JPEG", tolerance=LOSSY, progressive=True, **best)
    yield _saved("JPEG", "L", tolerance=LOSSY, **best)
    yield _saved("JPEG", "CMYK", tolerance=LOSSY, **best)
    yield _saved("JPEG", tolerance=LOSSY, keep_rgb=True, quality=95)
    yield _saved("JPEG", tolerance=LOSSY, restart_marker_rows=1, optimize=True, **best)
    yield _turned(_saved("JPEG", tolerance=LOSSY, exif=_exif(6), **best))
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    yield _saved("JPEG", tolerance=LOSSY, icc_profile=profile, comment=b"a comment", **best)
    yield _frames("MPO", tolerance=LOSSY, **best)


def png() -> Iterator[Good]:
    """PNG, animations and 16 bits among it."""
    for mode in ("RGB", "L", "1", "P", "RGBA", "LA", "I;16"):
        yield _saved("PNG", mode)
    yield _saved("PNG", "P", transparency=200)
    yield _saved("PNG", "P", bits=4)
    yield _turned(_saved("PNG", exif=_exif(6)))
    texts = PngImagePlugin.PngInfo()
    texts.add_text("Comment", "drawn " * 40)
    texts.add_text("Long", "drawn " * 400, zip=True)
    texts.add_itxt("Titel", "Zwei Kästen", "de", "Titel", zip=True)
    yield _saved("PNG", pnginfo=texts, dpi=(72, 72))
    yield _frames("PNG", duration=100)
    rows = b"".join(b"\0" + row.tobytes() for row in (RGB.astype(">u2") * 257).astype(">u2"))
    header = struct.pack(">IIBBBBB", WIDTH, HEIGHT, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    deep = b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)
    yield Good("picture.png", deep, RGB, 1.0)


def png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk with its length and checksum."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def webp() -> Iterator[Good]:
    """WebP."""
    yield _saved("WEBP", tolerance=LOSSY, quality=90)
    yield _saved("WEBP", lossless=True)
    yield _saved("WEBP", "RGBA", lossless=True, exact=True)
    yield _turned(_saved("WEBP", lossless=True, exif=_exif(6)))
    yield _frames("WEBP", lossless=True, duration=50)
    yield _saved("WEBP", "L", tolerance=LOSSY)


def avif() -> Iterator[Good]:
    """AVIF."""
    yield _saved("AVIF", tolerance=LOSSY, quality=90)
    yield _saved("AVIF", "RGBA", tolerance=LOSSY, quality=90)
    yield _turned(_saved("AVIF", tolerance=LOSSY, quality=90, exif=_exif(6)))
    yield _saved("AVIF", "L", tolerance=LOSSY, quality=90)
    yield _frames("AVIF", tolerance=LOSSY, quality=90)


def gif() -> Iterator[Good]:
    """GIF, of few colours."""
    for options in ({}, {"interlace": 0}, {"comment": b"x" * 300}, {"optimize": False}):
        yield _saved("GIF", "P", **options)
    yield _saved("GIF", "L", 8.0)
    yield _saved("GIF", "1")
    other = _paletted().transpose(Image.Transpose.ROTATE_180)
    yield _saved("GIF", "P", save_all=True, append_images=[other], loop=0, disposal=2)


def tiff() -> Iterator[Good]:
    """TIFF in its compressions and depths."""
    for name in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "lzma", "zstd"):
        yield _saved("TIFF", compression=name)
    yield _saved("TIFF", tolerance=LOSSY, compression="jpeg", quality=95)
    for name in ("group3", "group4", "packbits"):
        yield _saved("TIFF", "1", compression=name)
    for mode in ("L", "P", "RGBA", "LA", "I;16", "F", "CMYK"):
        yield _saved("TIFF", mode)
    yield _saved("TIFF", "I;16", compression="tiff_lzw")
    yield _saved("TIFF", "F", compression="tiff_adobe_deflate")
    yield _saved("TIFF", big_tiff=True)
    yield _frames("TIFF", compression="tiff_lzw")
    yield _turned(_saved("TIFF", tiffinfo={274: 6, 270: "a description"}))
    yield _saved("TIFF", tiffinfo={278: 4}, compression="tiff_lzw")


def bmp() -> Iterator[Good]:
    """BMP, DIB and the icons made of it."""
    for mode in ("RGB", "L", "1", "P"):
        yield _saved("BMP", mode)
    yield _saved("BMP", "RGBA", None)  # the fourth byte of 32 bits is alpha to some only
    yield _saved("DIB")
    yield _saved("ICO", "RGBA", None)  # the size is one of an icon
    yield _saved("ICO", "RGBA", None, bitmap_format="bmp")
    icon = _saved("ICO", "RGBA", None, bitmap_format="bmp")
    yield Good("picture.cur", icon.data[:2] + b"\2\0" + icon.data[4:], RGB, None)


def dds() -> Iterator[Good]:
    """DDS."""
    for mode in ("RGB", "RGBA", "L", "LA"):
        yield _saved("DDS", mode)
    for name in ("DXT1", "DXT3", "DXT5", "BC2", "BC3"):
        yield _saved("DDS", "RGBA", 40.0, pixel_format=name)
    yield _saved("DDS", "RGB", None, pixel_format="BC5")


def jpeg2000() -> Iterator[Good]:
    """JPEG 2000."""
    yield _saved("JPEG2000")
    yield _saved("JPEG2000", no_jp2=True)
    yield _saved("JPEG2000", "RGBA")
    yield _saved("JPEG2000", "L", tile_size=(16, 16), num_resolutions=2)
    yield _saved("JPEG2000", "I;16", 1.0)
    yield _saved("JPEG2000", tolerance=40.0, irreversible=True, quality_layers=[20])


def other() -> Iterator[Good]:
    """What is left, among it what Pillow reads and does not write."""
    for form, modes in (
        ("PPM", ("RGB", "L", "1", "I;16", "F")),
        ("PCX", ("RGB", "L", "P", "1")),
        ("SGI", ("RGB", "L", "RGBA")),
        ("TGA", ("RGB", "RGBA", "L", "LA", "P")),
        ("IM", ("RGB", "L", "P", "1", "CMYK")),
        ("QOI", ("RGB", "RGBA")),
        ("MSP", ("1",)),
        ("BLP", ("P",)),
    ):
        for mode in modes:
            yield _saved(form, mode, 1.0)
    yield _saved("TGA", compression="tga_rle")
    yield _saved("SGI", bpc=2)
    yield _saved("XBM", "1")  # black is 1 in it
    yield _saved("SPIDER", "F", 1.0)
    yield _saved("ICNS", "RGBA", None)  # resized to an icon
    yield _saved("EPS", tolerance=None)  # needs Ghostscript
    yield from _only_read()


def _only_read() -> Iterator[Good]:
    """Simple files of forms that Pillow does not write."""
    sun = struct.pack(">8I", 0x59A66A95, WIDTH, HEIGHT, 24, RGB.size, 1, 0, 0)
    yield Good("picture.ras", sun + RGB[..., ::-1].tobytes(), RGB)
    dcx = struct.pack("<II", 0x3ADE68B1, 12) + bytes(4)
    yield Good("picture.dcx", dcx + _saved("PCX").data, RGB)
    fits = [f"SIMPLE  = {'T':>20}", f"BITPIX  = {8:>20}", f"NAXIS   = {2:>20}"]
    fits += [f"NAXIS1  = {WIDTH:>20}", f"NAXIS2  = {HEIGHT:>20}", "END"]
    header = "".join(card.ljust(80) for card in fits).ljust(2880).encode()
    yield Good("picture.fits", header + GREY[::-1].tobytes().ljust(2880, b"\0"), _grey(GREY))
    psd = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, HEIGHT, WIDTH, 8, 3) + bytes(12)
    yield Good("picture.psd", psd + b"\0\0" + RGB.transpose(2, 0, 1).tobytes(), RGB)
    pixar = b"\x80\xe8\0\0".ljust(416, b"\0") + struct.pack("<HH", HEIGHT, WIDTH)
    pixar = pixar.ljust(424, b"\0") + struct.pack("<HH", 14, 2)
    yield Good("picture.pxr", pixar.ljust(1024, b"\0") + RGB.tobytes(), RGB)
    gbr = struct.pack(">7I", 33, 2, WIDTH, HEIGHT, 1, 0x47494D50, 10) + b"name\0"
    yield Good("picture.gbr", gbr + GREY.tobytes(), _grey(GREY))
    ftex = b"FTEX" + struct.pack("<9I", 0, WIDTH, HEIGHT, 1, 1, 1, 32, RGB.size, RGB.size)
    yield Good("picture.ftu", ftex[:32] + struct.pack("<I", RGB.size) + RGB.tobytes(), RGB)
    colours = "".join(f'"{i} c #{r:02x}{g:02x}{b:02x}",\n' for i, (r, g, b) in enumerate(PALETTE))
    rows = "".join('"' + "".join(map(str, row)) + '",\n' for row in INDEX)
    xpm = f'/* XPM */\nstatic char *x[] = {{\n"{WIDTH} {HEIGHT} 8 1",\n{colours}{rows}}};\n'
    yield Good("picture.xpm", xpm.encode(), PALETTE[INDEX])
    thumb = f"P7 332\n#END_OF_COMMENTS\n{WIDTH} {HEIGHT} 255\n".encode()
    yield Good("picture.p7", thumb + GREY.tobytes(), _grey(GREY), None)


@functools.cache
def good_files(family: str) -> tuple[Good, ...]:
    """The pictures of one of the functions above."""
    return tuple(globals()[family]())
