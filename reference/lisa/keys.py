"""The modules of the whole model, and how their keys in the state dict begin.

Official files have `model.` in front of all keys but the head's, which is taken off
(`ris.reference.checkpoint.unwrapping`). Nothing here needs PyTorch.
"""

from __future__ import annotations

TABLE = "embed_tokens."
"""What the key of the token table begins with."""

LAYERS = "layers."
"""What the keys of the language model's layers begin with."""

NORM = "norm."
"""What the key of the language model's last norm begins with."""

HEAD = "lm_head."
"""What the key of the language model's head begins with, which no mask needs."""

PROJECTOR = "mm_projector."
"""What the keys of the projector of CLIP's patches begin with."""

PROMPT = "text_hidden_fcs.0."
"""What the keys of the layers that make the prompt begin with."""

SAM = "visual_model."
"""What the keys of the whole of SAM begin with."""

SAM_ENCODER = f"{SAM}image_encoder."
"""What the keys of SAM's image encoder begin with."""

SAM_PROMPTS = f"{SAM}prompt_encoder."
"""What the keys of SAM's prompt encoder begin with."""

SAM_DECODER = f"{SAM}mask_decoder."
"""What the keys of SAM's mask decoder begin with."""

CLIP = "clip."
"""What the keys of both towers of CLIP begin with, which is in a file of its own."""

CLIP_VISUAL = f"{CLIP}visual."
"""What the keys of CLIP's image tower begin with."""

MODULES = (
    ("SAM image encoder", SAM_ENCODER),
    ("SAM prompt encoder", SAM_PROMPTS),
    ("SAM mask decoder", SAM_DECODER),
    ("CLIP image tower", CLIP_VISUAL),
    ("CLIP text tower", CLIP),
    ("projector", PROJECTOR),
    ("token table", TABLE),
    ("LLaMA layers", LAYERS),
    ("LLaMA norm", NORM),
    ("LLaMA head", HEAD),
    ("prompt layers", PROMPT),
)
"""The modules in words and what their keys begin with; the first that fits is a key's module."""
