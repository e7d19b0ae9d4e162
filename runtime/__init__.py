"""Referring image segmentation from a bundle: image + "left man" -> mask, without PyTorch.

A bundle is the folder that `ris-export` writes. `load` opens it as a `Model`:

    from ris.runtime import load

    with load("ris-bundle") as model:
        result = model.segment("photo.jpg", "left man")
        result.mask  # bool [H, W]

Encoding an image takes most of the time. Encode it once to ask several expressions about it:

    scene = model.encode_image("photo.jpg")
    results = scene.segment_many(["left man", "the red ball"])

`load(BUILT_IN)` opens the demo's bundle, which is part of the package, and
`load("hf://org/name@revision")` one that is on a Hub. `open_bundle` reads a bundle without running
it. Whatever goes wrong is a `RisError`. A `Model` and its `Scene`s may be used from
several threads at once.
"""

from ris.engines.errors import (
    BundleError,
    CheckpointError,
    EngineError,
    ExpressionError,
    HubError,
    ImageError,
    ParityError,
    RisError,
)
from ris.runtime.bundle import BUILT_IN, Bundle, open_bundle
from ris.runtime.choice import Choice
from ris.runtime.loading import LoadOptions, load
from ris.runtime.manifest import Manifest
from ris.runtime.model import Model, Scene
from ris.runtime.segmentation import Segmentation

__all__ = [
    "BUILT_IN",
    "Bundle",
    "BundleError",
    "CheckpointError",
    "Choice",
    "EngineError",
    "ExpressionError",
    "HubError",
    "ImageError",
    "LoadOptions",
    "Manifest",
    "Model",
    "ParityError",
    "RisError",
    "Scene",
    "Segmentation",
    "load",
    "open_bundle",
]
