"""LISA's model with made-up weights that are the same everywhere."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import torch

from ris.reference.lisa.config import LisaConfig
from ris.reference.lisa.keys import CLIP_VISUAL, SAM
from ris.reference.lisa.model import LisaModel, empty_model
from ris.reference.made_up import make_tensor as usual_tensor
from ris.reference.made_up import standard_normal

_ROWS = np.float32(0.02)  # of the token table: small, so that the eps of the norms shows

# By a part of a key: image tokens of the size of text tokens, additions that let both the words
# and the picture reach the last token, a prompt that is heard, mask logits of a few units.
_GAINS = {
    "mm_projector.weight": 0.015,
    "self_attn.o_proj.weight": 0.15,
    "mlp.down_proj.weight": 0.1,
    "text_hidden_fcs.0.2.weight": 2.0,
    "output_hypernetworks_mlps.0.layers.2.weight": 4.0,
}

_BLOCK = re.compile(r"transformer\.resblocks\.(\d+)\.(.*)$")
# what a block's keys are in CLIP's own file, which the golden numbers were drawn for
_BLOCK_KEYS = {
    "ln_1.": "layer_norm1.",
    "ln_2.": "layer_norm2.",
    "attn.out_proj.": "self_attn.out_proj.",
    "mlp.c_fc.": "mlp.fc1.",
    "mlp.c_proj.": "mlp.fc2.",
}
_TOWER_KEYS = {
    "class_embedding": "vision_model.embeddings.class_embedding",
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "ln_post.weight": "vision_model.post_layernorm.weight",
    "ln_post.bias": "vision_model.post_layernorm.bias",
    "proj": "visual_projection.weight",
}


def make_tensor(key: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """The tensor of a state-dict key, as of `ris.reference.made_up.make_tensor`.

    The golden files depend on every digit. A tensor is drawn under its name in the file that it is
    published in: SAM's as of EVF-SAM, CLIP's as of transformers, the others with `model.`.
    """
    shape = tuple(int(n) for n in shape)
    if key.startswith(CLIP_VISUAL):
        return _clip_tensor(key.removeprefix(CLIP_VISUAL), shape, seed)
    if not key.startswith((SAM, "lm_head.")):
        key = f"model.{key}"
    if key == "model.embed_tokens.weight":
        return _ROWS * standard_normal(key, shape, seed)
    return usual_tensor(key, shape, seed, _gain(key))


def _gain(key: str) -> float | None:
    return next((gain for part, gain in _GAINS.items() if part in key), None)


def clip_file_tensor(key: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """A tensor of CLIP's image tower by its name in transformers' layout."""
    if key.endswith("position_embedding.weight"):
        return standard_normal(key, shape, seed)
    return usual_tensor(key, shape, seed)


def _clip_tensor(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """A tensor of CLIP's image tower by its name in OpenAI's layout."""
    if (block := _BLOCK.match(key)) is None:
        return clip_file_tensor(_TOWER_KEYS[key], shape, seed)
    layer, rest = f"vision_model.encoder.layers.{block[1]}.", block[2]
    if rest.startswith("attn.in_proj_"):
        kind, part = rest.removeprefix("attn.in_proj_"), (shape[0] // 3, *shape[1:])
        names = (f"{layer}self_attn.{letter}_proj.{kind}" for letter in "qkv")
        return np.concatenate([clip_file_tensor(name, part, seed) for name in names])
    old = next(name for name in _BLOCK_KEYS if rest.startswith(name))
    return clip_file_tensor(layer + rest.replace(old, _BLOCK_KEYS[old]), shape, seed)


def deterministic_model(config: LisaConfig, seed: int = 0) -> LisaModel:
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
