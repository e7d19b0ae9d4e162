"""What stays FP32 in the graphs of `dfam`, and why (docs/reference/precision.md)."""

from __future__ import annotations

from ris.export.families.design import IslandRules, NarrowFrom
from ris.runtime.manifest import Precision

STEP = 1e-3
"""The relative error that is accepted of what lies behind an attention mask's threshold."""

_IN_BF16 = (
    "in bfloat16 it costs as much mask IoU as an image encoder, for under 1 % of the operations"
)

WHOLE_TEXT_ENCODER: dict[Precision, str] = {
    "fp16": (
        "in FP16 it costs more mask IoU than both image encoders together, and it is under 1 % of "
        "a first mask's operations"
    ),
    "bf16": _IN_BF16,
}
"""Why the text encoder stays FP32 as a whole, by the bundle's precision."""

WHOLE_MASK_DECODER: dict[Precision, str] = {
    "fp16": (
        "4.6 M weights whose rounding goes straight into the mask: FP16 here costs as much mask "
        "IoU as FP16 in either image encoder, and the graph is under 1 % of a first mask's "
        "operations"
    ),
    "bf16": _IN_BF16,
}
"""The same for the mask decoder."""

WHOLE_IMAGE_FEATURES: dict[Precision, str] = {
    "bf16": (
        "PWAM's instance norms take away what is large beside what they leave, and the object "
        "masks are compared with 0"
    )
}
"""The same for what the fusion reads of an image."""

FUSED = NarrowFrom(
    value="fused",
    module="pyramid",
    reason=(
        "bfloat16 begins behind it: what PWAM's instance norms take away is large beside what they "
        "leave"
    ),
)
"""Where bfloat16 begins in the fusion."""

ISLANDS = IslandRules(
    modules={
        "patches": (
            "SAM's patch embedding: under 1 % of the operations, and every block hands its rounding"
            " on"
        ),
        "conv1": (
            "CLIP's patch embedding: under 1 % of the operations, and every block hands its "
            "rounding on"
        ),
        "neck": (
            "SAM's neck: under 1 % of the operations, and a fifth of what FP16 costs the embedding"
        ),
        "pwam.image_lang_att": (
            "PWAM's attention: its instance norms subtract means that are large beside the rest, "
            "which FP16 has rounded away by then"
        ),
        "pwam": "PWAM: a few products, and all that follows reads what they give",
        "sparse": (
            "the sparse prompt: a few products of a few tokens, which go straight into the mask "
            "decoder"
        ),
        "project_category": (
            "the category's query: a product of one token, which the sparse prompt is made of"
        ),
        "self_attn.grid": "where deformable attention samples: FP16 is 0.03 pixels off at pixel 48",
        "self_attn.neighbours": "which pixels those are: FP16 counts to 2048",
    },
    attention=("attn", "image_lang_att"),
)
"""What stays FP32 in the other graphs of an FP16 bundle."""
