"""Files of `ris-calibrate weights`, with another header or other levels."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from fuzz.kinds import Input, Kind, require
from fuzz.mutate import mutate
from fuzz.weights import mutated_header
from ris.calibration.weights.groups import round_in_groups
from ris.export.rounded_file import About, RoundedFile, digest_of
from ris.export.sources import made_up

FILE = "rounded.safetensors"
SOURCE = made_up("tiny", 0)


@functools.cache
def _matrix() -> Any:
    return np.random.default_rng(1).standard_normal((128, 3)).astype(np.float32)


def _about() -> About:
    return About(SOURCE.family, SOURCE.config, SOURCE.describe(), {"fusion": "int4"})


@functools.cache
def _good() -> bytes:
    rounded = round_in_groups(-_matrix(), "int4", 128)
    tensors = {
        "layer.weight.levels": rounded.levels,
        "layer.weight.scales": rounded.scales,
        "layer.weight.sha256": np.frombuffer(digest_of(_matrix(), "int4"), np.uint8),
        "layer.weight.errors": np.array([0.2, 0.1], np.float32),
    }
    data: bytes = save(tensors, _about().metadata())
    return data


def _make(rng: random.Random, control: bool) -> Input:
    if control:
        return Input({FILE: _good()}, expected=True)
    data = mutated_header(_good(), rng) if rng.random() < 0.6 else mutate(_good(), rng)
    return Input({FILE: data})


def _read(folder: Path, expected: Any) -> list[str]:
    opened = RoundedFile(folder / FILE)
    opened.require(_about())
    opened.errors()
    rounded = opened(_matrix(), "int4", 128)
    require(rounded.values().shape == _matrix().shape, "another shape")
    if expected is not None:
        wanted = round_in_groups(-_matrix(), "int4", 128)
        require(bool((rounded.levels == wanted.levels).all()), "other levels")
    return []


KINDS = {"rounded-safetensors": Kind(_make, _read)}
