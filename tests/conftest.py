"""What the tests share: the golden folder, and models and bundles that are made once a run."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"
REPO = Path(__file__).parent.parent


@pytest.fixture(scope="session")
def golden_keys() -> dict[str, dict]:
    """Every key of an official checkpoint with shape, dtype and use."""
    return json.loads((GOLDEN / "keys.json").read_text())


@pytest.fixture(scope="session")
def full_size_model():
    """The paper's model, [CLS] variant, with the golden weights (seed 0)."""
    from ris.reference.config import PRESETS
    from ris.reference.deterministic import deterministic_model

    return deterministic_model(PRESETS["vitb-vitl336"])
