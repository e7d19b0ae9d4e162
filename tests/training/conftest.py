"""What the tests of training share."""

from __future__ import annotations

import pytest
from accelerate.state import AcceleratorState

from ris.reference.tokenizer import tokenizer_from
from training_runs import TINY


@pytest.fixture(autouse=True)
def _another_precision():
    """Accelerate keeps the first precision of a process, and tests have several."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope="session")
def tokenizer():
    return tokenizer_from(None, TINY)
