"""CGFormer's checkpoints: official ones load, others are refused, the assignment is a choice."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from cgformer_helper import DEAD, official_keys, save_training_file

from checkpoint_files import refused
from ris.engines.errors import CheckpointError
from ris.reference.cgformer.config import PRESETS
from ris.reference.cgformer.deterministic import deterministic_model, make_tensor
from ris.reference.checkpoint import WeightFiles, inspect, load_model
from ris.reference.families import FAMILIES, recognise

KEYS = official_keys()
TINY = PRESETS["tiny-cgformer"]
CGFORMER = FAMILIES["cgformer"]


def with_dead_keys(state: dict[str, torch.Tensor], config=TINY) -> dict[str, torch.Tensor]:
    """A model's state dict with what official files have besides."""
    width, hidden = config.width, config.mlp_width
    dead = {f"decoder.cgattention{i}.tau": (1,) for i in (1, 2)}
    dead |= {
        f"backbone.layers.3.pwam_gate.{i}.weight": (8 * config.swin.width,) * 2 for i in (0, 2)
    }
    for level in (1, 2):
        reader = f"decoder.layers.{level}.loadtoken."
        dead |= {f"{reader}norm.{end}": (width,) for end in ("weight", "bias")}
        dead |= {f"{reader}mlp.fc1.weight": (hidden, width), f"{reader}mlp.fc1.bias": (hidden,)}
        dead |= {f"{reader}mlp.fc2.weight": (width, hidden), f"{reader}mlp.fc2.bias": (width,)}
    return state | {key: torch.from_numpy(make_tensor(key, shape)) for key, shape in dead.items()}


@pytest.fixture(scope="module")
def state():
    return with_dead_keys(deterministic_model(TINY, 3).state_dict())


@pytest.fixture
def path(state, tmp_path):
    return save_training_file(tmp_path / "best_model.pth", state)


def test_official_keys_load(tmp_path):
    """A number for each key, one in memory and in the file."""
    tensors = {
        key: torch.tensor(i / 64).to(getattr(torch, one["dtype"])).expand(one["shape"])
        for i, (key, one) in enumerate(KEYS.items(), 1)
    }
    assert len(tensors) == 752
    official = save_training_file(tmp_path / "best_model.pth", tensors)
    model, found = load_model(WeightFiles(official))
    assert found.family is CGFORMER
    assert found.config == PRESETS["cgformer"]
    assert found.keys.fits
    read = {key for key, one in KEYS.items() if one["use"] in ("mask", "cancels")}
    counters = {key for key in KEYS if key.endswith("num_batches_tracked")}
    assert len(read) == 704
    assert set(found.keys.loaded) == read | counters
    assert set(found.keys.idle) == counters
    assert set(found.keys.dead) == set(KEYS) - read - counters
    assert not found.keys.absent
    assert found.keys.dead_by_module() == {
        "Swin stage 0 with PWAM": 2,
        "Swin stage 1 with PWAM": 2,
        "Swin stage 2 with PWAM": 18,
        "Swin stage 3 with PWAM": 4,
        "words and positions of level 1": 6,
        "words and positions of level 2": 6,
        "grouping block 1": 1,
        "grouping block 2": 1,
    }
    for key, value in model.state_dict().items():
        assert value.shape == tensors[key].shape
        assert value.flatten()[-1] == tensors[key].flatten()[0], key


@pytest.mark.parametrize("kind", ["training", "bare", "model", "wrapped"])
def test_the_same_model_comes_out(state, tmp_path, kind):
    file = tmp_path / "best_model.pth"
    if kind == "training":
        save_training_file(file, state)
    elif kind == "bare":
        torch.save(state, file)
    elif kind == "model":
        torch.save({"model": state}, file)
    else:
        save_training_file(file, {f"module.{key}": value for key, value in state.items()})
    model, found = load_model(WeightFiles(file))
    assert found.config == TINY
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    ids = torch.zeros(1, 20, dtype=torch.long)
    ids[0, :3] = torch.tensor([2, 150, 3])
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        got, want = (one(image, ids).mask_logits for one in (model, deterministic_model(TINY, 3)))
    assert torch.equal(got, want)


def test_counters_may_lack(state, tmp_path):
    """Batches that training has counted: an idle key, as what the file has besides."""
    lean = {key: value for key, value in state.items() if not key.endswith("num_batches_tracked")}
    lean = {key: value for key, value in lean.items() if not key.endswith("tau")}
    path = save_training_file(tmp_path / "best_model.pth", lean)
    model, found = load_model(WeightFiles(path))
    assert len(found.keys.absent) == 8
    assert found.keys.fits
    assert torch.equal(model.decoder.tokens.weight, state["decoder.tokens.weight"])


