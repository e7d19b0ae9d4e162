"""Which keys of a checkpoint matter, and what a component file may give.

docs/reference/checkpoints.md, Dead keys and Several files, has the rules in words.
"""

from __future__ import annotations

import re

from ris.reference.checkpoint.encoders import describe_clip, describe_sam
from ris.reference.checkpoint.keys import KeyRules
from ris.reference.checkpoint.merging import Fingerprint, SharedPart
from ris.reference.dfam.config import ModelConfig
from ris.reference.dfam.keys import (
    BERT,
    CLIP,
    CLIP_VISUAL,
    MODULES,
    SAM_DECODER,
    SAM_ENCODER,
    SAM_PROMPTS,
)

# In official checkpoints, but in no module of the reference model
# (docs/reference/models/dfam.md 17)
_NOT_LOADED = re.compile(
    r"criterion\.|nt_weight$|empty_sparse_emb$|text_encoder\.(embeddings\.position_ids$|pooler\.)"
    r"|clip_dense\.clip_model\.(?!visual\.)|clip_pixel_decoder\.(adapter|layer)_1\."
)

# In the reference model, without effect on any output of any variant
_IDLE = re.compile(
    r"sam\.prompt_encoder\.(?!pe_layer)|"
    r"sam\.mask_decoder\.(iou_prediction_head|output_hypernetworks_mlps\.[123])\."
    r"|clip_dense\.clip_model\.visual\.(ln_post\.|proj$)"
    r"|decoder\.(to_logits\.|to_logits_bert\.|logit_scale$|logit_scale_condsim$)"
)

# Besides, in some variants
_IDLE_WITHOUT_NO_TARGET = re.compile(r"decoder\.|backbone_sam\.")
_IDLE_WITH_NO_TARGET = re.compile(
    r"decoder\.(CA_layers2|SA_layers2|transformer_ffn_layers2)\.[01]\."
)
_IDLE_WITH_CLS = re.compile(r"clip_mlpl\.|text_embeddings$")


def key_rules(config: ModelConfig) -> KeyRules:
    """What the keys of a checkpoint mean to a model of this configuration."""
    patterns = [_IDLE]
    patterns.append(_IDLE_WITHOUT_NO_TARGET if config.no_target == "none" else _IDLE_WITH_NO_TARGET)
    if config.query == "cls":
        patterns.append(_IDLE_WITH_CLS)
    return KeyRules(modules=MODULES, not_loaded=_NOT_LOADED, idle=tuple(patterns))


SHARED_PARTS = (
    SharedPart(
        SAM_ENCODER,
        frozen=True,
        describe=lambda shapes: describe_sam(shapes, SAM_ENCODER),
        gives=f"{SAM_ENCODER}neck.0.weight",
        takes=((f"{SAM_DECODER}iou_token.weight", 1), ("lang_mlp.weight", 0)),
    ),
    SharedPart(
        CLIP_VISUAL,
        frozen=True,
        describe=lambda shapes: describe_clip(shapes, CLIP_VISUAL),
        gives=f"{CLIP_VISUAL}class_embedding",
        takes=(("adaptor_clip.fusion.vis_project.0.weight", 1),),
    ),
    SharedPart(CLIP, frozen=True),
    SharedPart(
        SAM_PROMPTS,
        frozen=False,
        fingerprint=Fingerprint(
            f"{SAM_PROMPTS}pe_layer.positional_encoding_gaussian_matrix", "SAM", "position matrix"
        ),
    ),
    SharedPart(SAM_DECODER, frozen=False, decisive=True),
    SharedPart(BERT, frozen=False, decisive=True),
)
"""The parts that component files may have too; the first that fits is a key's."""
