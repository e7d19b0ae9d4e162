"""Which keys of a checkpoint matter, and what SAM's own file may give."""

from __future__ import annotations

import re

from ris.reference.checkpoint.encoders import Shapes, describe_sam
from ris.reference.checkpoint.keys import KeyRules
from ris.reference.checkpoint.merging import SharedPart
from ris.reference.evfsam.config import EvfsamConfig
from ris.reference.evfsam.keys import (
    MODULES,
    PROJECTOR,
    SAM_DECODER,
    SAM_ENCODER,
    SAM_PROMPTS,
    TRUNK,
)

# In checkpoints, but in no module of the reference model: what BEiT-3 puts in place of masked
# patches, what SAM 2 remembers of a video's other frames, and its guess whether an object is there.
_NOT_LOADED = re.compile(
    r"mm_extractor\.beit3\.vision_embed\.mask_token$"
    r"|visual_model\.(memory_attention|memory_encoder|obj_ptr_proj|mask_downsample)\."
    r"|visual_model\.(maskmem_tpos_enc|no_mem_pos_enc|no_obj_ptr)$"
    r"|visual_model\.sam_mask_decoder\.pred_obj_score_head\."
)

# In the reference model, without effect on any output: points, boxes and masks as prompts, and the
# masks that are not asked for.
_IDLE = re.compile(r"visual_model\.(sam_)?prompt_encoder\.(?!pe_layer|no_mask_embed)")
_IDLE_OF_VERSION = {
    "1": re.compile(
        r"visual_model\.mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[123])\."
    ),
    "2": re.compile(r"visual_model\.sam_mask_decoder\.output_hypernetworks_mlps\.0\."),
}


def key_rules(config: EvfsamConfig) -> KeyRules:
    """What the keys of a checkpoint mean to a model of this configuration."""
    idle = (_IDLE, _IDLE_OF_VERSION[config.version], _idle_words(config.beit3.layers))
    return KeyRules(modules=MODULES, not_loaded=_NOT_LOADED, idle=idle)


def _idle_words(layers: int) -> re.Pattern[str]:
    """Behind the attention of the last layer only the class token is read, not the words."""
    last = rf"layers\.{layers - 1}\."
    return re.compile(
        rf"mm_extractor\.beit3\.encoder\.(layer_norm\.B\.|{last}(final_layer_norm|ffn)\.B\."
        rf"|{last}self_attn\.(q_proj|out_proj|inner_attn_ln)\.B\.)"
    )


def _describe(shapes: Shapes) -> str:
    """An image encoder in words."""
    if any(key.startswith(TRUNK) for key in shapes):
        return "SAM 2's Hiera"
    return describe_sam(shapes, SAM_ENCODER)


SHARED_PARTS = (
    SharedPart(
        SAM_ENCODER,
        frozen=True,
        describe=_describe,
        gives=f"{SAM_ENCODER}neck.0.weight",
        takes=((f"{SAM_DECODER}iou_token.weight", 1), (f"{PROJECTOR}2.weight", 0)),
    ),
    SharedPart(SAM_PROMPTS, frozen=False, checkpoint_only=True),
    SharedPart(SAM_DECODER, frozen=False, checkpoint_only=True),
)
"""The parts that SAM's own file has, too: its image encoder is the model's, the rest was trained
on."""
