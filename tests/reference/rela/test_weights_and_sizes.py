"""ReLA's made-up weights, presets, parameter table and values."""

from __future__ import annotations

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch

from conftest import GOLDEN
from golden import inputs
from ris.reference.families import FAMILIES
from ris.reference.layers.windows import relative_positions, window_places
from ris.reference.preprocess import resize_to_square
from ris.reference.rela.config import PRESETS, RelaConfig
from ris.reference.rela.deterministic import deterministic_model, make_tensor
from ris.reference.rela.model import empty_model

FOLDER = GOLDEN / "rela"
SIZES = {"swin_base": "rela-swin-base", "swin_tiny": "rela-swin-tiny"}
TINY = PRESETS["tiny-rela"]
RELA = FAMILIES["rela"]


def keys_of(size: str) -> dict[str, dict]:
    """Every key of an official checkpoint with shape, dtype, kind and use."""
    return json.loads((FOLDER / "keys.json").read_text())[size]


def test_the_weight_rule_draws_the_golden_numbers():
    for name, want in json.loads((FOLDER / "weights_check.json").read_text()).items():
        if name.startswith("image "):
            picture = inputs.image(int(name[-1]))
            assert zlib.crc32(picture.tobytes()) == want["crc32"]
            resized = resize_to_square(picture, 480)
            assert zlib.crc32(resized.tobytes()) == want["resized 480 crc32"]
            continue
        key = name.partition("/")[2]
        if key.endswith("relative_position_index"):
            got = relative_positions(round(want["shape"][0] ** 0.5))
        else:
            got = make_tensor(key, want["shape"])
        assert str(got.dtype) == want["dtype"]
        assert zlib.crc32(np.ascontiguousarray(got).tobytes()) == want["crc32"], name
        first = np.asarray(want["first"], got.dtype)
        np.testing.assert_array_equal(got.ravel()[: len(first)], first)


@pytest.mark.parametrize("size", SIZES)
def test_state_dict_keys_are_the_checkpoints(size):
    """Every key and shape of an official checkpoint, but for the buffers that are rebuilt."""
    keys = keys_of(size)
    state = empty_model(PRESETS[SIZES[size]]).state_dict()
    ours = {key: list(value.shape) for key, value in state.items()}
    assert ours == {key: one["shape"] for key, one in keys.items() if one["kind"] == "parameter"}
    buffers = [key for key, one in keys.items() if one["kind"] == "buffer"]
    assert all(key.endswith("relative_position_index") for key in buffers)


def millions(module) -> float:
    return round(sum(p.numel() for p in module.parameters()) / 1e6, 3)


@pytest.mark.parametrize(
    ("preset", "stages", "pixel_decoder", "norms", "whole"),
    [
        ("rela-swin-base", [0.829, 2.902, 61.359, 31.0], 5.544, 0.010, 225.521),
        ("rela-swin-tiny", [0.503, 1.705, 13.319, 17.727], 5.422, 0.008, 162.561),
    ],
)
def test_parameter_table(preset, stages, pixel_decoder, norms, whole):
    model = empty_model(PRESETS[preset])
    backbone = model.backbone
    assert [millions(stage) for stage in backbone.stages()] == stages
    others = [backbone.patch_embed, *(getattr(backbone, f"norm{i}") for i in range(4))]
    assert millions(torch.nn.ModuleList(others)) == norms
    assert millions(model.bert) == 108.892
    assert millions(model.pixel_decoder) == pixel_decoder
    assert millions(model.region_decoder) == 14.986
    assert millions(model) == whole


@pytest.mark.parametrize("config", PRESETS.values(), ids=PRESETS)
def test_a_configuration_survives_json(config):
    assert RelaConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(TypeError, match="unknown model configuration fields: colour"):
        RelaConfig.from_dict({**config.to_dict(), "colour": 1})


