"""DFAM's model with made-up weights that are the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ris.reference.dfam.config import ModelConfig
from ris.reference.dfam.model import RISModel, empty_model
from ris.reference.made_up import make_tensor as usual_tensor
from ris.reference.made_up import standard_normal

# By a part of a key: what keeps the queries apart, and mask logits of a few units
_GAINS = {
    "txt2txt.ca.multihead_attn.out_proj.weight": 1.0,
    "clip_mlpl.weight": 28.0,
    "output_hypernetworks_mlps.0.layers.2.weight": 4.0,
}


def make_tensor(key: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """The tensor of a state-dict key, as of `ris.reference.made_up.make_tensor`.

    The family's own are the table of categories, the weights of the losses and three scales.
    """
    shape = tuple(int(n) for n in shape)
    if key == "criterion.empty_weight":
        return np.array([1.0] * (shape[0] - 1) + [0.1], np.float32)
    if key == "criterion.additional_weight":
        return np.ones(shape, np.float32)
    if key == "nt_weight":
        return np.array([0.9, 1.1], np.float32)
    if key == "text_embeddings":
        normal = standard_normal(key, shape, seed)
        norms = np.linalg.norm(normal.astype(np.float64), axis=-1, keepdims=True)
        return (normal / norms).astype(np.float32)
    gain = next((value for part, value in _GAINS.items() if part in key), None)
    return usual_tensor(key, shape, seed, gain)


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
