"""EVF-SAM's made-up weights, presets, parameter table and values."""

from __future__ import annotations

import json
import math
import zlib
from collections import Counter

import numpy as np
import pytest
import torch
from evfsam_helper import PRESET_OF, official_keys

from conftest import GOLDEN
from golden.evfsam.inputs import PAD
from ris.reference.evfsam.config import PRESETS, EvfsamConfig
from ris.reference.evfsam.deterministic import deterministic_model, make_tensor
from ris.reference.evfsam.model import empty_model
from ris.reference.evfsam.rules import key_rules
from ris.reference.families import FAMILIES

EVFSAM = FAMILIES["evfsam"]
KEYS = {version: official_keys(version) for version in PRESET_OF}
TINY = {"1": PRESETS["tiny-evfsam"], "2": PRESETS["tiny-evfsam2"]}
# tensors: in all, in the model, those that it takes and no answer reads, those that it leaves
COUNTS = {"1": (1569, 1568, 55, 1), "2": (1875, 1711, 37, 164)}

versions = pytest.mark.parametrize("version", PRESET_OF)


def test_the_weight_rule_draws_the_golden_numbers():
    for key, want in json.loads((GOLDEN / "evfsam" / "weights_check.json").read_text()).items():
        got = make_tensor(key, want["shape"])
        assert got.dtype == np.float32
        assert zlib.crc32(np.ascontiguousarray(got).tobytes()) == want["crc32"], key
        np.testing.assert_array_equal(got.ravel()[:3], np.float32(want["first"]))


@versions
def test_every_key_of_an_official_checkpoint_is_known(version):
    """Read, taken without effect, or left; what an answer reads is what the gradients say."""
    config, keys = PRESETS[PRESET_OF[version]], KEYS[version]
    rules = key_rules(config)
    ours = {key: list(v.shape) for key, v in empty_model(config).state_dict().items()}
    left = {key for key in keys if key not in ours}
    idle = {key for key in ours if rules.is_idle(key)}
    assert {key: one["shape"] for key, one in keys.items() if key not in left} == ours
    assert left == {key for key in keys if rules.is_dead(key)}
    assert idle | left == {key for key, one in keys.items() if one["reach"] == "-"}
    assert (len(keys), len(ours), len(idle), len(left)) == COUNTS[version]


def millions(version: str, *prefixes: str) -> float:
    """Numbers of an official checkpoint below some prefixes, in millions."""
    shapes = [one["shape"] for key, one in KEYS[version].items() if key.startswith(prefixes)]
    return round(sum(map(math.prod, shapes)) / 1e6, 3)


def test_parameter_table_of_version_1():
    beit3 = "mm_extractor.beit3."
    assert millions("1", "visual_model.image_encoder.") == 637.026
    assert millions("1", "visual_model.mask_decoder.") == 4.058
    assert millions("1", "visual_model.prompt_encoder.") == 0.006
    assert millions("1", beit3) == 672.702
    assert millions("1", f"{beit3}text_embed.") == 65.546
    assert millions("1", f"{beit3}encoder.embed_positions.") == 1.252
    assert millions("1", f"{beit3}vision_embed.") == 0.790
    assert millions("1", f"{beit3}encoder.layers.") == round(24 * 2 * 12.606464, 3)
    assert millions("1", f"{beit3}encoder.layer_norm.") == 0.004
    assert millions("1", "text_hidden_fcs.") == 1.312
    assert millions("1", "") == 1315.105
    unread = [one["shape"] for one in KEYS["1"].values() if one["reach"] == "-"]
    assert len(unread) == 56
    assert round(sum(map(math.prod, unread)) / 1e6, 2) == 11.07


def test_parameter_table_of_version_2():
    memory = (
        "memory_attention.",
        "memory_encoder.",
        "obj_ptr_proj.",
        "maskmem_tpos_enc",
        "no_mem_pos_enc",
        "no_obj_ptr",
        "mask_downsample.",
    )
    assert millions("2", "visual_model.image_encoder.trunk.") == 212.149
    assert millions("2", "visual_model.image_encoder.neck.") == 0.554
    assert millions("2", "visual_model.sam_mask_decoder.") == 4.215
    assert millions("2", "visual_model.sam_prompt_encoder.") == 0.006
    assert millions("2", "mm_extractor.beit3.") == 672.702
    assert millions("2", "text_hidden_fcs.") == 1.312
    assert round(millions("2", *(f"visual_model.{part}" for part in memory)), 1) == 7.5
    assert millions("2", "") == 898.445


def test_both_versions_share_beit3_and_the_projector():
    shared = [
        {key: one["shape"] for key, one in keys.items() if key.startswith(("mm_", "text_"))}
        for keys in KEYS.values()
    ]
    assert shared[0] == shared[1]
    assert len(shared[0]) == 975


@versions
def test_the_number_of_tensors_by_module(version):
    rules = key_rules(PRESETS[PRESET_OF[version]])
    found = Counter(map(rules.module_of, KEYS[version]))
    assert found["BEiT-3 tokens"] + found["BEiT-3 patches"] + found["BEiT-3"] == 971
    assert found["projector"] == 4
    assert "other" not in found
    if version == "1":
        assert found["SAM image encoder"] == 457
        assert found["SAM prompt encoder"] == 17
        assert found["SAM mask decoder"] == 120


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_a_configuration_survives_json(config):
    assert EvfsamConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(TypeError, match="unknown model configuration fields: colour"):
        EvfsamConfig.from_dict({**config.to_dict(), "colour": 1})