def test_the_tiny_preset_has_every_trap():
    """Padded windows, shifted blocks, three levels of the decoder, a layer behind the first."""
    places = [window_places(side, TINY.swin.window, 2) for side in TINY.grids()]
    for side, found in zip(TINY.grids(), places, strict=True):
        assert (found.gather == side * side).any()
        assert found.mask.any()
        assert (found.gather[found.scatter] == np.arange(side * side)).all()
    assert min(TINY.swin.depths) > 1
    assert TINY.region_layers > 3


def test_windows_are_rolled_and_cut():
    """Against NumPy's own pad, roll and reshape, of an odd grid."""
    side, window, shift = 7, 3, 1
    grid = np.pad(np.arange(1, side * side + 1).reshape(side, side), ((0, 2), (0, 2)))
    rolled = np.roll(grid, (-shift, -shift), (0, 1))
    cut = [rolled[r : r + 3, c : c + 3].ravel() for r in (0, 3, 6) for c in (0, 3, 6)]
    found = window_places(side, window, shift)
    tokens = np.append(np.arange(1, side * side + 1), 0)
    np.testing.assert_array_equal(tokens[found.gather].reshape(9, 9), np.stack(cut))
    assert window_places(side, window, 0).mask is None
    assert not found.mask[0].any()


def questions(config):
    ids = torch.zeros(3, config.max_tokens, dtype=torch.long)
    ids[:, :4] = torch.tensor([2, 150, 160, 3])
    ids[1, 4:6] = 7
    return {"input_ids": ids, "text_mask": (ids != 0).float()}


@torch.no_grad()
def test_values_are_those_of_the_whole_model():
    """Three expressions about two pictures, as the model has each of them alone."""
    model = RELA.made_up_model(replace(TINY, lang_weight="stored"), 3)
    pictures = np.random.default_rng(1).integers(0, 255, (2, 40, 60, 3), np.uint8)
    index = [1, 0, 1]
    images = torch.cat([RELA.prepare(model, picture)["image"] for picture in pictures])
    encoded = RELA.encode(model, {"image": images})
    asked = questions(TINY)
    values = RELA.ask(model, {name: value[index] for name, value in encoded.items()} | asked)
    assert list(encoded) == ["stem", "stem_vis", "stem_query"]
    maps = [f"res{i}" for i in (2, 3, 4, 5)]
    assert list(values) == ["text_features", *maps, "mask_logits", "no_target_logits"]
    assert values["mask_logits"].shape == (3, 1, TINY.mask_size, TINY.mask_size)
    for row, image in enumerate(index):
        whole = model(images[image : image + 1], asked["input_ids"][row : row + 1])
        alone = [whole.text_features, *whole.maps]
        alone += [whole.regions.mask_logits, whole.regions.no_target_logits]
        for (name, value), one in zip(values.items(), alone, strict=True):
            torch.testing.assert_close(
                value[row : row + 1], one, rtol=1e-4, atol=2e-4, msg=lambda m, name=name: name + m
            )


@torch.no_grad()
def test_who_reads_padding():
    """The backbone obeys the host's mask; the regions read what is at the padding."""
    model = RELA.made_up_model(replace(TINY, lang_weight="stored"), 3)
    picture = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    stem = RELA.encode(model, RELA.prepare(model, picture))
    one = {name: value[:1] for name, value in questions(TINY).items()}
    usual = RELA.ask(model, stem | one)
    masked = RELA.ask(model, stem | one | {"text_mask": (one["input_ids"] == 2).float()})
    assert torch.equal(usual["text_features"], masked["text_features"])
    assert not torch.allclose(usual["res2"], masked["res2"], atol=1e-2)

    queries = torch.from_numpy(inputs.tensor("queries", (1, TINY.regions, TINY.width)))
    text = usual["text_features"]
    changed = text.clone()
    changed[:, 10] += 1
    decoder = model.region_decoder
    apart = decoder.read_words(queries, text) - decoder.read_words(queries, changed)
    assert apart.abs().max() > 1e-3


@torch.no_grad()
def test_lang_weight_of_made_up_models():
    zero, stored = (
        deterministic_model(replace(TINY, lang_weight=choice)).region_decoder.lang_weight
        for choice in ("zero", "stored")
    )
    assert float(zero) == 0
    assert float(stored) == pytest.approx(1.0959967)
