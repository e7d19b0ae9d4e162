"""The category table: the trained one, or one computed with a CLIP text tower."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

from checkpoint_files import CLIP_TEXT, CLOSE, TINY, clip_with_text, tiny_state, trained, without
from conftest import GOLDEN
from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles, load_model
from ris.reference.dfam.categories import COCO_PANOPTIC
from ris.reference.dfam.category_table import category_phrases

CLIP = "clip_dense.clip_model."


@pytest.fixture(scope="module")
def clip():
    return clip_with_text()


def test_the_table_is_computed_from_a_text_tower(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    config = CLIP_TEXT.with_category_query()
    state = without(tiny_state(config), CLIP)
    lost = without(state, "text_embeddings")
    zeros = lost | {"text_embeddings": torch.zeros(134, 48)}
    with torch.no_grad():
        person = clip.encode_text(open_clip.tokenize(["person"]))[0]
        tree = clip.encode_text(open_clip.tokenize(["branch", "tree", "bush", "leaves"])).mean(0)

    for name, kept in (("zeros", zeros), ("absent", lost)):
        path = trained(tmp_path, kept, f"{name}.pth")
        model, inspection = load_model(WeightFiles(path, clip=tmp_path / "clip.pt"))
        computed = "category table: computed with the text tower of clip.pt"
        assert any(computed in note for note in inspection.notes)
        table = model.text_embeddings
        assert table.shape == (134, 48)
        torch.testing.assert_close(table[0], person / person.norm(), **CLOSE)
        row = table[COCO_PANOPTIC.index("tree-merged")]
        torch.testing.assert_close(row, tree / tree.norm(), **CLOSE)


def test_the_trained_table_wins(clip, tmp_path):
    torch.save(clip.state_dict(), tmp_path / "clip.pt")
    state = without(tiny_state(CLIP_TEXT.with_category_query()), CLIP)
    model, _ = load_model(WeightFiles(trained(tmp_path, state), clip=tmp_path / "clip.pt"))
    torch.testing.assert_close(model.text_embeddings, state["text_embeddings"])


def test_without_a_table_the_message_says_what_brings_it(tmp_path):
    state = tiny_state(TINY.with_category_query())
    with pytest.raises(CheckpointError) as caught:
        load_model(WeightFiles(trained(tmp_path, without(state, "text_embeddings"))))
    assert "category table: 1 missing: text_embeddings" in str(caught.value)
    assert "category table: --clip-checkpoint with a text tower would bring it" in str(caught.value)


def test_phrases_are_plain_words_and_tokens_are_the_golden_ones():
    assert category_phrases("dining table") == ("dining table",)
    assert category_phrases("sky-other-merged") == ("sky",)
    assert category_phrases("floor-wood") == ("floor wood",)
    assert category_phrases("window-blind") == ("window blind",)
    golden = np.load(GOLDEN / "module_category_text.npz")
    for name in ("person", "tree-merged", "background"):
        tokens = open_clip.tokenize(list(category_phrases(name)))
        np.testing.assert_array_equal(tokens, golden[f"tokens_{name}"])
