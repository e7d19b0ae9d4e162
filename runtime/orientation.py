"""Which way up a picture is shown: EXIF's orientation, whatever else the EXIF block has in it."""

from __future__ import annotations

import re
import struct
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF's orientation -> how the stored pixels are turned to be shown; 1 is upright."""

_LYING = (5, 6, 7, 8)
_SHORT = 3
_XMP = re.compile(rb"""tiff:Orientation(?:="|='|>)([1-8])""")


def turned(picture: Image.Image, orientation: int) -> Image.Image:
    """Stored pixels as they are shown."""
    return picture.transpose(TURNS[orientation]) if orientation in TURNS else picture


def turned_mask(mask: NDArray[np.bool_], orientation: int) -> NDArray[np.bool_]:
    """A mask of the stored pixels, bool [H, W], as one of the picture that is shown."""
    return np.asarray(turned(Image.fromarray(mask), orientation))


def turned_size(height: int, width: int, orientation: int) -> tuple[int, int]:
    """The height and width that are shown, of the stored ones; or the other way round."""
    return (width, height) if orientation in _LYING else (height, width)


def orientation_of(picture: Image.Image) -> int:
    """1 to 8, as the file says it; 1 where it says nothing.

    Of a TIFF file it says how the pixels are stored, though Pillow turns them as it loads them. A
    PNG file may have its EXIF block behind the pixels, where only a loaded picture has it.
    """
    if hasattr(picture, "tag_v2"):
        value = picture.tag_v2.get(ExifTags.Base.Orientation)
        return value if value in TURNS else 1
    info = picture.info
    block = info.get("exif") or _from_text(info.get("Raw profile type exif"))
    if isinstance(block, bytes) and (found := exif_orientation(block)):
        return found
    return _from_xmp(info.get("xmp") or info.get("XML:com.adobe.xmp"))


def exif_orientation(block: bytes) -> int | None:
    """The orientation in an EXIF block, 1 to 8.

    Only this entry is looked at: wrong values elsewhere in the block do not matter. None where it
    has no entry that is one 16-bit number of that range.
    """
    block = block.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(block[:4])
    if order is None or len(block) < 8:
        return None
    (start,) = struct.unpack(f"{order}I", block[4:8])
    (count,) = struct.unpack(f"{order}H", block[start : start + 2].ljust(2, b"\0"))
    for place in range(start + 2, min(start + 2 + 12 * count, len(block) - 11), 12):
        tag, kind, number, value = struct.unpack(f"{order}HHIH", block[place : place + 10])
        if tag == ExifTags.Base.Orientation:
            return value if kind == _SHORT and number == 1 and 1 <= value <= 8 else None
    return None


def _from_text(profile: Any) -> bytes:
    """The block that ImageMagick writes into a PNG file as hexadecimal text."""
    if not isinstance(profile, str):
        return b""
    try:
        return bytes.fromhex("".join(profile.split("\n")[3:]))
    except ValueError:
        return b""


def _from_xmp(packet: Any) -> int:
    if isinstance(packet, str):
        packet = packet.encode("utf-8", "ignore")
    found = _XMP.search(packet) if isinstance(packet, bytes) else None
    return int(found[1]) if found else 1
