"""What a run starts with: weight files, and what the class term needs of CLIP's text tower."""

from __future__ import annotations

from dataclasses import replace

import open_clip
import pytest
import torch

from checkpoint_files import CLIP_TEXT, CLOSE, TINY, tiny_state, trained, without
from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles
from ris.reference.layers.encoders import build_clip
from ris.training.initialise import fresh_model, starting_model
from ris.training.recipe import RECIPES
from ris.training.sentence_start import sentence_start

RELEASED, SUPPLEMENT = RECIPES["released"], RECIPES["supplement"]
CONFIG = replace(CLIP_TEXT, clip=replace(CLIP_TEXT.clip, text_width=48))
"""As in CLIP ViT-L/14, states are as long as vectors."""


@pytest.fixture
def clip(tmp_path):
    """CLIP with a text tower, and its file."""
    torch.manual_seed(5)
    model = build_clip(CONFIG.clip).eval()
    torch.save(model.state_dict(), tmp_path / "clip.pt")
    return model, tmp_path / "clip.pt"


def said(config, recipe, files):
    lines = []
    return starting_model(config, recipe, files, lines.append), lines


@pytest.mark.parametrize("config", [CONFIG, CONFIG.with_category_query()])
def test_a_sentence_s_vector_is_the_text_tower_s_at_its_start(config, clip):
    tower, file = clip
    model, lines = said(config, RELEASED, WeightFiles(clip=file))
    states = []
    tower.ln_final.register_forward_hook(lambda module, given, out: states.append(out[:, 0]))
    with torch.no_grad():
        tower.encode_text(open_clip.tokenize(["left man", "a dog that runs after a red ball"]))
    for state in states[0]:
        torch.testing.assert_close(sentence_start(model), state, **CLOSE)
    # the [CLS] variant gets the table, too
    assert model.text_embeddings.norm(dim=1).min() == pytest.approx(1, abs=1e-5)
    assert any("category table: computed" in line for line in lines)
    assert "sentence_start" not in model.state_dict()


def test_the_class_term_without_a_text_tower_is_refused(tmp_path):
    state = without(tiny_state(TINY), "text_embeddings")
    for files in (WeightFiles(), WeightFiles(trained(tmp_path, state))):
        with pytest.raises(CheckpointError) as caught:
            said(TINY, RELEASED, files)
        assert "lack a category table (text_embeddings) and CLIP's text tower" in str(caught.value)
    with pytest.raises(CheckpointError, match="lack CLIP's text tower, which"):
        said(TINY, RELEASED, WeightFiles(trained(tmp_path, tiny_state(TINY))))
    # the supplement has no such term
    model, _ = said(TINY, SUPPLEMENT, WeightFiles(trained(tmp_path, state)))
    assert not sentence_start(model).any()


def test_a_text_tower_of_another_width_is_refused(tmp_path):
    torch.save(build_clip(CLIP_TEXT.clip).state_dict(), tmp_path / "wide.pt")
    with pytest.raises(CheckpointError, match="states are as long as its vectors"):
        said(CLIP_TEXT, RELEASED, WeightFiles(clip=tmp_path / "wide.pt"))


def test_what_the_files_do_not_have_is_drawn_from_the_seed(tmp_path):
    state = without(tiny_state(TINY), "decoder.")
    files = WeightFiles(trained(tmp_path, state))
    model, lines = said(TINY, replace(SUPPLEMENT, seed=4), files)
    drawn = fresh_model(TINY, 4).state_dict()
    for key, value in model.state_dict().items():
        assert torch.equal(value, drawn[key] if key.startswith("decoder.") else state[key]), key
    assert "the others start at random" in lines[-1]
