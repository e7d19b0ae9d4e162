"""Real checkpoints in: the training code's, SAM's, CLIP's and BERT's.

docs/reference/checkpoints.md has the layouts and the rules.
"""

from ris.reference.checkpoint.files import CONFIG
from ris.reference.checkpoint.loading import (
    Inspection,
    WeightFiles,
    build_model,
    inspect,
    load_model,
)

__all__ = ["CONFIG", "Inspection", "WeightFiles", "build_model", "inspect", "load_model"]
