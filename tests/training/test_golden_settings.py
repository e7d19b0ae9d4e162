"""What trains and decays, the schedule, dropout, starting values and target masks: the released."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from conftest import GOLDEN
from ris.data.datasets.squares import scaled_mask
from ris.reference.dfam.config import PRESETS
from ris.reference.dfam.model import RISModel
from ris.training.initialise import fresh_model
from ris.training.optimisers import make_optimisers, set_trained
from ris.training.recipe import RECIPES

FOLDER = GOLDEN / "training"
RELEASED = RECIPES["released"]
CONFIGS = {
    "category": PRESETS["vitb-vitl336"].with_category_query(),
    "cls": PRESETS["vitb-vitl336"],
}


def read(name):
    return json.loads((FOLDER / name).read_text())


def on_no_device(config):
    """A model of these sizes without memory."""
    with torch.device("meta"):
        return RISModel(config)


@pytest.mark.parametrize("variant", ["category", "cls"])
def test_what_trains_and_what_decays(variant):
    wanted = read("param_groups.json")[variant]
    model = on_no_device(CONFIGS[variant])
    set_trained(model, RELEASED)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    (adamw,) = make_optimisers(model, None, RELEASED)
    found = {
        names[id(parameter)]: (group["times"], group["weight_decay"])
        for group in adamw.param_groups
        for parameter in group["params"]
    }
    assert found == {
        key: (own["lr"], own["weight_decay"]) for key, own in wanted.items() if own["trains"]
    }
    # what ours has and does not train is frozen there, and all that ours lacks is CLIP's text tower
    ours = set(names.values())
    assert not any(wanted[key]["trains"] for key in ours - set(found))
    lacking = wanted.keys() - ours
    text = "clip_dense.clip_model."
    assert all(key.startswith(text) and not key.startswith(f"{text}visual.") for key in lacking)
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained == {"category": 109_616_418, "cls": 109_485_860}[variant]
    adam = adamw.defaults
    assert (adam["betas"], adam["eps"], adam["amsgrad"]) == ((0.9, 0.999), 1e-8, False)


def test_supplement_trains_all_of_bert():
    model = on_no_device(CONFIGS["cls"])
    set_trained(model, RECIPES["supplement"])
    assert all(p.requires_grad for p in model.text_encoder.parameters())
    assert not any(p.requires_grad for p in model.sam.image_encoder.parameters())


def test_schedule():
    wanted = read("schedule.json")
    assert wanted["iterations"] == RELEASED.steps
    for step, rate in wanted["lr"].items():
        assert RELEASED.rate(int(step)) == pytest.approx(rate, rel=1e-12)


def test_dropout_of_bert_in_training_alone():
    wanted = read("dropout.json")
    model = on_no_device(CONFIGS["cls"])
    set_trained(model, RELEASED)
    found = {
        name: module.p
        for name, module in model.named_modules()
        if isinstance(module, nn.Dropout) and module.p
    }
    assert found == wanted["active"]
    assert len(found) == 37


def test_dropout_acts_in_training_mode_alone():
    model = fresh_model(PRESETS["tiny"], 0)
    ids = torch.randint(1, 300, (2, 9), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model.eval().encode_words(ids)[0]
        set_trained(model, RELEASED)
        assert torch.equal(model.encode_words(ids)[0], before)
        model.train()
        assert not torch.equal(model.encode_words(ids)[0], before)
        # attention, too, is dropped: its module's rate is what the layer reads
        for name, module in model.text_encoder.named_modules():
            if isinstance(module, nn.Dropout) and not name.endswith("attention.self.dropout"):
                module.p = 0.0
        assert not torch.equal(model.encode_words(ids)[0], before)
        set_trained(model, RECIPES["demo"])
        assert torch.equal(model.encode_words(ids)[0], before)


@pytest.fixture(scope="module")
def started():
    """The tensors that a full-size model starts with, but for its encoders, which are short."""
    keys = read("init.json")["keys"]
    found = {}
    for config in CONFIGS.values():
        short = replace(
            config,
            sam=replace(config.sam, depth=1, global_blocks=(0,)),
            clip=replace(config.clip, layers=1, text_layers=1),
            bert=replace(config.bert, layers=1),
        )
        state = fresh_model(short, 5).state_dict()
        found |= {key: state[key] for key in keys if key in state}
    return found


def test_starting_values(started):
    keys = read("init.json")["keys"]
    assert started.keys() == keys.keys()
    for key, own in keys.items():
        value, count = started[key].double(), math.prod(own["shape"])
        assert list(value.shape) == own["shape"], key
        if own["rule"] in ("ones", "zeros"):
            assert (value == (own["rule"] == "ones")).all(), key
        elif "bound" in own:
            bound = own["bound"]
            assert value.abs().max() <= bound * (1 + 1e-6), key
            # the largest of n uniform numbers is within a few n-ths of the bound
            assert value.abs().max() >= bound * (1 - 12 / count), key
            assert abs(value.std(unbiased=False) / bound - 3**-0.5) <= 4 * count**-0.5, key
            assert abs(value.mean()) <= 5 * bound * (3 * count) ** -0.5, key
        elif own["rule"].startswith("normal"):
            assert abs(value.std() - 1) <= 5 * count**-0.5, key
            assert abs(value.mean()) <= 5 * count**-0.5, key
        else:
            assert "directions" in own["rule"], key
            assert value.mean().item() == pytest.approx(own["mean"], abs=1e-6), key
            assert value.std(unbiased=False).item() == pytest.approx(own["std"], rel=1e-3), key
            assert (value.min().item(), value.max().item()) == pytest.approx(
                (own["low"], own["high"])
            )


def test_deformable_attention_looks_around(started):
    """The first head looks right, the third down; a point further out with each point."""
    key = "clip_pixel_decoder.transformer.encoder.layers.0.self_attn.sampling_offsets.bias"
    offsets = started[key].view(8, 3, 4, 2)
    for head, direction in ((0, (1, 0)), (1, (1, 1)), (2, (0, 1)), (4, (-1, 0))):
        wanted = torch.arange(1, 5)[:, None] * torch.tensor(direction)
        torch.testing.assert_close(offsets[head], wanted.float().expand(3, 4, 2))


def test_the_demo_starts_as_it_did():
    """Its logits are 14 times as sharp, and nothing is drawn anew."""
    model = fresh_model(PRESETS["tiny"], 0, "demo")
    assert model.decoder.logit_scale.exp().item() == pytest.approx(1 / 0.07)
    feed = model.decoder.transformer_ffn_layers[0].linear1.weight
    assert feed.abs().max() <= feed.shape[1] ** -0.5


def test_target_masks():
    with np.load(FOLDER / "target_masks.npz") as golden:
        for name in ("landscape", "portrait", "tiny", "none"):
            objects = json.loads(str(golden[f"{name}.polygons"]))
            size = tuple(int(side) for side in golden[f"{name}.size"])
            shape = tuple(golden[f"{name}.shape"])
            found = np.zeros(shape, bool)
            for mask, outline in zip(found, objects, strict=True):
                mask[:] = scaled_mask(outline, size, 1024)
            assert np.array_equal(np.packbits(found), golden[f"{name}.masks"])
            union = found.any(0) if len(found) else np.zeros((1024, 1024), bool)
            assert np.array_equal(np.packbits(union), golden[f"{name}.union"])
            assert found.sum((1, 2)).tolist() == golden[f"{name}.pixels"].tolist()
