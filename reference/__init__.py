"""The PyTorch model that every exported graph is checked against.

Ito, "Feature Design for Bridging SAM and CLIP toward Referring Image Segmentation" (WACV 2025),
written from docs/reference/models/dfam.md. Needs the `[export]` extra. Nothing here runs at
inference time. The model itself is `reference.model`; it is not imported here, so that commands can
say what is missing where PyTorch is.
"""

from ris.reference.config import PRESETS, ModelConfig

__all__ = ["PRESETS", "ModelConfig"]
