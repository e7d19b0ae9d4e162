"""The soak's driver, for two seconds: it sees equal answers, and those that are not."""

from __future__ import annotations

import numpy as np
import pytest

from ris.runtime import load
from soak import Found, Soak


@pytest.fixture
def model(tiny_bundle):
    with load(tiny_bundle) as model:
        yield model


def test_threads_get_the_serial_answers(model, tmp_path):
    found = Soak(model, tmp_path, largest=64).run(seconds=1, threads=4, seed=0)
    assert found.wrong == []
    assert 0 < found.refused < found.requests


def test_a_model_that_answers_something_else_is_found_out(model, tmp_path, monkeypatch):
    soak = Soak(model, tmp_path, largest=64)
    session = model.open_sessions["mask_decoder"]
    right = session._run
    monkeypatch.setattr(
        session, "_run", lambda feeds: {name: -v for name, v in right(feeds).items()}
    )
    found = soak.run(seconds=1, threads=2, seed=0)
    assert len(found.wrong) == found.requests - found.refused > 0


def test_growth_is_measured_after_the_warm_up():
    assert Found(memory=[0.0] * 25 + [500.0] * 75).growth == 0
    assert np.isclose(Found(memory=[float(second) for second in range(100)]).growth, 50)
