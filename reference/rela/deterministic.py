"""ReLA's model with made-up weights that are the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ris.reference.made_up import make_tensor as usual_tensor
from ris.reference.made_up import standard_normal
from ris.reference.rela.config import RelaConfig
from ris.reference.rela.keys import LANG_WEIGHT, REGIONS
from ris.reference.rela.model import RelaModel, empty_model

_MINIMAP_BIAS = f"{REGIONS}minimap_embed.bias"

# By the beginning and the end of a key. Small additions to the regions, so that they do not become
# one; attention over many keys, so that a key whose mask flips within rounding weighs little; small
# weights of the regions, so that their sum gives mask logits of a few units.
_GAINS = {
    (f"{REGIONS}RIA_layers.", "in_proj_weight"): 0.8,
    (f"{REGIONS}RLA_vision.", "in_proj_weight"): 1.0,
    (f"{REGIONS}RIA_layers.", "out_proj.weight"): 0.2,
    (f"{REGIONS}RLA_vision.", "out_proj.weight"): 0.2,
    (f"{REGIONS}transformer_ffn_layers.", "linear2.weight"): 0.3,
    (f"{REGIONS}minimap_embed.", "weight"): 0.0125,
}


def make_tensor(key: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """The tensor of a state-dict key, as of `ris.reference.made_up.make_tensor`.

    The family's own are the tables of relative positions and the scales in the region decoder.
    """
    shape = tuple(int(n) for n in shape)
    if key.endswith("relative_position_bias_table"):
        return standard_normal(key, shape, seed)
    if key == _MINIMAP_BIAS:
        return np.float32(0.001) * standard_normal(key, shape, seed)
    found = (
        gain for (start, end), gain in _GAINS.items() if key.startswith(start) and key.endswith(end)
    )
    return usual_tensor(key, shape, seed, next(found, None))


def deterministic_model(config: RelaConfig, seed: int = 0) -> RelaModel:
    """The whole model of `config` with made-up weights, eval mode, float32, no gradients.

    There is one copy of the weights in memory: the tensors are assigned, not copied into others.
    """
    model = empty_model(config)
    state = {
        key: torch.from_numpy(np.array(make_tensor(key, value.shape, seed)))
        for key, value in model.state_dict().items()
    }
    if config.lang_weight == "zero":
        state[LANG_WEIGHT] = torch.zeros(())
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)
