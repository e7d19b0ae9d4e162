"""Referring image segmentation from a bundle: no PyTorch, no ONNX package, one engine.

from ris.runtime import load
model = load("ris-bundle")
result = model.segment("photo.jpg", "left man")
"""

from ris.engines.errors import (
    BundleError,
    CheckpointError,
    EngineError,
    ExpressionError,
    ImageError,
    ParityError,
    RisError,
)
from ris.runtime.bundle import BUILT_IN, Bundle, Manifest, open_bundle
from ris.runtime.loading import load
from ris.runtime.model import Model, Scene
from ris.runtime.segmentation import Segmentation

__all__ = [
    "BUILT_IN",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "EngineError",
    "ExpressionError",
    "ImageError",
    "Manifest",
    "Model",
    "ParityError",
    "RisError",
    "Scene",
    "Segmentation",
    "load",
    "open_bundle",
]
