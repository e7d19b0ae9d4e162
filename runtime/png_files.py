"""PNG files chunk by chunk, for what Pillow does not tell or refuses; no pixel is read."""

from __future__ import annotations

import io
import os
import struct
from collections.abc import Iterator
from typing import IO

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"iCCP")
_HEADER, _CHECKSUM = 8, 4


def png_exif(file: IO[bytes]) -> bytes | None:
    """The EXIF block of a PNG file, wherever it stands; Pillow's header has it before pixels."""
    for header, length in _chunks(file):
        if header.endswith(b"eXIf"):
            return file.read(length)
    return None


def without_texts(file: IO[bytes]) -> IO[bytes] | None:
    """A PNG file without its texts and colour profile, which may be longer than Pillow reads.

    None for another file, and where it has none of them.
    """
    file.seek(0)
    if file.read(len(_SIGNATURE)) != _SIGNATURE:
        return None
    kept, dropped = io.BytesIO(_SIGNATURE), False
    kept.seek(0, os.SEEK_END)
    for header, length in _chunks(file):
        if header.endswith(_TEXTS):
            dropped = True
        else:
            kept.write(header + file.read(length + _CHECKSUM))
    return kept if dropped else None


def _chunks(file: IO[bytes]) -> Iterator[tuple[bytes, int]]:
    """Each chunk's header, which ends with its kind, and its length; the file is at its content.

    The length is never more than the file has: whoever reads as much gets memory for it first.
    """
    end = file.seek(0, os.SEEK_END)
    place = len(_SIGNATURE)
    while place + _HEADER <= end:
        file.seek(place)
        header = file.read(_HEADER)
        (length,) = struct.unpack(">I", header[:4])
        place += _HEADER
        yield header, min(length, end - place)
        place += length + _CHECKSUM
