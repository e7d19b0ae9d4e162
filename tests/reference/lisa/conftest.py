"""LISA with the golden weights, full width and two layers, which the golden tests share."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ris.reference.lisa.config import PRESETS
from ris.reference.lisa.deterministic import deterministic_model


@pytest.fixture(scope="module")
def two_layers():
    """The model of the golden files, seed 0: 3.6 GB.

    SAM's image encoder is a small one of the same grid, which nothing here runs.
    """
    whole = PRESETS["lisa-7b"]
    sam = replace(whole.sam, width=16, depth=1, heads=1, global_blocks=())
    config = replace(whole, llama=replace(whole.llama, layers=2), sam=sam)
    return deterministic_model(config)
