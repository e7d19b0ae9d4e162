"""The modules of the whole model, and how their keys in the state dict begin.

Nothing here needs PyTorch.
"""

from __future__ import annotations

BERT = "text_encoder."
"""What the keys of BERT begin with."""

BACKBONE = "backbone."
"""What the keys of the backbone begin with."""

DECODER = "decoder."
"""What the keys of everything behind the backbone begin with."""

MODULES = (
    ("BERT", BERT),
    ("Swin patches", f"{BACKBONE}patch_embed."),
    *((f"Swin stage {i} with PWAM", f"{BACKBONE}layers.{i}.") for i in range(4)),
    ("norms of the stages", f"{BACKBONE}norm"),
    ("fused maps", f"{DECODER}fuses."),
    ("tokens", f"{DECODER}tokens."),
    *((f"words and positions of level {i}", f"{DECODER}layers.{i}.") for i in range(3)),
    *((f"grouping block {i}", f"{DECODER}cgattention{i}.") for i in (1, 2)),
    ("mask head", f"{DECODER}proj."),
)
"""The modules in words and what their keys begin with; the first that fits is a key's module."""
