"""A bundle with a mutated manifest, loaded and asked: what the door lets in must not fail later."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from fuzz.bundles import large_files, manifest
from fuzz.json_tree import mutated_tree, write
from fuzz.kinds import Input, Kind, require
from fuzz.picture_files import HEIGHT, RGB, WIDTH
from ris.runtime import load
from ris.runtime.bundle import MANIFEST

_USED = {
    1: ("preprocess", "text", "dense_prompt", "postprocess", "graphs"),
    2: ("host", "answer", "stages"),
}
"""The parts of a manifest that the runtime uses, by format."""


def _make(rng: random.Random, control: bool) -> Input:
    version = rng.choice((1, 2))
    data = dict(manifest(version, nodes=0))
    if not control:
        part = rng.choice(_USED[version])
        data[part] = mutated_tree(data[part], rng)
    expected = (HEIGHT, WIDTH) if control else None
    return Input({MANIFEST: write(data)}, large_files(version), expected)


def _door(folder: Path, expected: Any) -> list[str]:
    with load(folder, engine="onnxruntime", device="cpu", verify=False, threads=1) as model:
        mask = model.segment(RGB, "left man").mask
    require(mask.shape == (HEIGHT, WIDTH), f"a mask of {mask.shape}")
    return []


KINDS = {"model-manifest": Kind(_make, _door)}
