"""Pictures: every door reads the same of them, or each refuses."""

from __future__ import annotations

import functools
import random
import struct
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.kinds import Input, Kind, require
from fuzz.mutate import mutate
from fuzz.picture_files import Good, good_files, png_chunk
from ris.engines.errors import RisError
from ris.runtime.image import load_picture, load_rgb
from ris.serving.limits import Limits

FAMILIES = ("jpeg", "png", "webp", "avif", "gif", "tiff", "bmp", "dds", "jpeg2000", "other")
DRAFT = 12


def _make(family: str, rng: random.Random, control: bool) -> Input:
    goods = good_files(family)
    if control:
        good = rng.choice([good for good in goods if good.tolerance is not None])
        return Input({good.name: good.data}, expected=good)
    good = rng.choice(goods)
    return Input({good.name: _mutated(good, family, rng)})


def _mutated(good: Good, family: str, rng: random.Random) -> bytes:
    how = rng.random()
    if how < 0.04:  # the beginning of one picture before the rest of another
        other = rng.choice(good_files(rng.choice(FAMILIES))).data
        cut = rng.choice((8, 32, len(good.data) // 2))
        return good.data[:cut] + other[cut:]
    if family == "png" and how < 0.7:
        return _mutated_chunks(good.data, rng)
    return mutate(good.data, rng)


def _mutated_chunks(data: bytes, rng: random.Random) -> bytes:
    """A PNG file with other chunks, whose checksums are right, so that a decoder reads on."""
    chunks, at = [], 8
    while at < len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += size + 12
    which = rng.randrange(len(chunks))
    name, content = chunks[which]
    match rng.choice(("change", "change", "change", "name", "drop", "double", "move", "long")):
        case "change":
            chunks[which] = name, mutate(content, rng)
        case "name":
            chunks[which] = (
                rng.choice((b"tEXt", b"zTXt", b"iCCP", b"eXIf", b"fdAT", b"PLTE")),
                content,
            )
        case "drop":
            del chunks[which]
        case "double":
            chunks.insert(rng.randrange(len(chunks)), (name, content))
        case "move":
            chunks.insert(rng.randrange(len(chunks)), chunks.pop(which))
        case "long":
            chunks.insert(1, (rng.choice((b"tEXt", b"iTXt", b"prVt")), b"k\0" + b"x" * 1_500_000))
    return data[:8] + b"".join(png_chunk(*chunk) for chunk in chunks)


def _door(folder: Path, expected: Good | None) -> list[str]:
    (path,) = folder.iterdir()
    data = path.read_bytes()
    try:
        rgb = load_rgb(path)
    except RisError as error:
        _require_refused(data, error)
        raise
    require(rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3, f"{rgb.shape}")
    if expected is not None:
        require(rgb.shape == expected.rgb.shape, f"{rgb.shape}, not {expected.rgb.shape}")
        off = np.abs(rgb.astype(np.float32) - expected.rgb).mean()
        require(off <= (expected.tolerance or 0), f"{off} levels off")
    draft = load_picture(path, DRAFT)
    require((draft.height, draft.width) == rgb.shape[:2], "a draft of another size")
    served = _served(data)
    require(served is None or np.array_equal(served, rgb), "the served picture is another one")
    return []


def _require_refused(data: bytes, reason: RisError) -> None:
    served = _served(data)
    require(served is None, f"served, but from a file it is {reason}")


def _served(data: bytes) -> np.ndarray | None:
    """What the servers read of it; None where they refuse it."""
    try:
        return Limits().decode(data)
    except RisError as error:
        text = str(error)
        require(len(text) < 1000 and len(text.splitlines()) == 1, f"not a sentence: {text!r}")
        return None


KINDS: dict[str, Any] = {
    f"picture-{family}": Kind(functools.partial(_make, family), _door) for family in FAMILIES
}
