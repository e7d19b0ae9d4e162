"""What stays FP32 in the graphs of `rela`, and why (docs/reference/models/rela.md)."""

from __future__ import annotations

from ris.export.families.design import IslandRules
from ris.runtime.manifest import Precision

STEP = 1e-2
"""The relative error that is accepted of what lies behind an attention mask's threshold."""

PWAM = (
    "PWAM: its instance norms subtract means that are large beside the rest, which FP16 has rounded"
    " away by then"
)

PATCHES = "the patch embedding: under 1 % of the operations, and every block hands its rounding on"

BACKBONE = IslandRules(
    modules={"fusion": PWAM, "patch_embed": PATCHES}, attention=("attn", "image_lang_att")
)
"""What stays FP32 in the FP16 graphs of the backbone."""

SEGMENTER = IslandRules(
    modules={
        "self_attn.grid": "where deformable attention samples: FP16 is 0.03 pixels off at pixel 48",
        "self_attn.neighbours": "which pixels those are: FP16 counts to 2048",
        "region_masks": "compared with 0: a logit near it falls on the other side in FP16",
        "mask_embed": "what the compared logits are made of",
        "mask_features": "the last layer before all masks: under 1 % of the operations",
    },
    attention=("multihead_attn", "self_attn"),
)
"""The same for pixel decoder and region decoder."""

_IN_BF16 = (
    "bfloat16 here alone costs about as much mask IoU as it may in all: what PWAM's instance norms"
    " leave is small, and region masks are compared with 0"
)

WHOLE_TEXT_ENCODER: dict[Precision, str] = {
    "fp16": (
        "in FP16 it costs more mask IoU than all other graphs together, and it is under 3 % of the"
        " operations"
    ),
    "bf16": _IN_BF16,
}
"""Why the text encoder stays FP32 as a whole, by the bundle's precision."""

WHOLE: dict[Precision, str] = {"bf16": _IN_BF16}
"""The same for the other graphs."""
