"""Files of `ris-calibrate weights`: other headers and bytes, and other levels with a right hash."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from fuzz.kinds import Input, Kind, require
from fuzz.mutate import mutate
from fuzz.weights import mutated_header
from ris.calibration.weights.groups import round_in_groups
from ris.engines.errors import RisError
from ris.export.rounded_file import (
    About,
    Record,
    RoundedFile,
    digest_of,
    forms_of,
    header,
)
from ris.export.sources import made_up

FILE = "rounded.safetensors"
SOURCE = made_up("tiny", 0)
NAME = "layer.weight"
ABOUT = About(SOURCE.family, SOURCE.config, SOURCE.describe(), {"fusion": "int4"})
MATRIX: Any = np.random.default_rng(1).standard_normal((128, 3)).astype(np.float32)
ROUNDED = round_in_groups(-MATRIX, "int4", 128)
"""Other levels than the nearest, so that it shows whose they are."""

RECORD = Record(
    ROUNDED.levels,
    ROUNDED.scales,
    np.frombuffer(digest_of(MATRIX, "int4"), np.uint8),
    np.array([0.2, 0.1], np.float32),
)


def _file(record: Record) -> bytes:
    about = ABOUT.metadata()
    begin: bytes = header(about, forms_of(NAME, 128, 3, 128)).tobytes()
    return begin + record.whole(about, NAME).tobytes()


def _mutated_record(rng: random.Random) -> Record:
    """Some of its numbers are others; its check will be right."""
    parts: list[Any] = [part.copy() for part in RECORD]
    for _ in range(rng.choice((1, 1, 2, 5))):
        part = rng.choice(parts).reshape(-1).view(np.uint8)
        part[rng.randrange(part.size)] = rng.choice((0, 7, 8, 0x7F, 0x80, 0xFF, rng.randrange(256)))
    return Record(*parts)


def _make(rng: random.Random, control: bool) -> Input:
    if control:
        return Input({FILE: _file(RECORD)}, expected=True)
    steps = (
        lambda: mutated_header(_file(RECORD), rng),
        lambda: mutate(_file(RECORD), rng),
        lambda: _file(_mutated_record(rng)),
    )
    return Input({FILE: rng.choice(steps)()})


def _read(folder: Path, expected: Any) -> list[str]:
    opened = RoundedFile(folder / FILE)
    opened.require(ABOUT)
    opened.errors()
    rounded = opened(MATRIX, "int4", 128, NAME)
    require(rounded.values().shape == MATRIX.shape, "another shape")
    require(bool(np.isfinite(rounded.values()).all()), "values that are no numbers")
    if expected is not None:
        require(bool((rounded.levels == ROUNDED.levels).all()), "other levels")
        return []
    try:
        opened.require_taken()
    except RisError:
        require(NAME in opened.missed, "a matrix that is neither taken nor missed")
        raise
    return []


KINDS = {"rounded-safetensors": Kind(_make, _read)}
