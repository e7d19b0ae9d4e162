"""Writes LISA's golden weights as released files, cut to two layers, in a process of its own.

    python lisa_golden_run.py FOLDER

FOLDER gets LISA-7B-v1/ with its shards, vocabulary and settings, and clip.safetensors. All numbers
are float32, as the golden files were computed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from lisa_helper import State, official_keys, write_clip, write_folder
from lisa_vocabulary import write_vocabulary

from conftest import GOLDEN
from ris.reference.lisa.config import PRESETS, LisaConfig
from ris.reference.lisa.deterministic import make_tensor

LAYERS = 2


def shortened() -> LisaConfig:
    """The 7B with the golden files' layers."""
    whole = PRESETS["lisa-7b"]
    return replace(whole, llama=replace(whole.llama, layers=LAYERS))


def golden_state() -> State:
    """A tensor for each official key but those of the layers that are left out."""
    state: State = {}
    for key, one in official_keys().items():
        if key.startswith("model.layers.") and int(key.split(".")[2]) >= LAYERS:
            continue
        if key.endswith("inv_freq") or key.startswith("lm_head."):
            state[key] = torch.zeros(one["shape"])
            continue
        made = make_tensor(key.removeprefix("model."), one["shape"])
        state[key] = torch.from_numpy(np.array(made))
    return state


def write(folder: Path) -> None:
    """Everything that an export is given."""
    config = shortened()
    given = write_folder(folder / "LISA-7B-v1", config, golden_state(), end="safetensors")
    write_vocabulary(GOLDEN / "lisa" / "tokenizer_small.model", given / "tokenizer.model")
    write_clip(folder / "clip.safetensors", config, seed=0)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
