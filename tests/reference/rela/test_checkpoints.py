"""ReLA's checkpoints: official ones load, others are refused, `lang_weight` is a choice."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from checkpoint_files import refused, save_training_checkpoint
from conftest import GOLDEN
from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles, inspect, load_model
from ris.reference.families import FAMILIES, recognise
from ris.reference.rela.config import PRESETS
from ris.reference.rela.deterministic import deterministic_model
from ris.reference.rela.keys import LANG_WEIGHT

KEYS = json.loads((GOLDEN / "rela" / "keys.json").read_text())
SIZES = {"swin_base": "rela-swin-base", "swin_tiny": "rela-swin-tiny"}
TINY = PRESETS["tiny-rela"]
RELA = FAMILIES["rela"]


@pytest.fixture(scope="module")
def state():
    return deterministic_model(replace(TINY, lang_weight="stored"), 3).state_dict()


def official(size: str) -> dict[str, torch.Tensor]:
    """Exactly the keys, shapes and types of an official checkpoint; a number for each key.

    Each tensor is one number in memory and in the file.
    """
    return {
        key: torch.tensor(i / 64).to(getattr(torch, one["dtype"])).expand(one["shape"])
        for i, (key, one) in enumerate(KEYS[size].items(), 1)
    }


@pytest.mark.parametrize("size", SIZES)
def test_official_keys_load(size, tmp_path):
    tensors = official(size)
    tensors["text_encoder.embeddings.position_ids"] = torch.arange(512)[None]
    tensors["criterion.empty_weight"] = torch.ones(2)
    path = save_training_checkpoint(tmp_path / "gres.pth", tensors)
    model, found = load_model(WeightFiles(path))
    assert found.family is RELA
    assert found.config == PRESETS[SIZES[size]]
    assert found.keys.fits
    parameters = {key for key, one in KEYS[size].items() if one["kind"] == "parameter"}
    assert set(found.keys.loaded) == parameters
    assert set(found.keys.dead) == set(tensors) - parameters
    assert not found.keys.absent
    for key, value in model.state_dict().items():
        want = 0.0 if key == LANG_WEIGHT else float(tensors[key].flatten()[0])
        assert value.shape == tensors[key].shape
        assert float(value.flatten()[-1]) == want, key


def test_the_same_model_comes_out(state, tmp_path):
    path = save_training_checkpoint(tmp_path / "gres.pth", state)
    model, found = load_model(WeightFiles(path), chosen={"lang_weight": "stored"})
    assert found.config == replace(TINY, lang_weight="stored")
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key
    ids = torch.zeros(1, 20, dtype=torch.long)
    ids[0, :3] = torch.tensor([2, 150, 3])
    image = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    ours = deterministic_model(replace(TINY, lang_weight="stored"), 3)
    with torch.no_grad():
        got, want = (one(image, ids).regions.mask_logits for one in (model, ours))
    assert torch.equal(got, want)


def test_lang_weight_is_zero_unless_it_is_chosen(state, tmp_path):
    path = save_training_checkpoint(
        tmp_path / "gres.pth", state | {LANG_WEIGHT: torch.tensor(1.25)}
    )
    model, found = load_model(WeightFiles(path))
    assert float(model.region_decoder.lang_weight) == 0
    assert found.config.lang_weight == "zero"
    assert found.notes == (
        "lang_weight: 0, as in the authors' evaluation, which never loads the stored 1.25;"
        " --lang-weight stored takes that",
    )
    model, found = load_model(WeightFiles(path), chosen={"lang_weight": "stored"})
    assert float(model.region_decoder.lang_weight) == 1.25
    assert found.notes == (
        "lang_weight: 1.25, as the checkpoint stores it; the authors' evaluation never loads it and"
        " computes with 0",
    )
    lacking = {key: value for key, value in state.items() if key != LANG_WEIGHT}
    other = save_training_checkpoint(tmp_path / "other.pth", lacking)
    assert inspect(WeightFiles(other)).keys.missing == (LANG_WEIGHT,)


def test_a_choice_is_checked(state, tmp_path):
    path = save_training_checkpoint(tmp_path / "gres.pth", state)
    with pytest.raises(CheckpointError) as caught:
        inspect(WeightFiles(path), chosen={"lang_weight": "half"})
    assert str(caught.value) == "--lang-weight is 'half'; it takes zero or stored"
    dfam = FAMILIES["dfam"]
    with pytest.raises(CheckpointError, match="--lang-weight is of no use to the family dfam"):
        dfam.choose(dfam.presets["tiny"], {"lang_weight": "stored"})
    assert RELA.chosen(replace(TINY, lang_weight="stored").to_dict()) == {"lang_weight": "stored"}
    assert dfam.chosen(dfam.presets["tiny"].to_dict()) == {}


def test_a_carried_configuration_wins(state, tmp_path):
    config = replace(TINY, lang_weight="stored", max_tokens=12).to_dict()
    path = save_training_checkpoint(tmp_path / "gres.pth", state, ris_config=config)
    found = inspect(WeightFiles(path), "rela")
    assert (found.config.preset, found.config.max_tokens) == ("custom", 12)
    assert found.config.lang_weight == "stored"


@pytest.mark.parametrize("in_numpy_1", [False, True])
def test_arrays_of_numpy(state, tmp_path, in_numpy_1):
    """detectron2 writes weights as arrays, too, and numbers of NumPy beside them."""
    path = tmp_path / "gres.pth"
    arrays = {key: value.numpy() for key, value in state.items()}
    key = "backbone.layers.1.blocks.0.attn.qkv.weight"
    arrays[key] = np.asfortranarray(arrays[key]).astype(">f8")
    best = {"best": np.float64(63.6)}
    torch.save({"model": arrays, "matching_heuristics": True} | best, path)
    if in_numpy_1:
        torch.save(
            {"model": arrays} | best, path, _use_new_zipfile_serialization=False, pickle_protocol=2
        )
        data = path.read_bytes()
        assert b"numpy._core.multiarray" in data
        path.write_bytes(data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray"))
    model, _ = load_model(WeightFiles(path), chosen={"lang_weight": "stored"})
    for key, value in model.state_dict().items():
        assert torch.equal(value, state[key]), key


def test_the_branch_original_is_refused_by_name(state, tmp_path):
    """Its decoder has names of its own beside shared ones."""
    predictor = "sem_seg_head.predictor."
    names = ("RIA_cross_attention", "RLA_lang", "RLA_region", "RLA_proj", "RLA_gate")
    other = {key: value for key, value in state.items() if not key.startswith(RELA.signs)}
    other |= {f"{predictor}{name}.0.weight": torch.zeros(3) for name in names}
    path = save_training_checkpoint(tmp_path / "original.pth", other)
    sentence = (
        f"{path}, given as --checkpoint, is of ReLA's branch `original`, whose decoder is another"
        " one; give a checkpoint of the branch `main` (gres_swin_base.pth, gres_swin_tiny.pth)"
    )
    assert refused(checkpoint=path) == sentence
    with pytest.raises(CheckpointError) as caught:
        inspect(WeightFiles(path), "rela")
    assert str(caught.value) == sentence


def test_a_resnet_is_refused_by_name(tmp_path):
    path = save_training_checkpoint(tmp_path / "gres_r50.pth", official("r50"))
    assert recognise(KEYS["r50"]) is RELA
    assert refused(checkpoint=path) == (
        f"{path}: it is a ReLA with a ResNet-50, which this version does not run; give the"
        " checkpoint of a Swin (gres_swin_base.pth, gres_swin_tiny.pth)"
    )


def test_no_official_key_is_taken_for_another_branch():
    for size in KEYS:
        for relative in RELA.relatives:
            assert not [key for key in KEYS[size] if relative.pattern.search(key)]


@pytest.mark.parametrize("kind", ["missing", "unexpected", "shape"])
def test_wrong_ones_are_refused(state, tmp_path, kind):
    key = "backbone.layers.1.blocks.0.attn.qkv.weight"
    changed = {k: v for k, v in state.items() if k != key or kind != "missing"}
    if kind == "unexpected":
        changed["backbone.layers.1.blocks.0.attn.qkv.wieght"] = torch.zeros(3)
    if kind == "shape":
        changed[key] = torch.zeros(3, 64)
    path = save_training_checkpoint(tmp_path / "gres.pth", changed)
    found = inspect(WeightFiles(path))
    assert found.config.preset == "tiny-rela"
    with pytest.raises(CheckpointError, match=rf"keys 1 {'of another ' * (kind == 'shape')}{kind}"):
        load_model(WeightFiles(path))
    assert found.keys.problems()[0].startswith("Swin stage 1 with PWAM: 1 ")


def test_bert_may_come_from_its_own_folder(state, tmp_path):
    prefix = "text_encoder."
    rest = {key: value for key, value in state.items() if not key.startswith(prefix)}
    path = save_training_checkpoint(tmp_path / "gres.pth", rest)
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
        swin=replace(TINY.swin, depths=(2, 2, 3, 2), window=6),
        regions=12,
        region_layers=5,
        ffn_width=96,
        deformable_points=2,
    )
    state = deterministic_model(config).state_dict()
    path = save_training_checkpoint(tmp_path / "gres.pth", state)
    assert load_model(WeightFiles(path))[1].config == config
