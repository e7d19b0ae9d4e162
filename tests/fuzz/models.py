"""A bundle with a mutated manifest, loaded and asked: what the door lets in must not fail later."""

from __future__ import annotations

import functools
import json
import random
from pathlib import Path
from typing import Any

from fuzz.bundles import large_files
from fuzz.json_tree import mutated_tree, write
from fuzz.kinds import Input, Kind, require
from fuzz.picture_files import HEIGHT, RGB, WIDTH
from ris.runtime import load
from ris.runtime.bundle import BUILT_IN, MANIFEST


@functools.cache
def _manifest() -> Any:
    data = json.loads((BUILT_IN / MANIFEST).read_text(encoding="utf-8"))
    for graph in data["graphs"].values():
        graph["fp32_islands"] = {}
    return data


_USED = ("preprocess", "text", "dense_prompt", "postprocess", "graphs")


def _make(rng: random.Random, control: bool) -> Input:
    data = dict(_manifest())
    if not control:
        part = rng.choice(_USED)
        data[part] = mutated_tree(data[part], rng)
    return Input({MANIFEST: write(data)}, large_files(), (HEIGHT, WIDTH) if control else None)


def _door(folder: Path, expected: Any) -> list[str]:
    with load(folder, engine="onnxruntime", device="cpu", verify=False, threads=1) as model:
        mask = model.segment(RGB, "left man").mask
    require(mask.shape == (HEIGHT, WIDTH), f"a mask of {mask.shape}")
    return []


KINDS = {"model-manifest": Kind(_make, _door)}
