"""EVF-SAM's model with made-up weights that are the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from ris.reference.evfsam.config import EvfsamConfig
from ris.reference.evfsam.keys import BEIT3, PROJECTOR, SAM2_DECODER, SAM_ENCODER, TRUNK
from ris.reference.evfsam.model import EvfsamModel, empty_model
from ris.reference.made_up import make_tensor as usual_tensor
from ris.reference.made_up import standard_normal

# tables of tokens and positions, beside the usual ones
_UNIT_VARIANCE = (
    f"{BEIT3}text_embed.weight",
    "embed_positions.",
    "vision_embed.cls_token",
    "vision_embed.mask_token",
    "no_mem_embed",
    "obj_score_token",
)

# By the beginning and a further part of a key, the first that fits. Words that are seen among the
# many positions of the image; attention outputs small beside the residual; a prompt that is heard
# among the decoder's own tokens; maps of about unit variance, three masks to choose from, scores
# that are apart.
_GAINS = {
    (TRUNK, "attn.qkv.weight"): 2.0,
    (TRUNK, "attn.proj.weight"): 0.5,
    (BEIT3, "q_proj."): 1.5,
    (BEIT3, "k_proj.A.weight"): 1.5,
    (BEIT3, "k_proj.B.weight"): 2.2,
    (BEIT3, "out_proj."): 0.7,
    (PROJECTOR, "2.weight"): 2.0,
    (f"{SAM_ENCODER}neck.convs.", ""): 0.25,
    (SAM2_DECODER, "output_hypernetworks_mlps.1.layers.2.weight"): 3.0,
    (SAM2_DECODER, "output_hypernetworks_mlps.2.layers.2.weight"): 3.0,
    (SAM2_DECODER, "output_hypernetworks_mlps.3.layers.2.weight"): 3.0,
    (SAM2_DECODER, "iou_prediction_head.layers.2.weight"): 2.0,
    ("", "output_hypernetworks_mlps.0.layers.2.weight"): 4.0,
}


def make_tensor(key: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """The tensor of a state-dict key, as of `ris.reference.made_up.make_tensor`.

    The family's own are BEiT-3's tables and two tokens of SAM 2.
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) > 1 and any(part in key for part in _UNIT_VARIANCE):
        return standard_normal(key, shape, seed)
    gains = (g for (start, part), g in _GAINS.items() if key.startswith(start) and part in key)
    return usual_tensor(key, shape, seed, next(gains, None))


def deterministic_model(config: EvfsamConfig, seed: int = 0) -> EvfsamModel:
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
