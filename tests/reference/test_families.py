"""The table of families: whose checkpoint a file is, and a family's pass by value name."""

from __future__ import annotations

import subprocess
import sys
from typing import ClassVar

import numpy as np
import pytest
import torch

from checkpoint_files import TINY, below, refused, save_training_checkpoint, tiny_state, without
from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles, inspect, load_model
from ris.reference.checkpoint.loading import partial_weights
from ris.reference.dfam.categories import COCO_PANOPTIC
from ris.reference.families import FAMILIES, family_named, nearest, recognise

DFAM = FAMILIES["dfam"]


@pytest.fixture(scope="module")
def state():
    return tiny_state()


@pytest.fixture
def other(monkeypatch):
    """Another family in the table, whose checkpoints begin with `other.`."""

    class Other(type(DFAM)):
        name = "other"
        signs = ("other.",)
        components: ClassVar = {"bert": "text_encoder."}

    monkeypatch.setitem(FAMILIES, "other", Other())
    return FAMILIES["other"]


def test_the_table_is_read_without_pytorch():
    code = "import sys, ris.reference.families; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert "ris" in loaded, done.stderr
    assert not loaded & {"torch", "transformers", "open_clip", "segment_anything", "safetensors"}


def test_every_row_is_complete():
    presets = [name for family in FAMILIES.values() for name in family.presets]
    assert len(set(presets)) == len(presets)
    for name, family in FAMILIES.items():
        assert family.name == name
        assert family_named(name) is family
        for preset, config in family.presets.items():
            assert config.preset == preset
            assert family.carried_config(config.to_dict(), "here") == config
            keys = list(family.empty_model(config).state_dict())
            assert recognise(keys) is family
            rules = family.key_rules(config)
            assert {rules.module_of(key) for key in keys} <= set(rules.names()) - {"other"}
            assert set(family.brings) <= set(rules.names())
            for prefix in family.components.values():
                assert any(key.startswith(prefix) for key in keys)
        every = {key for c in family.presets.values() for key in family.empty_model(c).state_dict()}
        for part in family.shared_parts():
            for key in (part.gives, *(key for key, _ in part.takes)):
                assert not key or key in every


def test_a_checkpoint_is_recognised_by_its_keys(state, tmp_path, other):
    assert recognise(state) is DFAM
    assert recognise(["other.x", "other.y", "txt2txt.z"]) is other
    assert recognise(below(state, "sam.")) is None
    assert inspect(WeightFiles(save_training_checkpoint(tmp_path / "a.pth", state))).family is DFAM


def test_the_family_is_overridden(state, tmp_path):
    """A part of a checkpoint without a sign of its family is one where that is said."""
    unsigned = {k: v for k, v in state.items() if not k.startswith(DFAM.signs)}
    path = save_training_checkpoint(tmp_path / "a.pth", unsigned)
    found = inspect(WeightFiles(path), "dfam")
    assert found.family is DFAM
    assert found.config == TINY
    missing = {key for key in state if key.startswith(DFAM.signs)}
    assert missing >= set(found.keys.missing) > {"lang_mlp.weight", "lang_mlp.bias"}

    whole = save_training_checkpoint(tmp_path / "whole.pth", state)
    load_model(WeightFiles(whole), "dfam")
    with pytest.raises(CheckpointError) as caught:
        inspect(WeightFiles(whole), "rala")
    known = ", ".join(FAMILIES)
    assert str(caught.value) == f"there is no family of models 'rala'; known are {known}"


def test_a_component_is_no_checkpoint_of_any_family(state, tmp_path):
    torch.save(below(state, "sam."), tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="is SAM's weights in Meta's layout; expected"):
        inspect(WeightFiles(tmp_path / "sam.pth"), "dfam")


def test_the_nearest_family_is_named(state, tmp_path):
    unsigned = {k: v for k, v in state.items() if not k.startswith(DFAM.signs)}
    foreign = {"backbone.patch_embed.weight": torch.zeros(2)} | {
        key: value for key, value in unsigned.items() if key.startswith("text_encoder.")
    }
    path = save_training_checkpoint(tmp_path / "a.pth", foreign)
    shared = len(foreign) - 1
    assert refused(checkpoint=path) == (
        f"{path}, given as --checkpoint, is of no family of models that is known here; it is"
        f" nearest to dfam: {shared} of its {len(foreign)} keys are that family's; it lacks"
        " adaptor_clip.*, clip_pixel_decoder.*, txt2txt.* and 3 more beginnings; --family takes it"
        " for one all the same"
    )
    assert nearest(["backbone.patch_embed.weight"]) is None


