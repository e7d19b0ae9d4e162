"""What stays FP32 in the graphs of `cgformer`, and why (docs/reference/models/cgformer.md)."""

from __future__ import annotations

from ris.export.families.design import IslandRules
from ris.runtime.manifest import Precision

PWAM = (
    "PWAM: its instance norms subtract means that are large beside the rest, which FP16 has rounded"
    " away by then"
)

_EARLY = (
    "the second stage and what leads from stage to stage: 1 % of the operations, and everything"
    " behind hands their rounding on"
)

BACKBONE = IslandRules(
    modules={
        "pwam_fusion": PWAM,
        "layers.1": _EARLY,
        "pwam_gate": _EARLY,
        "downsample": _EARLY,
    },
    attention=("attn", "image_lang_att"),
)
"""What stays FP32 in the FP16 graph of the backbone."""

_SHIFT = (
    "the kernel's product: the map that it weighs is nowhere below 0, so that an error of its"
    " weights shifts all logits"
)

MASK_HEAD = IslandRules(modules={"product": _SHIFT})
"""The same for the mask head."""

_IN_BF16 = (
    "bfloat16 here alone costs about as much mask IoU as it may in all, or more: what PWAM's"
    " instance norms leave is small, and the mask head's last sums are over 512 rounded channels"
)

_TEXT_IN_FP16 = (
    "in FP16 it costs more mask IoU than all other graphs together, and it is under 1 % of the"
    " operations"
)

_GROUPING = "sums over up to 14,400 places, and lengths of vectors; it is 1 % of the operations"

_STEM = "under 1 % of the operations, once an image, and every stage hands its rounding on"

WHOLE: dict[Precision, str] = {"bf16": _IN_BF16}
"""Why a graph stays FP32 as a whole, by the bundle's precision."""

WHOLE_STEM: dict[Precision, str] = {"fp16": _STEM, "bf16": _IN_BF16}
"""The same for the first stage of the backbone."""

WHOLE_TEXT_ENCODER: dict[Precision, str] = {"fp16": _TEXT_IN_FP16, "bf16": _IN_BF16}
"""The same for the text encoder."""

WHOLE_GROUPING: dict[Precision, str] = {"fp16": _GROUPING, "bf16": _GROUPING}
"""The same for the grouping."""
