"""CGFormer's model with made-up weights that are the same everywhere."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
import torch

from ris.reference.cgformer.config import CgformerConfig
from ris.reference.cgformer.keys import DECODER
from ris.reference.cgformer.model import CgformerModel, empty_model
from ris.reference.made_up import make_tensor as usual_tensor

_GROUPING = f"{DECODER}cgattention"

# By a part of a key. Heads that share a scale made for one, so that keys are larger; convolutions
# behind a ReLU that keep their variance; mask logits of a few units.
_GAINS = {
    "image_lang_att.f_key.": 3.0,
    f"{DECODER}fuses.": 1.4,
    f"{DECODER}proj.vis.": 1.4,
    f"{DECODER}proj.txt.": 0.3,
    f"{_GROUPING}1.proj.": 0.4,
    f"{_GROUPING}2.proj.": 0.4,
    "loadtoken.cross_attn.q_proj.": 2.0,
    "loadtoken.cross_attn.k_proj.": 2.0,
}

# by the end of a key: mean and deviation of its numbers
_SPREADS = {
    "running_mean": (0.0, 0.1),
    "cgattention1.tau": (1.0, 0.1),
    "cgattention2.tau": (-0.5, 0.1),
    "positional_embedding": (0.0, 0.3),
    "relative_position_bias_table": (0.0, 1.0),
    f"{DECODER}tokens.weight": (0.0, 1.0),
}


def make_tensor(key: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """The tensor of a state-dict key, as of `ris.reference.made_up.make_tensor`.

    The backbone draws under the names that another family has for the same modules. The family's
    own are batch norms, positions, and what the tokens group by.
    """
    shape = tuple(int(n) for n in shape)
    if key.endswith("num_batches_tracked"):
        return np.full(shape, 1000, np.int64)
    drawn = key.replace(".pwam_fusion.", ".fusion.").replace(".pwam_gate.", ".res_gate.")
    if key.endswith("running_var"):
        return (np.float32(1) + np.float32(0.1) * _normal(key, shape, seed)) ** 2
    spread = next((s for end, s in _SPREADS.items() if key.endswith(end)), None)
    if spread is not None:
        mean, deviation = map(np.float32, spread)
        return np.asarray(mean + deviation * _normal(key, shape, seed), np.float32)
    if key.startswith(_GROUPING):
        return _grouping(key, shape, seed)
    return usual_tensor(drawn, shape, seed, _gain(key))


def _grouping(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A tensor of a grouping block.

    Rows of queries and keys decay, so that cosines are not all near zero; values lean to the keys,
    so that two groups of places differ in their means.
    """
    made = usual_tensor(key, shape, seed, _gain(key))
    if ".q_proj." in key or ".k_proj." in key:
        row = 1 + np.arange(shape[0], dtype=np.float32) / 2
        return np.asarray(made / row.reshape((-1,) + (1,) * (len(shape) - 1)), np.float32)
    if key.endswith("v_proj.weight"):
        keys = _grouping(key.replace("v_proj", "k_proj"), shape, seed)
        return np.float32(0.5) * made + np.float32(12) * keys
    return made


def _gain(key: str) -> float | None:
    return next((gain for part, gain in _GAINS.items() if part in key), None)


def _normal(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    generator = np.random.default_rng(zlib.crc32(f"{seed}:{key}".encode()))
    return generator.standard_normal(shape, dtype=np.float32)


def deterministic_model(config: CgformerConfig, seed: int = 0) -> CgformerModel:
    """The whole model of `config` with made-up weights, eval mode, float32, no gradients.

    There is one copy of the weights in memory: the tensors are assigned, not copied into others.
    """
    model = empty_model(config)
    state = {
        key: torch.from_numpy(np.array(make_tensor(key, value.shape, seed)))
        for key, value in model.state_dict().items()
    }
    model.load_state_dict(state, assign=True)
    return model.requires_grad_(False)
