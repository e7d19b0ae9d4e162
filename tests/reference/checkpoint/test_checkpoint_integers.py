"""Integers that a model keeps beside its weights: read as integers, never as weights."""

from __future__ import annotations

import re

import pytest
import torch
import toy_family
from torch import nn

from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles, load_model
from ris.reference.checkpoint.keys import KeyRules
from ris.reference.families import FAMILIES


class Counting(toy_family.ToyModel):
    """The toy, with a table of integers and a counter that no output depends on."""

    def __init__(self, config):
        super().__init__(config)
        self.order = nn.Module()
        self.order.register_buffer("places", torch.arange(6))
        self.order.register_buffer("steps", torch.zeros((), dtype=torch.int64))


class CountingToy(toy_family.Toy):
    def empty_model(self, config, **options):
        with torch.device("meta"):
            return Counting(config).eval()

    def key_rules(self, config):
        rules = super().key_rules(config)
        idle = (re.compile(r"order\.steps$"),)
        return KeyRules((*rules.modules, ("order", "order.")), rules.not_loaded, idle)


@pytest.fixture
def load(tmp_path, monkeypatch):
    """Loads a checkpoint of the toy whose buffer `places` is a tensor, or without one."""
    monkeypatch.setitem(FAMILIES, "toy", CountingToy())

    def run(places):
        state = toy_family.Toy().made_up_model(toy_family.ToyConfig(), 0).state_dict()
        torch.save({**state, "order.places": places}, tmp_path / "toy.pth")
        return load_model(WeightFiles(tmp_path / "toy.pth"))

    return run


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_an_integer_is_loaded_where_the_model_has_one(load, dtype):
    places = torch.tensor([5, 4, 3, 2, 1, 0], dtype=dtype)
    model, inspection = load(places)
    assert "order.places" in inspection.keys.loaded
    assert model.order.places.dtype == torch.int64
    assert model.order.places.tolist() == places.tolist()
    # idle and absent
    assert inspection.keys.absent == ("order.steps",)
    assert model.order.steps.dtype == torch.int64


@pytest.mark.parametrize(
    ("places", "words"),
    [
        (torch.zeros(6), "order.places is [6], expected [6] int64"),
        (torch.zeros(6, dtype=torch.bool), "order.places is [6] bool, expected [6] int64"),
        (torch.zeros(5, dtype=torch.int64), "order.places is [5] int64, expected [6]"),
    ],
)
def test_another_kind_of_number_is_a_misfit(load, places, words):
    with pytest.raises(CheckpointError) as caught:
        load(places)
    assert words in str(caught.value)


def test_a_weight_is_no_integer(load, tmp_path):
    load(torch.arange(6))
    state = torch.load(tmp_path / "toy.pth")
    torch.save(state | {"project.bias": torch.arange(16)}, tmp_path / "toy.pth")
    with pytest.raises(CheckpointError) as caught:
        load_model(WeightFiles(tmp_path / "toy.pth"))
    assert "project.bias is [16] int64, expected [16] float32" in str(caught.value)
