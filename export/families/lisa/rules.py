"""What stays FP32 in the graphs of `lisa`, and why (docs/reference/models/lisa.md)."""

from __future__ import annotations

from ris.export.families.design import IslandRules
from ris.runtime.manifest import Precision

_PATCHES = "the patch embedding: under 1 % of the operations, and every block hands its rounding on"

SAM_IMAGE = IslandRules(
    modules={
        "patches": _PATCHES,
        "neck": "the neck: under 1 % of the operations, and all that follows reads what it gives",
    },
    attention=("attn",),
)
"""What stays FP32 in the FP16 graph of SAM's image encoder."""

CLIP_IMAGE = IslandRules(modules={"conv1": _PATCHES}, attention=("attn",))
"""The same for CLIP's."""

LANGUAGE = IslandRules(
    modules={
        "input_layernorm": "an RMS norm: a sum of squares, which overflows FP16 first",
        "post_attention_layernorm": "an RMS norm: a sum of squares, which overflows FP16 first",
        "norm": "the last RMS norm: a sum of squares, which overflows FP16 first",
        "prompt": "the prompt: two products of one token, which go straight into the decoder",
    },
    attention=("self_attn",),
)
"""The same for both graphs of the language model."""

_DECODER = (
    "4 M weights whose rounding goes straight into the mask, and under 1 % of a first mask's"
    " operations"
)

WHOLE_MASK_DECODER: dict[Precision, str] = {"fp16": _DECODER, "bf16": _DECODER}
"""Why the mask decoder stays FP32 as a whole, by the bundle's precision."""
