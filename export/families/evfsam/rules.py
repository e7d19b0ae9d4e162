"""What stays FP32 in the graphs of `evfsam`, and why (docs/reference/models/evfsam.md)."""

from __future__ import annotations

from ris.export.families.design import IslandRules
from ris.runtime.manifest import Precision

IMAGE = IslandRules(
    modules={
        "patches": (
            "the patch embedding: under 1 % of the operations, and every block hands its rounding"
            " on"
        ),
        "neck": (
            "the neck: under 1 % of the operations, and where the authors met FP16's end; all that"
            " follows reads what it gives"
        ),
    },
    attention=("attn",),
)
"""What stays FP32 in the FP16 graph of either image encoder."""

FUSION = IslandRules(
    modules={
        "softmax": "the softmax: the authors compute it in FP32 in any precision",
        "gelu": "GELU: the authors compute it in FP32 in any precision",
        "projector": "the prompt: two products of one token, which go straight into the decoder",
    },
)
"""The same for the fusion."""

_ROWS = "rows of a table: no product, and every layer hands their rounding on"

_DECODER = (
    "4 M weights whose rounding goes straight into the mask, and under 1 % of a first mask's"
    " operations"
)

_FUSION_IN_BF16 = (
    "one vector says all that the mask decoder learns of the words; bfloat16 here costs more mask"
    " IoU than it may in all"
)

WHOLE_TOKENS: dict[Precision, str] = {"fp16": _ROWS, "bf16": _ROWS}
"""Why the graphs of tokens stay FP32 as a whole, by the bundle's precision."""

WHOLE_FUSION: dict[Precision, str] = {"bf16": _FUSION_IN_BF16}
"""The same for the fusion."""

WHOLE_MASK_DECODER: dict[Precision, str] = {"fp16": _DECODER, "bf16": _DECODER}
"""The same for the mask decoder."""
