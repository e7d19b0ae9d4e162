"""The modules of the whole model, and how their keys in the state dict begin.

Nothing here needs PyTorch.
"""

from __future__ import annotations

VISUAL = "visual_model."
"""What the keys of SAM begin with, in either version."""

SAM_ENCODER = f"{VISUAL}image_encoder."
"""What the keys of SAM's or SAM 2's image encoder begin with."""

TRUNK = f"{SAM_ENCODER}trunk."
"""What the keys of Hiera begin with, without its neck."""

SAM_PROMPTS = f"{VISUAL}prompt_encoder."
"""What the keys of SAM's prompt encoder begin with."""

SAM_DECODER = f"{VISUAL}mask_decoder."
"""What the keys of SAM's mask decoder begin with."""

SAM2_PROMPTS = f"{VISUAL}sam_prompt_encoder."
"""What the keys of SAM 2's prompt encoder begin with."""

SAM2_DECODER = f"{VISUAL}sam_mask_decoder."
"""What the keys of SAM 2's mask decoder begin with."""

BEIT3 = "mm_extractor.beit3."
"""What the keys of BEiT-3 begin with."""

LAYERS = f"{BEIT3}encoder.layers."
"""What the keys of BEiT-3's layers begin with."""

PROJECTOR = "text_hidden_fcs.0."
"""What the keys of the projector begin with."""

MODULES = (
    ("SAM 2 image encoder", TRUNK),
    ("SAM 2 neck", f"{SAM_ENCODER}neck.convs."),
    ("SAM image encoder", SAM_ENCODER),
    ("SAM prompt encoder", SAM_PROMPTS),
    ("SAM mask decoder", SAM_DECODER),
    ("SAM 2 prompt encoder", SAM2_PROMPTS),
    ("SAM 2 mask decoder", SAM2_DECODER),
    ("SAM 2 embedding of no memory", f"{VISUAL}no_mem_embed"),
    ("SAM 2 memory of videos", VISUAL),
    ("BEiT-3 tokens", f"{BEIT3}text_embed."),
    ("BEiT-3 patches", f"{BEIT3}vision_embed."),
    ("BEiT-3", BEIT3),
    ("projector", PROJECTOR),
)
"""The modules in words and what their keys begin with; the first that fits is a key's module."""
