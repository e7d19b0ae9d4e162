"""Which keys of a checkpoint matter, and what CLIP's own file gives."""

from __future__ import annotations

import re

from ris.reference.checkpoint.encoders import describe_clip
from ris.reference.checkpoint.keys import KeyRules
from ris.reference.checkpoint.merging import SharedPart
from ris.reference.lisa.config import LisaConfig
from ris.reference.lisa.keys import CLIP, CLIP_VISUAL, HEAD, MODULES, PROJECTOR

# In the files, but in no module of the reference model: the head, which writes answers and makes no
# mask; copies of the rotary frequencies, rounded perhaps; CLIP's text half, and what both share.
_NOT_LOADED = rf"{re.escape(HEAD)}|layers\.\d+\.self_attn\.rotary_emb\.inv_freq$|clip\.(?!visual\.)"

# In the reference model, without effect on a mask
_IDLE = re.compile(
    r"visual_model\.prompt_encoder\.(?!pe_layer\.|no_mask_embed\.)"
    r"|visual_model\.mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[123])\."
    r"|clip\.visual\.(ln_post\.|proj$)"
)


def key_rules(config: LisaConfig) -> KeyRules:
    """What the keys of a checkpoint mean to a model of this configuration."""
    unused = range(config.clip_layers, config.clip.layers)
    numbers = "|".join(map(str, unused))
    blocks = rf"{re.escape(CLIP_VISUAL)}transformer\.resblocks\.({numbers})\." if unused else ""
    patterns = [pattern for pattern in (_NOT_LOADED, blocks) if pattern]
    return KeyRules(modules=MODULES, not_loaded=re.compile("|".join(patterns)), idle=(_IDLE,))


SHARED_PARTS = (
    SharedPart(
        CLIP_VISUAL,
        frozen=True,
        describe=lambda shapes: describe_clip(shapes, CLIP_VISUAL),
        gives=f"{CLIP_VISUAL}class_embedding",
        takes=((f"{PROJECTOR}weight", 1),),
    ),
    SharedPart(CLIP, frozen=True),
)
"""The parts that CLIP's file has. SAM is trained, and never taken from a file of its own."""
