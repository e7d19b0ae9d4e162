"""The PyTorch model that every exported graph is checked against.

Ito, "Feature Design for Bridging SAM and CLIP toward Referring Image Segmentation" (WACV 2025), written from
docs/model.md. Needs the `[export]` extra. Nothing here runs at inference time.
"""

from ris.reference.config import PRESETS, ModelConfig
from ris.reference.model import ReferenceOutputs, RISModel

__all__ = ["PRESETS", "ModelConfig", "RISModel", "ReferenceOutputs"]
