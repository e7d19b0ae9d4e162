"""What `ris-calibrate weights` makes of tiny LISA, once for all tests here."""

from __future__ import annotations

import pytest
from held_files import Files
from rounded_helper import FEW, INT4, SOURCE

from ris.calibration.samples import scene_set
from ris.export.weight_calibration import calibrate_weights


@pytest.fixture(scope="session")
def samples():
    return scene_set(16)


@pytest.fixture(scope="session")
def made(tmp_path_factory, samples):
    """The file of tiny LISA."""
    path = tmp_path_factory.mktemp("made") / "rounded.safetensors"
    calibrate_weights(SOURCE, samples, path, INT4)
    return path


@pytest.fixture(scope="session")
def few(tmp_path_factory):
    """The same of few samples."""
    path = tmp_path_factory.mktemp("few") / "rounded.safetensors"
    calibrate_weights(SOURCE, FEW, path, INT4)
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """The same model, whose matrices are read from files."""
    return Files("lisa", "tiny-lisa", tmp_path_factory.mktemp("files"))
