"""The PyTorch model that every exported graph is checked against.

Ito, "Feature Design for Bridging SAM and CLIP toward Referring Image Segmentation" (WACV 2025),
written from docs/reference/models/dfam.md, whose sections the docstrings here cite. Needs the
`[export]` extra; nothing here runs at inference time.

The model itself is `ris.reference.model`. It is not imported here, so that commands can say what is
missing where PyTorch is not installed.
"""

from ris.reference.config import PRESETS, ModelConfig

__all__ = ["PRESETS", "ModelConfig"]