def test_what_a_family_does_not_have_is_refused(state, tmp_path, other):
    path = save_training_checkpoint(tmp_path / "a.pth", {"other.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError) as caught:
        inspect(WeightFiles(path, sam=tmp_path / "sam.pth"))
    assert str(caught.value) == (
        "a model of the family other has no part that --sam-checkpoint could give; leave it out"
    )


def test_training_takes_its_own_family_alone(state, tmp_path, other):
    path = save_training_checkpoint(tmp_path / "a.pth", {"other.weight": torch.zeros(2)})
    with pytest.raises(CheckpointError) as caught:
        partial_weights(WeightFiles(path), TINY, "dfam")
    expected = f"{path} is a checkpoint of the family other; expected one of dfam"
    assert str(caught.value) == expected
    with pytest.raises(CheckpointError, match="of the family other; expected one of dfam"):
        inspect(WeightFiles(path), only="dfam")
    own = save_training_checkpoint(tmp_path / "b.pth", without(state, "sam."))
    assert set(partial_weights(WeightFiles(own), TINY, "dfam")[0]) == set(without(state, "sam."))


@pytest.mark.parametrize("query", ["cls", "category"])
def test_values_are_those_of_the_whole_model(query):
    """Three expressions about two pictures, as the model has each of them alone."""
    config = TINY if query == "cls" else TINY.with_category_query()
    model = DFAM.made_up_model(config, 3)
    pictures = np.random.default_rng(1).integers(0, 255, (2, 40, 60, 3), np.uint8)
    index, categories = [1, 0, 1], ["dog", "person", None]
    ids = torch.zeros(3, config.max_tokens, dtype=torch.long)
    ids[:, :4] = torch.tensor([2, 150, 160, 3])
    ids[1, 4:6] = 7

    with torch.no_grad():
        prepared = [DFAM.prepare(model, picture) for picture in pictures]
        images = {name: torch.cat([one[name] for one in prepared]) for name in prepared[0]}
        encoded = DFAM.encode(model, images)
        texts = {
            "input_ids": ids,
            "text_mask": (ids != 0).float(),
            "category_feature": DFAM.category_features(model, categories),
        }
        values = DFAM.ask(model, {name: value[index] for name, value in encoded.items()} | texts)
        rows = torch.tensor([COCO_PANOPTIC.index(name or "background") for name in categories])
        whole = model(images["sam_image"][index], images["clip_image"][index], ids, rows)

    with torch.no_grad():
        pixels = model.pwam.project_image(whole.clip_tokens)
    of_images = {
        "image_embeddings": whole.image_embeddings,
        "clip_tokens": whole.clip_tokens,
        "pixel_values": pixels[0],
        "pixel_queries": pixels[1],
    }
    if query == "cls":
        of_images["object_queries"] = whole.dfam.queries_sam[-1]
        of_images["object_masks"] = whole.dfam.mask_logits[-2]
    assert set(encoded) == set(of_images)
    head = {"no_target_logits"} if query == "cls" else set()
    prompts = {"dense_prompt", "dense_embedding", "sparse_prompt"}
    assert set(values) == {"text_features", "mask_logits"} | prompts | head
    for name, value in values.items():
        torch.testing.assert_close(value, getattr(whole, name), rtol=1e-4, atol=1e-4, msg=name)
    for name, value in encoded.items():
        found = of_images[name]
        torch.testing.assert_close(value[index], found, rtol=1e-4, atol=1e-4, msg=name)


def test_the_host_says_which_words_are_padding():
    """The pass obeys the mask that it is given, not the ids."""
    model = DFAM.made_up_model(TINY, 3)
    ids = torch.tensor([[2, 150, 160, 3] + [0] * (TINY.max_tokens - 4)])
    picture = np.random.default_rng(1).integers(0, 255, (40, 60, 3), np.uint8)
    with torch.no_grad():
        values = DFAM.encode(model, DFAM.prepare(model, picture)) | {"input_ids": ids}
        usual = DFAM.ask(model, values | {"text_mask": (ids != 0).float()})
        masked = DFAM.ask(model, values | {"text_mask": (ids == 2).float()})
    assert torch.equal(usual["text_features"], masked["text_features"])
    assert not torch.allclose(usual["dense_prompt"], masked["dense_prompt"])
