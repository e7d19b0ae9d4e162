"""CGFormer's made-up weights, presets, parameter table and values."""

from __future__ import annotations

import json
import math
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from cgformer_helper import official_keys

from conftest import GOLDEN
from golden import inputs
from golden.cgformer import inputs as noises
from ris.reference.cgformer.config import PRESETS, CgformerConfig
from ris.reference.cgformer.deterministic import make_tensor
from ris.reference.cgformer.model import empty_model
from ris.reference.families import FAMILIES
from ris.reference.layers.windows import window_places
from ris.reference.preprocess import resize_to_square

FOLDER = GOLDEN / "cgformer"
TINY = PRESETS["tiny-cgformer"]
CGFORMER = FAMILIES["cgformer"]
KEYS = official_keys()


def test_the_weight_rule_draws_the_golden_numbers():
    for name, want in json.loads((FOLDER / "weights_check.json").read_text()).items():
        kind, *words = name.split()
        if kind == "image":
            height, width = map(int, words[1].split("x"))
            picture = inputs.image(int(words[0]), height, width)
            assert zlib.crc32(picture.tobytes()) == want["crc32"]
            resized = resize_to_square(picture, 480)
            assert zlib.crc32(resized.tobytes()) == want["resized_crc32"]
            continue
        got = noises.noise(words[0])[int(words[1])] if words else make_tensor(name, want["shape"])
        assert str(got.dtype) == want["dtype"]
        assert zlib.crc32(np.ascontiguousarray(got).tobytes()) == want["crc32"], name
        first = np.asarray(want["first"], got.dtype)
        np.testing.assert_array_equal(got.ravel()[: len(first)], first)


def test_state_dict_keys_are_the_checkpoints():
    """Every key and shape of an official checkpoint that an answer reads, and no other."""
    state = empty_model(PRESETS["cgformer"]).state_dict()
    ours = {key: list(value.shape) for key, value in state.items()}
    counters = {key for key in ours if key.endswith("num_batches_tracked")}
    read = {key: one["shape"] for key, one in KEYS.items() if one["use"] in ("mask", "cancels")}
    assert {key: shape for key, shape in ours.items() if key not in counters} == read
    assert all(KEYS[key]["use"] == "none" for key in counters)
    assert (len(KEYS), len(read), len(counters)) == (752, 704, 8)


def millions(*modules) -> float:
    return round(sum(p.numel() for one in modules for p in one.parameters()) / 1e6, 3)


def test_parameter_table():
    """The parts that an answer reads, and what official files have besides."""
    model = empty_model(PRESETS["cgformer"])
    backbone, decoder = model.backbone, model.decoder
    assert [millions(stage) for stage in backbone.stages()] == [0.829, 2.902, 61.359, 31.0]
    norms = [getattr(backbone, f"norm{i}") for i in range(4)]
    assert millions(backbone.patch_embed, *norms) == 0.010
    assert millions(model.bert) == 108.892
    assert [millions(fuse) for fuse in decoder.fuses] == [9.440, 5.901, 5.311]
    assert millions(decoder.tokens) == 0.001
    positions = sum(layer.positional_embedding.numel() for layer in decoder.layers)
    assert round(positions / 1e6, 3) == 9.677
    worded = [(layer.loadtoken, layer.norm, layer.mlp) for layer in decoder.layers[1:]]
    assert [millions(*parts) for parts in worded] == [2.365, 2.365]  # 3.416 less 1.051
    assert [millions(decoder.cgattention1), millions(decoder.cgattention2)] == [2.104, 2.104]
    assert millions(decoder.proj.vis) == 4.983
    assert millions(decoder.proj.txt) == 0.263
    assert millions(model) == 249.506
    parameters = [one["shape"] for one in KEYS.values() if one["kind"] == "parameter"]
    assert round(sum(map(math.prod, parameters)) / 1e6, 3) == 253.706


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_a_configuration_survives_json(config):
    assert CgformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(TypeError, match="unknown model configuration fields: colour"):
        CgformerConfig.from_dict({**config.to_dict(), "colour": 1})


def test_sizes_of_the_maps():
    config = PRESETS["cgformer"]
    assert config.map_sides() == (30, 60, 120)
    assert config.places() == noises.PLACES
    assert sum(config.places()) == 18900
    assert TINY.map_sides() == (8, 16, 32)


def test_the_tiny_preset_has_every_trap():
    """Padded windows, shifted blocks, several heads of PWAM."""
    for side in TINY.swin.grids(TINY.image_size):
        found = window_places(side, TINY.swin.window, 2)
        assert (found.gather == side * side).any()
        assert found.mask.any()
    assert TINY.pwam_heads > 1
    assert min(TINY.swin.depths) > 1


def model_of(assignment: str):
    return CGFORMER.made_up_model(replace(TINY, assignment=assignment), 3)


def questions():
    ids = torch.zeros(3, TINY.max_tokens, dtype=torch.long)
    ids[:, :4] = torch.tensor([2, 150, 160, 3])
    ids[1, 4:6] = 7
    return {"input_ids": ids, "text_mask": (ids != 0).float()}


def noise(rows: int) -> torch.Tensor:
    """Logistic noise for the places of the tiny model."""
    drawn = np.random.default_rng(5).logistic(size=(rows, sum(TINY.places())))
    return torch.from_numpy(drawn.astype(np.float32))


