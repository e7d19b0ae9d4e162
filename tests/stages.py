"""The stages of the tests' bundles, which are of the family `dfam`, in their order."""

STAGES = (
    "sam_image_encoder",
    "clip_image_encoder",
    "image_features",
    "text_encoder",
    "fusion",
    "mask_decoder",
)

BF16_STAGES = ("sam_image_encoder", "clip_image_encoder", "fusion")
"""Those for which bfloat16 is precise enough."""
