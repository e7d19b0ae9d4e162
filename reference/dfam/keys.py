"""The modules of the whole model, and how their keys in the state dict begin.

Nothing here needs PyTorch.
"""

from __future__ import annotations

SAM = "sam."
"""What the keys of the whole of SAM begin with."""

SAM_ENCODER = f"{SAM}image_encoder."
"""What the keys of SAM's image encoder begin with."""

SAM_PROMPTS = f"{SAM}prompt_encoder."
"""What the keys of SAM's prompt encoder begin with."""

SAM_DECODER = f"{SAM}mask_decoder."
"""What the keys of SAM's mask decoder begin with."""

CLIP = "clip_dense.clip_model."
"""What the keys of both towers of CLIP begin with."""

CLIP_VISUAL = f"{CLIP}visual."
"""What the keys of CLIP's image tower begin with."""

BERT = "text_encoder."
"""What the keys of BERT begin with."""

TABLE = "text_embeddings"
"""The key of the category table."""

MODULES = (
    ("SAM image encoder", SAM_ENCODER),
    ("SAM prompt encoder", SAM_PROMPTS),
    ("SAM mask decoder", SAM_DECODER),
    ("CLIP image tower", CLIP_VISUAL),
    ("CLIP text tower", CLIP),
    ("BERT", BERT),
    ("text projection", "lang_mlp."),
    ("category projection", "clip_mlpl."),
    ("category table", TABLE),
    ("PWAM", "adaptor_clip."),
    ("CLIP pyramid", "backbone_clip."),
    ("pixel decoder", "clip_pixel_decoder."),
    ("sparse branch", "txt2txt."),
    ("SAM pyramid", "backbone_sam."),
    ("DFAM", "decoder."),
    ("training loss", "criterion."),
)
"""The modules in words and what their keys begin with; the first that fits is a key's module."""