@pytest.mark.parametrize("assignment", ["expected", "sampled"])
@torch.no_grad()
def test_values_are_those_of_the_whole_model(assignment):
    """Three expressions about two pictures, as the model has each of them alone."""
    model = model_of(assignment)
    pictures = np.random.default_rng(1).integers(0, 255, (2, 40, 60, 3), np.uint8)
    index, asked = [1, 0, 1], questions()
    images = torch.cat([CGFORMER.prepare(model, picture)["image"] for picture in pictures])
    encoded = CGFORMER.encode(model, {"image": images})
    given = asked | ({"assignment_noise": noise(3)} if assignment == "sampled" else {})
    values = CGFORMER.ask(model, {name: value[index] for name, value in encoded.items()} | given)
    assert list(encoded) == ["stem", "stem_vis", "stem_query"]
    maps = [f"res{i}" for i in (2, 3, 4, 5)] + [f"map_{i}" for i in range(3)]
    assert list(values) == ["text_features", *maps, "kernel", "mask_logits"]
    assert values["mask_logits"].shape == (3, 1, TINY.image_size, TINY.image_size)
    for row, image in enumerate(index):
        own = given["assignment_noise"][row : row + 1] if assignment == "sampled" else None
        one = model(images[image : image + 1], asked["input_ids"][row : row + 1], own)
        alone = [one.text_features, *one.maps, *one.fused, one.tokens.kernel, one.mask_logits]
        for (name, value), wanted in zip(values.items(), alone, strict=True):
            torch.testing.assert_close(value[row : row + 1], wanted, rtol=1e-4, atol=2e-4, msg=name)


@torch.no_grad()
def test_assignments():
    """Noise is read of a sampled model alone, where zeros are the mode; many draws are the mean."""
    picture = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    model = model_of("expected")
    stem = CGFORMER.encode(model, CGFORMER.prepare(model, picture))
    asked = stem | {name: value[:1] for name, value in questions().items()}
    one, other = noise(2).split(1)
    mean = CGFORMER.ask(model, asked)
    assert torch.equal(
        mean["kernel"], CGFORMER.ask(model, asked | {"assignment_noise": one})["kernel"]
    )

    sampled = model_of("sampled")
    with pytest.raises(KeyError, match="assignment_noise"):
        CGFORMER.ask(sampled, asked)
    kernels = [
        CGFORMER.ask(sampled, asked | {"assignment_noise": each})["kernel"]
        for each in (one, one, other, torch.zeros_like(one))
    ]
    assert torch.equal(kernels[0], kernels[1])
    for kernel in (*kernels[2:], mean["kernel"]):
        assert not torch.allclose(kernels[0], kernel, atol=1e-3)


@torch.no_grad()
def test_padding_has_no_effect():
    """4, 20 and 35 positions give one answer; the words are read."""
    model = model_of("expected")
    picture = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    image, ids = CGFORMER.prepare(model, picture)["image"], questions()["input_ids"][:1]
    want = model(image, ids).mask_logits
    for length in (4, 35):
        other = torch.zeros(1, length, dtype=torch.long)
        other[0, :4] = ids[0, :4]
        torch.testing.assert_close(model(image, other).mask_logits, want, rtol=1e-4, atol=1e-4)
    other = ids.clone()
    other[0, 1] = 30
    assert not torch.allclose(model(image, other).mask_logits, want, atol=1e-2)


@torch.no_grad()
def test_the_last_layer_folds_into_the_kernel():
    model = model_of("expected")
    head = model.decoder.mask_head
    feature, kernel = torch.randn(2, TINY.width, 9, 7), torch.randn(2, TINY.width + 1)
    folded = head(feature, kernel)
    head.folded = False
    torch.testing.assert_close(head(feature, kernel), folded, rtol=1e-4, atol=1e-4)
    together = model.decoder.masks(feature, kernel)
    torch.testing.assert_close(together, folded, rtol=1e-4, atol=1e-4)
    assert folded.shape == (2, 1, 36, 28)


@torch.no_grad()
def test_the_path_of_the_tokens():
    """The first block, then the second one twice, the words before it; the last token's kernel."""
    decoder = model_of("expected").decoder
    maps = [torch.randn(1, TINY.width, side, side) for side in TINY.map_sides()]
    text, mask = torch.randn(1, 7, TINY.bert.width), torch.ones(1, 7)
    out = decoder.group(maps, text, mask, None)
    tokens = decoder.tokens.weight[None]
    blocks = (decoder.cgattention1, decoder.cgattention2, decoder.cgattention2)
    for level, (block, layer) in enumerate(zip(blocks, decoder.layers, strict=True)):
        if level:
            worded = layer.loadtoken(tokens, text, mask)
            assert torch.equal(out.worded[level - 1], worded)
            tokens = layer.replace(worded)
            assert torch.equal(out.loaded[level - 1], tokens)
        found = block(tokens, maps[level], layer.positional_embedding, None)
        assert torch.equal(out.levels[level].tokens, found.tokens)
        tokens = found.tokens
    assert torch.equal(out.kernel, decoder.proj.txt(tokens[:, 1]))
