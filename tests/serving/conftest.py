"""What the serving tests share. Where PyTorch is not installed, $RIS_TEST_BUNDLE names the
bundle.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def served_bundle(request):
    """A bundle with a no-target head: $RIS_TEST_BUNDLE, or the tiny one, which PyTorch exports."""
    if given := os.environ.get("RIS_TEST_BUNDLE"):
        return Path(given).absolute()
    pytest.importorskip(
        "torch", reason="no PyTorch to export a bundle with, and $RIS_TEST_BUNDLE is not set"
    )
    return request.getfixturevalue("tiny_bundle")


@pytest.fixture(scope="session")
def served_model(served_bundle):
    from ris.runtime import load

    with load(served_bundle, engine="onnxruntime", threads=1) as model:
        yield model
