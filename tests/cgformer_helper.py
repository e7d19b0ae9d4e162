"""CGFormer's weight files, for the tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from conftest import GOLDEN
from ris.reference.cgformer.deterministic import make_tensor
from ris.reference.layers.windows import relative_positions

DEAD = ("loadtoken.norm.", "loadtoken.mlp.")
"""Parts of keys of the word readers that official files have and no answer reads."""


def official_keys() -> dict[str, dict]:
    """Every key of an official checkpoint with shape, dtype, kind and use."""
    return json.loads((GOLDEN / "cgformer" / "keys.json").read_text())


def save_training_file(path: Path, state: dict[str, torch.Tensor], **more: object) -> Path:
    """As the authors' loop writes it: epoch, scores and optimiser beside the state dict."""
    optimizer = {
        "state": {0: {"exp_avg": torch.zeros(7), "max_exp_avg_sq": torch.zeros(7)}},
        "param_groups": [{"lr": 1e-4, "amsgrad": True, "params": [0]}],
    }
    beside = {
        "epoch": 49,
        "cur_iou": np.float64(0.7475),
        "best_iou": torch.tensor(0.7475),
        "prec": {"Pr@50": np.float32(0.87), "Pr@90": 0.4},
        "optimizer": optimizer,
        "scheduler": {"last_epoch": 49, "lr_lambdas": [None]},
    }
    torch.save({**beside, "model_state_dict": state, **more}, path)
    return path


def write_checkpoint(path: Path, seed: int = 0) -> Path:
    """A file with exactly the keys, shapes and types of an official one, of full size.

    The weights are the golden ones of the seed.
    """
    index = torch.from_numpy(relative_positions(12))
    state = {
        key: index.clone()
        if one["use"] == "constant"
        else torch.from_numpy(np.array(make_tensor(key, one["shape"], seed)))
        for key, one in official_keys().items()
    }
    assert all(list(state[key].shape) == one["shape"] for key, one in official_keys().items())
    return save_training_file(path, state)


if __name__ == "__main__":  # by another process, whose memory does not count
    write_checkpoint(Path(sys.argv[1]))
