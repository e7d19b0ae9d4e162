"""What Triton's model makes of a request's seed."""

from __future__ import annotations

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from ris.engines.errors import ExpressionError
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.runtime.manifest import Drawn

NOISE = {"noise": Drawn("logistic", (3,), 0)}


@pytest.fixture
def model(monkeypatch):
    """The model without a server; a request is a dictionary of arrays."""

    def tensor(request, name):
        found = request.get(name)
        return None if found is None else SimpleNamespace(as_numpy=lambda: found)

    utils = SimpleNamespace(get_input_tensor_by_name=tensor)
    monkeypatch.setitem(sys.modules, "triton_python_backend_utils", utils)
    name = "ris.serving.triton.backend"
    monkeypatch.delitem(sys.modules, name, raising=False)
    made = importlib.import_module(name).TritonPythonModel()
    monkeypatch.delitem(sys.modules, name)

    def with_values(drawn):
        manifest = SimpleNamespace(host=SimpleNamespace(drawn=drawn))
        opened = SimpleNamespace(bundle=SimpleNamespace(manifest=manifest))
        made._answerer = SimpleNamespace(model=opened)
        return made

    return with_values


def seed(value):
    return {"seed": np.array([[value]], np.int32)}


def test_a_seed_is_the_requests_own(model):
    assert model(NOISE)._draws(seed(5)) == Draws(5)
    assert model(NOISE)._draws({}) == ONE_DRAW
    assert model({})._draws({}) == ONE_DRAW
    with pytest.raises(ExpressionError, match="seed is a whole number from 0 to 2147483647"):
        model(NOISE)._draws(seed(-1))
