"""ReLA's weight files and questions, for the tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from checkpoint_files import save_training_checkpoint
from conftest import GOLDEN
from ris.reference.layers.windows import relative_positions
from ris.reference.rela.config import PRESETS
from ris.reference.rela.deterministic import make_tensor

PRESET = {"base": "rela-swin-base", "tiny": "rela-swin-tiny"}
"""The preset of each size."""


def write_checkpoint(path: Path, size: str, seed: int = 0) -> Path:
    """A file with exactly the keys, shapes and types of the official one, as detectron2 writes it.

    size: "base" or "tiny". The weights are the golden ones of the seed.
    """
    keys = json.loads((GOLDEN / "rela" / "keys.json").read_text())[f"swin_{size}"]
    index = torch.from_numpy(relative_positions(PRESETS[PRESET[size]].swin.window))
    state = {
        key: torch.from_numpy(make_tensor(key, one["shape"], seed).copy())
        if one["kind"] == "parameter"
        else index.clone()
        for key, one in keys.items()
    }
    assert all(list(state[key].shape) == one["shape"] for key, one in keys.items())
    return save_training_checkpoint(path, state)


if __name__ == "__main__":  # by another process, whose memory does not count
    write_checkpoint(Path(sys.argv[1]), sys.argv[2])
