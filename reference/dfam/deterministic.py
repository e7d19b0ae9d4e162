"""DFAM's model with made-up weights that are the same everywhere."""

from __future__ import annotations

import numpy as np
import torch

from ris.reference.dfam.config import ModelConfig
from ris.reference.dfam.model import RISModel, empty_model
from ris.reference.made_up import make_tensor

__all__ = ["deterministic_model", "make_tensor"]


def deterministic_model(
    config: ModelConfig, seed: int = 0, *, clip_text_tower: bool = False
) -> RISModel:
    """The whole model of `config` with made-up weights, eval mode, float32, no gradients.

    There is one copy of the weights in memory: the tensors are assigned, not copied into others.
    """
    model = empty_model(config, clip_text_tower=clip_text_tower)
    state = {
        key: torch.from_numpy(np.array(make_tensor(key, value.shape, seed)))
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)
