"""BERT's folders, written by transformers, give what the library itself computes."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BertConfig, BertForPreTraining, BertModel

from checkpoint_files import CLOSE, TINY, refused, tiny_state, trained, without
from ris.reference.checkpoint import WeightFiles, load_model


def bert_config():
    bert = TINY.bert
    return BertConfig(
        vocab_size=bert.vocab_size,
        hidden_size=bert.width,
        num_hidden_layers=bert.layers,
        num_attention_heads=bert.heads,
        intermediate_size=bert.mlp_width,
        max_position_embeddings=bert.positions,
    )


def old_name(key):
    key = key.replace("LayerNorm.weight", "LayerNorm.gamma")
    return key.replace("LayerNorm.bias", "LayerNorm.beta")


@pytest.fixture(params=["BertModel", "BertForPreTraining", "old names"])
def bert_folder(request, tmp_path):
    torch.manual_seed(4)
    kind = BertModel if request.param == "BertModel" else BertForPreTraining
    theirs = kind(bert_config()).eval()
    folder = tmp_path / "bert"
    theirs.save_pretrained(folder)
    if request.param == "old names":  # bert-base-uncased's own pytorch_model.bin
        (folder / "model.safetensors").unlink()
        old = {old_name(key): value for key, value in theirs.state_dict().items()}
        assert any("gamma" in key for key in old)
        torch.save(old, folder / "pytorch_model.bin")
    (folder / "vocab.txt").write_text("[PAD]\n")
    return theirs if kind is BertModel else theirs.bert, folder


@torch.no_grad()
def test_hugging_faces_bert(bert_folder, tmp_path):
    theirs, folder = bert_folder
    rest = trained(tmp_path, without(tiny_state(), "text_encoder."))
    model, inspection = load_model(WeightFiles(rest, bert=folder))
    assert inspection.vocabulary == folder / "vocab.txt"
    assert any(note.startswith("WARNING: BERT is ") for note in inspection.notes)

    ids = torch.zeros(1, 35, dtype=torch.long)
    ids[0, :4] = torch.tensor([2, 150, 160, 3])
    want = theirs(ids, attention_mask=(ids != 0).long()).last_hidden_state
    torch.testing.assert_close(model.encode_words(ids)[0], want, **CLOSE)


def test_the_trained_bert_wins(bert_folder, tmp_path):
    state = tiny_state()
    model, inspection = load_model(WeightFiles(trained(tmp_path, state), bert=bert_folder[1]))
    key = "text_encoder.embeddings.word_embeddings.weight"
    torch.testing.assert_close(model.state_dict()[key], state[key])
    [note] = inspection.notes
    assert note.startswith("BERT: the checkpoint's trained tensors are kept")
    assert inspection.vocabulary is not None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"model_type": "roberta"}, "has model_type 'roberta', the model's BERT has 'bert'"),
        ({"hidden_act": "relu"}, "has hidden_act 'relu', the model's BERT has 'gelu'"),
    ],
)
def test_another_bert(tmp_path, change, sentence):
    folder = tmp_path / "bert"
    BertModel(bert_config()).save_pretrained(folder)
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    assert sentence in refused(checkpoint=trained(tmp_path, tiny_state()), bert=folder)


def test_bert_folders_that_cannot_be_used(tmp_path):
    rest = trained(tmp_path, tiny_state())
    assert "is no folder; --bert takes the folder" in refused(checkpoint=rest, bert=rest)
    folder = tmp_path / "bert"
    folder.mkdir()
    assert "holds none of model.safetensors" in refused(checkpoint=rest, bert=folder)

    (folder / "vocab.txt").write_text("[PAD]\n")
    options = folder / "tokenizer_config.json"
    options.write_text('{"do_lower_case": false}')
    assert "holds a cased BERT" in refused(checkpoint=rest, bert=folder)
    options.write_text("{")
    assert "cannot be read as JSON" in refused(checkpoint=rest, bert=folder)
    options.unlink()
    assert load_model(WeightFiles(rest, bert=folder))[1].vocabulary == folder / "vocab.txt"