@versions
def test_sizes(version):
    config, tiny = PRESETS[PRESET_OF[version]], TINY[version]
    assert (config.image_size, config.grid, config.mask_size) == (1024, 64, 256)
    assert (tiny.image_size, tiny.grid, tiny.mask_size) == (256, 16, 64)
    assert config.beit3.image_positions == 197


def test_the_tiny_presets_have_every_trap():
    """Padded windows and whole maps of SAM; growing and global blocks of Hiera."""
    sam, hiera = TINY["1"].sam, TINY["2"].hiera
    assert sam.grid % sam.window
    assert set(range(sam.depth)) - set(sam.global_blocks)
    starts = [end + 1 for end in hiera.ends()[:-1]]
    assert not set(starts) & set(hiera.global_blocks)
    assert len(hiera.global_blocks) == 1
    assert TINY["1"].beit3.layers > 2


def questions(rows: int = 3) -> dict[str, torch.Tensor]:
    ids = torch.full((rows, TINY["1"].max_tokens), PAD)
    ids[:, :4] = torch.tensor([0, 150, 160, 2])
    ids[1:2, 3:6] = torch.tensor([7, 8, 2])
    return {"input_ids": ids, "text_mask": (ids != PAD).float()}


def encoded_pictures(model, count: int) -> dict[str, torch.Tensor]:
    pictures = np.random.default_rng(1).integers(0, 255, (count, 40, 60, 3), np.uint8)
    prepared = [EVFSAM.prepare(model, picture) for picture in pictures]
    return EVFSAM.encode(model, {n: torch.cat([one[n] for one in prepared]) for n in prepared[0]})


@versions
@torch.no_grad()
def test_values_are_those_of_each_alone(version):
    """Three expressions about two pictures, as the model has each of them alone."""
    model, index, asked = EVFSAM.made_up_model(TINY[version], 3), [1, 0, 1], questions()
    encoded = encoded_pictures(model, 2)
    finer = ["high_res_1", "high_res_0"] if version == "2" else []
    assert list(encoded) == ["image_embeddings", *finer, "image_tokens"]
    values = EVFSAM.ask(model, {name: value[index] for name, value in encoded.items()} | asked)
    assert list(values) == ["text_features", "sparse_prompt", "mask_logits"]
    assert values["mask_logits"].shape == (3, 1, 64, 64)
    for row, image in enumerate(index):
        length = int(asked["text_mask"][row].sum())
        own = {name: value[row : row + 1, :length] for name, value in asked.items()}
        given = {name: value[image : image + 1] for name, value in encoded.items()}
        alone = EVFSAM.ask(model, given | own)
        for name, value in values.items():
            found = value[row : row + 1]
            found = found[:, :length] if name == "text_features" else found
            torch.testing.assert_close(found, alone[name], rtol=1e-4, atol=1e-4, msg=name)
    assert not values["text_features"][0, 4:].any()


@versions
@torch.no_grad()
def test_padding_is_not_read_and_words_are(version):
    model, asked = EVFSAM.made_up_model(TINY[version], 3), questions(1)
    encoded = encoded_pictures(model, 1)
    want = EVFSAM.ask(model, encoded | asked)["mask_logits"]
    other = asked["input_ids"].clone()
    other[0, 10:] = 99  # behind the mask
    padded = EVFSAM.ask(model, encoded | asked | {"input_ids": other})["mask_logits"]
    assert torch.equal(padded, want)
    other = asked["input_ids"].clone()
    other[0, 1] = 30
    assert not torch.allclose(
        EVFSAM.ask(model, encoded | asked | {"input_ids": other})["mask_logits"], want, atol=1e-2
    )


@versions
@torch.no_grad()
def test_keys_without_effect_have_none(version):
    model, changed = (deterministic_model(TINY[version], 3) for _ in range(2))
    rules = key_rules(TINY[version])
    idle = [key for key in changed.state_dict() if rules.is_idle(key)]
    for key in idle:
        changed.get_parameter(key).add_(1)
    given = encoded_pictures(model, 1) | questions(1)
    want, found = (EVFSAM.ask(one, given) for one in (model, changed))
    assert len(idle) > 10
    assert all(torch.equal(found[name], want[name]) for name in want)


@torch.no_grad()
def test_both_squares_are_made_of_the_picture_itself():
    """BEiT-3's sees what SAM's is too small to show, and is not cut to -1 and 1."""
    model = EVFSAM.empty_model(TINY["1"])
    rgb = np.zeros((640, 640, 3), np.uint8)
    for row in (4, 5):  # of ten rows those that a sample without antialiasing falls between
        rgb[row::10] = 255
    images = EVFSAM.prepare(model, rgb)
    torch.testing.assert_close(images["beit_image"].max(), torch.tensor(1.375))
    assert images["sam_image"].max() < 0
