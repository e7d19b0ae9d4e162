"""EVF-SAM's weight files and parts of its model, for the tests."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

from conftest import GOLDEN
from ris.reference.evfsam.config import PRESETS
from ris.reference.evfsam.deterministic import make_tensor
from ris.reference.evfsam.model import empty_model

FILES = {"1": "keys.json", "2": "keys_evfsam2.json"}
"""The list of each version's keys."""

PRESET_OF = {"1": "evfsam", "2": "evfsam2"}
"""The published preset of each version."""

Shape = tuple[int, ...]


def official_keys(version: str) -> dict[str, dict]:
    """Every key of a version's official checkpoint with shape and what it reaches."""
    return json.loads((GOLDEN / "evfsam" / FILES[version]).read_text())


def made(key: str, shape: Shape) -> torch.Tensor:
    """The golden weights of a key."""
    return torch.from_numpy(np.array(make_tensor(key, shape)))


def part(version: str, path: str) -> nn.Module:
    """A module of the full-size model with its golden weights; the others have none."""
    module = empty_model(PRESETS[PRESET_OF[version]]).get_submodule(path)
    state = {key: made(f"{path}.{key}", tuple(v.shape)) for key, v in module.state_dict().items()}
    module.load_state_dict(state, assign=True)
    return module.requires_grad_(False)


def released_type(version: str) -> Callable[[str], torch.dtype]:
    """The type of a key's tensor in the released file.

    Version 1's is FP16 throughout. Version 2's has the size of FP32 for BEiT-3 and the projector,
    FP16 for the rest.
    """

    def found(key: str) -> torch.dtype:
        wide = version == "2" and key.startswith(("mm_extractor.", "text_hidden_fcs."))
        return torch.float32 if wide else torch.float16

    return found


def save(path: Path, state: dict[str, torch.Tensor]) -> Path:
    """A bare state dict, as PyTorch's file or as safetensors, by the path's end."""
    if path.suffix == ".safetensors":
        from safetensors.torch import save_file

        save_file(state, path)
    else:
        torch.save(state, path)
    return path


def save_empty(path: Path, version: str) -> Path:
    """A safetensors file with the keys, shapes and types of a released one; all numbers are zero.

    It is as long as such a file, and takes no room.
    """
    header, end, type_of = {}, 0, released_type(version)
    for key, one in official_keys(version).items():
        wide = type_of(key) == torch.float32
        start, end = end, end + math.prod(one["shape"]) * (4 if wide else 2)
        kind = "F32" if wide else "F16"
        header[key] = {"dtype": kind, "shape": one["shape"], "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)
    return path
