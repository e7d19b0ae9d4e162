"""The modules of the whole model, and how their keys in the state dict begin.

Nothing here needs PyTorch.
"""

from __future__ import annotations

BERT = "text_encoder."
"""What the keys of BERT begin with."""

BACKBONE = "backbone."
"""What the keys of the backbone begin with."""

PIXELS = "sem_seg_head.pixel_decoder."
"""What the keys of the pixel decoder begin with."""

REGIONS = "sem_seg_head.predictor."
"""What the keys of the region decoder begin with."""

LANG_WEIGHT = f"{REGIONS}lang_weight"
"""The key of the factor on what the regions read from the words."""

MODULES = (
    ("BERT", BERT),
    ("Swin patches", f"{BACKBONE}patch_embed."),
    *((f"Swin stage {i} with PWAM", f"{BACKBONE}layers.{i}.") for i in range(4)),
    ("norms of the stages", f"{BACKBONE}norm"),
    ("pixel decoder", PIXELS),
    ("region decoder", REGIONS),
    ("training loss", "criterion."),
)
"""The modules in words and what their keys begin with; the first that fits is a key's module."""
