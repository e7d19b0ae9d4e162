"""What training code wraps around weights is taken off, or named where it is ambiguous."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file
from torch import nn
from torch.optim.swa_utils import AveragedModel

from checkpoint_files import tiny_state
from ris.engines.errors import CheckpointError
from ris.export.command import main as export
from ris.reference.checkpoint import WeightFiles, inspect, load_model
from ris.reference.checkpoint.entries import Entry
from ris.reference.checkpoint.files import open_weights
from ris.reference.checkpoint.finite import require_finite

MODEL = nn.Sequential(nn.Linear(3, 3), nn.Sequential(nn.Linear(3, 2)))
STATE = MODEL.state_dict()
OPTIMISER = {"state": {0: {"exp_avg": torch.zeros(7)}}, "param_groups": [{"lr": 1.0}]}
ADAM = {"exp_avg": STATE, "exp_avg_sq": STATE}  # by name, as sharded optimisers save it


def renamed(change):
    return {change(name): tensor for name, tensor in STATE.items()}


WRAPPED = {
    "model_state_dict": {"model_state_dict": STATE, "optimizer_state_dict": OPTIMISER, "epoch": 3},
    "DeepSpeed": {"module": STATE, "optimizer": None, "global_steps": 10},
    "net": {"net": STATE, "optim": OPTIMISER},
    "ema alone": {"ema": STATE},
    "an unusual name": {"generator": STATE, "rng_state": torch.zeros(9, dtype=torch.uint8)},
    "two levels down": {"checkpoint": {"model": STATE}, "step": torch.tensor(3)},
    "an optimiser by name": {"model": STATE, "optimizer": ADAM},
    "a small head beside it": {"model": STATE, "loss": {"weight": torch.zeros(3)}},
    "AveragedModel": AveragedModel(MODEL).state_dict(),
    "AveragedModel below": {"ema": AveragedModel(MODEL).state_dict()},
    "DistributedDataParallel": renamed(lambda n: f"module.{n}"),
    "compiled": renamed(lambda n: f"_orig_mod.{n}"),
    "compiled and parallel": {"model": renamed(lambda n: f"_orig_mod.module.{n}")},
    "a compiled submodule": renamed(lambda n: n.replace("1.0.", "1._orig_mod.0.")),
    "a parallel submodule": renamed(lambda n: n.replace("1.0.", "1.module.0.")),
    "FSDP": renamed(lambda n: f"_fsdp_wrapped_module.{n}".replace("1.0", "1._orig_mod.0")),
    "Lightning": {"state_dict": renamed(lambda n: f"model.{n}"), "hyper_parameters": {"lr": 1.0}},
    "Lightning with DeepSpeed": {"module": renamed(lambda n: f"_forward_module.net.{n}")},
}


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("name", WRAPPED)
def test_a_wrapping_is_taken_off(tmp_path, name, old):
    torch.save(WRAPPED[name], tmp_path / "a.pth", _use_new_zipfile_serialization=not old)
    entries = open_weights(tmp_path / "a.pth").entries
    assert list(entries) == list(STATE)
    for key, entry in entries.items():
        assert torch.equal(entry.read(), STATE[key])


def test_a_wrapping_is_taken_off_safetensors(tmp_path):
    save_file(renamed(lambda n: f"module._orig_mod.{n}"), tmp_path / "a.safetensors")
    assert set(open_weights(tmp_path / "a.safetensors").entries) == set(STATE)


def test_the_loss_beside_the_model_is_left_beside(tmp_path):
    loss = {"criterion.weight": torch.zeros(3)}
    torch.save({"state_dict": renamed(lambda n: f"model.{n}") | loss}, tmp_path / "a.pth")
    assert set(open_weights(tmp_path / "a.pth").entries) == {*STATE, "criterion.weight"}


@pytest.mark.parametrize(
    ("data", "places"),
    [
        ({"model": STATE, "model_ema": STATE}, "checkpoint['model'] and checkpoint['model_ema']"),
        (
            {"ema": AveragedModel(MODEL).state_dict(), "model": STATE},
            "checkpoint['ema'] and checkpoint['model']",
        ),
        (
            {"model": STATE, "ema": {"module": STATE}},
            "checkpoint['model'] and checkpoint['ema']['module']",
        ),
    ],
)
def test_two_models_in_one_file_are_named(tmp_path, data, places):
    torch.save(data, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        open_weights(tmp_path / "a.pth")
    last = places.split(" and ")[-1]
    assert f"the weights of one model 2 times, as {places}; save the ones" in str(caught.value)
    assert f"torch.save({last}, FILE)" in str(caught.value)


def test_two_tensors_of_one_name_are_named(tmp_path):
    torch.save(STATE | {"module.0.weight": torch.zeros(3, 3)}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"holds 0\.weight as 0\.weight and as module\.0\.w"):
        open_weights(tmp_path / "a.pth")


# --- weights that are no numbers ---


def entry(tensor, **more):
    return Entry(tuple(tensor.shape), tensor.dtype, "a.pth", (lambda: tensor,), False, **more)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_that_is_no_number_is_named_with_its_count(value, dtype):
    broken = torch.zeros(5, 4, dtype=dtype)
    broken[2, 1:3] = value
    entries = {"good": entry(torch.ones(3)), "a.weight": entry(broken)}
    with pytest.raises(CheckpointError, match=r"a\.pth: .* in 1 tensor: a\.weight \(2\)"):
        require_finite(entries, entries)
    require_finite(entries, ["good"])


def test_numbers_beyond_float32_and_odd_tensors():
    entries = {f"w{i}": entry(torch.full((2,), 1e300, dtype=torch.float64)) for i in range(5)}
    entries |= {"empty": entry(torch.zeros(0, 3)), "whole": entry(torch.ones(2, dtype=torch.int64))}
    sentence = r"in 5 tensors: w0 \(2\), w1 \(2\), w2 \(2\), and 2 more"
    with pytest.raises(CheckpointError, match=sentence):
        require_finite(entries, entries)


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    state = copy.deepcopy(tiny_state())
    state["lang_mlp.weight"][0, 0] = math.nan
    path = tmp_path_factory.mktemp("broken") / "nan.pth"
    torch.save({"model": state}, path)
    return path


@pytest.mark.parametrize("more", [["--dry-run"], ["--dry-run", "--json"], []])
def test_nothing_is_exported_of_broken_weights(tmp_path, broken, more):
    arguments = ["--checkpoint", str(broken), "--out", str(tmp_path / "out"), *more]
    done = CliRunner().invoke(export, arguments)
    assert done.exit_code == 2, done.output
    assert "lang_mlp.weight (1)" in done.output
    assert not any(tmp_path.iterdir())


def test_a_broken_weight_without_effect_is_no_fault(tmp_path):
    state = copy.deepcopy(tiny_state())
    idle = inspect(WeightFiles(_saved(tmp_path / "whole.pth", state))).keys.idle
    state[idle[0]].fill_(math.nan)
    load_model(WeightFiles(_saved(tmp_path / "idle.pth", state)))


def _saved(path, state):
    torch.save(state, path)
    return path