def test_readers_without_an_mlp_are_refused(state, tmp_path):
    other = {key: value for key, value in state.items() if not any(part in key for part in DEAD)}
    path = save_training_file(tmp_path / "best_model.pth", other)
    assert recognise(other) is CGFORMER
    assert refused(checkpoint=path) == (
        f"{path}: it is a CGFormer whose word readers have no MLP"
        " (decoder.layers.1.loadtoken.mlp.*): both tokens read the words there, which this version"
        " does not run; give a checkpoint of the published configuration, config/config.yaml"
    )
    half = {key: value for key, value in state.items() if "layers.2.loadtoken.mlp." not in key}
    path = save_training_file(tmp_path / "half.pth", half)
    assert "have no MLP (decoder.layers.2.loadtoken.mlp.*)" in refused(checkpoint=path)


def test_the_assignment_is_a_choice(path):
    assert inspect(WeightFiles(path)).config.assignment == "expected"
    model, found = load_model(WeightFiles(path), chosen={"assignment": "sampled"})
    assert found.config == model.config == replace(TINY, assignment="sampled")
    assert CGFORMER.chosen(found.config.to_dict()) == {"assignment": "sampled"}
    with pytest.raises(CheckpointError) as caught:
        inspect(WeightFiles(path), chosen={"assignment": "mode"})
    assert str(caught.value) == "--assignment is 'mode'; it takes expected or sampled"
    for name in set(FAMILIES) - {"cgformer"}:
        family = FAMILIES[name]
        with pytest.raises(CheckpointError, match=f"of no use to the family {name}"):
            family.choose(next(iter(family.presets.values())), {"assignment": "sampled"})


def test_a_carried_configuration_wins(state, tmp_path):
    config = replace(TINY, assignment="sampled", max_tokens=12, pwam_heads=4).to_dict()
    path = save_training_file(tmp_path / "best_model.pth", state, ris_config=config)
    found = inspect(WeightFiles(path))
    assert (found.config.preset, found.config.max_tokens) == ("custom", 12)
    assert (found.config.pwam_heads, found.config.assignment) == (4, "sampled")


@pytest.mark.parametrize("kind", ["missing", "unexpected", "shape"])
def test_wrong_ones_are_refused(state, tmp_path, kind):
    key = "decoder.cgattention2.k_proj.weight"
    changed = {k: v for k, v in state.items() if k != key or kind != "missing"}
    if kind == "unexpected":
        changed["decoder.cgattention2.k_proj.wieght"] = torch.zeros(3)
    if kind == "shape":
        changed[key] = torch.zeros(3, 64)
    path = save_training_file(tmp_path / "best_model.pth", changed)
    found = inspect(WeightFiles(path))
    assert found.config.preset == "tiny-cgformer"
    with pytest.raises(CheckpointError, match=rf"keys 1 {'of another ' * (kind == 'shape')}{kind}"):
        load_model(WeightFiles(path))
    assert found.keys.problems()[0].startswith("grouping block 2: 1 ")


def test_bert_may_come_from_its_own_folder(state, tmp_path):
    prefix = "text_encoder."
    rest = {key: value for key, value in state.items() if not key.startswith(prefix)}
    path = save_training_file(tmp_path / "best_model.pth", rest)
    folder = tmp_path / "bert"
    folder.mkdir()
    bert = {key.removeprefix(prefix): v for key, v in state.items() if key.startswith(prefix)}
    torch.save(bert, folder / "pytorch_model.bin")
    sizes = {"model_type": "bert", "num_attention_heads": TINY.bert.heads}
    (folder / "config.json").write_text(json.dumps(sizes))
    model, found = load_model(WeightFiles(path, bert=folder))
    assert any(note.startswith("WARNING: BERT is") for note in found.notes)
    for key, value in bert.items():
        assert torch.equal(model.state_dict()[prefix + key], value)


def test_sizes_of_no_preset(tmp_path):
    config = replace(
        TINY,
        preset="custom",
        image_size=192,
        swin=replace(TINY.swin, depths=(2, 2, 3, 2), window=6),
        width=32,
        mlp_width=72,
    )
    state = with_dead_keys(deterministic_model(config).state_dict(), config)
    path = save_training_file(tmp_path / "best_model.pth", state)
    assert load_model(WeightFiles(path))[1].config == config


def test_families_are_told_apart():
    """Three families share the names of BERT, two those of Swin."""
    for name, family in FAMILIES.items():
        for config in family.presets.values():
            keys = family.empty_model(config).state_dict()
            assert recognise(keys) is family
            others = [one.signs for other, one in FAMILIES.items() if other != name]
            assert not [key for key in keys for signs in others if key.startswith(signs)]
            assert not [key for key in keys for r in family.relatives if r.pattern.search(key)]
    assert recognise(KEYS) is CGFORMER
