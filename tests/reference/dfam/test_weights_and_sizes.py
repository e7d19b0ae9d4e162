"""The made-up weights, the presets, and the parameter table.

Sections 16, 18 and 21 of docs/reference/models/dfam.md.
"""

from __future__ import annotations

import json
import zlib

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from conftest import GOLDEN
from ris.reference.dfam import parameters
from ris.reference.dfam.categories import COCO_PANOPTIC
from ris.reference.dfam.config import PRESETS, ModelConfig
from ris.reference.dfam.deterministic import deterministic_model, make_tensor
from ris.reference.dfam.model import empty_model

FULL, TINY = PRESETS["vitb-vitl336"], PRESETS["tiny"]


def test_the_weight_rule_draws_the_golden_numbers():
    for key, want in json.loads((GOLDEN / "weights_check.json").read_text()).items():
        got = make_tensor(key, want["shape"])
        assert zlib.crc32(np.ascontiguousarray(got).tobytes()) == want["crc32"], key
        np.testing.assert_array_equal(got.ravel()[: len(want["first"])], np.float32(want["first"]))


def test_the_weight_rule_knows_every_key(golden_keys):
    for key, entry in golden_keys.items():
        small = [min(n, 3) for n in entry["shape"]]
        assert str(make_tensor(key, small).dtype) == entry["dtype"], key


@pytest.mark.parametrize("query", ["cls", "category"])
def test_state_dict_keys_are_the_checkpoints(golden_keys, query):
    """Every key and shape of an official checkpoint, but for four buffers of the training loss."""
    config = FULL if query == "cls" else FULL.with_category_query()
    state = empty_model(config, clip_text_tower=True).state_dict()
    ours = {key: list(value.shape) for key, value in state.items()}
    theirs = {k: e["shape"] for k, e in golden_keys.items() if e[query] != "absent"}
    unused = {
        "nt_weight",
        "empty_sparse_emb",
        "criterion.empty_weight",
        "criterion.additional_weight",
    }
    assert set(theirs) - set(ours) <= unused
    assert set(ours) <= set(theirs)
    assert all(theirs[k] == shape for k, shape in ours.items())


def test_counts_equal_table_2():
    counts = parameters.component_counts(empty_model(FULL))
    digits_shown = {"SAM ViT": 2, "CLIP ViT": 1, "SAM decoder": 2, "BERT": 1, "DFAM": 2}
    for name, digits in digits_shown.items():
        assert round(counts[name] / 1e6, digits) == parameters.TABLE_2[name], name
    in_thousands = {
        "PWAM": 788,
        "CLIP pyramid": 16557,
        "pixel decoder": 7414,
        "SAM pyramid": 1969,
        "sparse branch": 790,
    }
    for name, want in in_thousands.items():
        assert round(counts[name] / 1e3) == want, name


def test_the_table_is_printed():
    done = CliRunner().invoke(parameters.main)
    assert done.exit_code == 0
    assert "304.294" in done.output
    assert "304.3 " in done.output


def test_the_supplements_words():
    config = FULL.with_supplement()
    assert (config.dense_prompt_grid, config.dense_interpolation) == (24, "bilinear")
    assert (config.sparse_branch, config.no_target) == ("additive", "linear")
    assert FULL.with_category_query().with_supplement().no_target == "none"
    keys = empty_model(config).state_dict().keys()
    assert not [k for k in keys if k.startswith("txt2txt.fcs")]
    assert [k for k in keys if ".nt_embed" in k] == [
        "decoder.nt_embed.layers.0.weight",
        "decoder.nt_embed.layers.0.bias",
    ]


@pytest.mark.parametrize("config", [TINY, TINY.with_supplement(), TINY.with_category_query()])
def test_shapes_follow_the_configuration(config):
    model = deterministic_model(config)
    ids = torch.zeros(2, 35, dtype=torch.long)
    ids[:, :4] = torch.tensor([2, 150, 160, 3])
    images = torch.randn(2, 3, 256, 256), torch.randn(2, 3, 84, 84)
    with torch.no_grad():
        out = model(*images, ids, torch.tensor([0, 2]))
    assert out.mask_logits.shape == (2, 1, 64, 64)
    assert out.dense_prompt.shape == (2, 64, config.dense_prompt_grid, config.dense_prompt_grid)
    assert out.dense_embedding.shape == (2, 64, 16, 16)
    assert (out.no_target_logits is None) == (config.query == "category")


def test_the_category_variant_needs_a_category():
    model = deterministic_model(TINY.with_category_query())
    with pytest.raises(ValueError, match="needs a category"):
        model.sparse_query(torch.zeros(1, 35, 64), None)


@pytest.mark.parametrize("config", [FULL, TINY.with_supplement(), TINY.with_category_query()])
def test_a_configuration_survives_json(config):
    assert ModelConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    with pytest.raises(TypeError, match="unknown model configuration fields: colour"):
        ModelConfig.from_dict({**config.to_dict(), "colour": 1})


def test_category_names():
    assert len(COCO_PANOPTIC) == len(set(COCO_PANOPTIC)) == 134
    places = {"person": 0, "bicycle": 1, "car": 2, "toothbrush": 79, "background": 133}
    assert all(COCO_PANOPTIC[place] == name for name, place in places.items())
