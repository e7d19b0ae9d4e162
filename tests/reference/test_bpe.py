"""LLaMA's kind of vocabulary becomes a tokenizer.json that gives LISA's ids."""

from __future__ import annotations

import json

import pytest
from tokenizers import Tokenizer

from ris.engines.errors import CheckpointError, ExpressionError
from ris.reference.bpe import FILE, bpe_from, bpe_tokenizer
from ris.reference.sentencepiece_model import read_sentencepiece
from ris.runtime.text import ExpressionTokenizer
from sentencepiece_helper import ADDED, LISA, any_texts, texts, trained, with_added_tokens

CASES = json.loads((LISA / "tokenizer_tests.json").read_text(encoding="utf-8"))
IMAGE = -200
LIKE_LLAMA = {
    "model_type": "bpe",
    "vocab_size": 500,
    "byte_fallback": True,
    "normalization_rule_name": "identity",
    "remove_extra_whitespaces": False,
    "hard_vocab_limit": True,
}


@pytest.fixture(scope="module")
def model():
    return read_sentencepiece(LISA / "tokenizer_small.model")


@pytest.fixture(scope="module")
def whole(model):
    return bpe_tokenizer(model, ADDED)


@pytest.fixture(scope="module")
def question(model):
    return bpe_tokenizer(model, ADDED, start=False)


def test_the_tokenizer_json_is_the_golden_one(whole):
    ours, golden = (json.loads(tokenizer.to_str()) for tokenizer in (whole, golden_tokenizer()))
    for part in ("model", "added_tokens", "normalizer", "pre_tokenizer"):
        assert ours[part] == golden[part]


def golden_tokenizer():
    return Tokenizer.from_file(str(LISA / "tokenizer_small.json"))


@pytest.mark.parametrize("kind", ["plain", "added"])
def test_golden_texts(question, kind):
    found = {case["text"]: question.encode(case["text"]).ids for case in CASES[kind]}
    assert found == {case["text"]: case["ids"] for case in CASES[kind]}
    assert len(found) > 8


def test_golden_templates_in_two_parts(whole, question):
    for case in CASES["template"]:
        system, asked = case["string"].split("<image>")
        found = [*whole.encode(system).ids, IMAGE, *question.encode(asked).ids]
        assert found == case["ids"], case["expression"]
    assert len(CASES["template"]) > 3


def test_ids_are_sentencepieces(tmp_path):
    processor = trained(tmp_path / FILE, **LIKE_LLAMA)
    tokenizer = bpe_from(tmp_path, start=False)
    asked = [*texts(4000, seed=5), *any_texts(2000, seed=5), "   ", "a  b   c ", "\n\n"]
    own = ("<s>", "</s>", "<unk>", "\x00")  # SentencePiece ends a text at its first zero byte
    asked = [text for text in asked if not any(token in text for token in own)]
    assert [ascii(x) for x in asked if tokenizer.encode(x).ids != processor.encode(x)] == []


def test_a_folder_has_its_added_tokens(tmp_path):
    (tmp_path / FILE).write_bytes((LISA / "tokenizer_small.model").read_bytes())
    with_added_tokens(tmp_path / FILE, ADDED)
    (tmp_path / "tokenizer_config.json").write_text('{"legacy": true}')
    tokenizer = bpe_from(tmp_path)
    assert tokenizer.to_str() == bpe_tokenizer(read_sentencepiece(tmp_path / FILE), ADDED).to_str()


@pytest.mark.parametrize("text", ["the [SEG] thing", "a </s>", "<im_end>", "<unk>"])
def test_an_expression_with_a_token_of_the_models_own_is_refused(question, tmp_path, text):
    question.save(str(tmp_path / "tokenizer.json"))
    tokenize = ExpressionTokenizer(tmp_path / "tokenizer.json", 20)
    with pytest.raises(ExpressionError, match="a token of the model's own; leave it out"):
        tokenize([text])
    assert tokenize(["the [seg] thing <image>"]).mask.sum() > 8  # pieces, as in any text


OTHERS = {
    "unigram": ({"model_type": "unigram", "vocab_size": 500}, "it is a unigram model"),
    "no bytes": ({"byte_fallback": False, "hard_vocab_limit": False}, "bpe model without bytes"),
    "normalised": ({"normalization_rule_name": "nmt_nfkc"}, "it normalises the text"),
    "blanks lost": ({"remove_extra_whitespaces": True}, "blanks in another way"),
    "no blank in front": ({"add_dummy_prefix": False}, "no blank in front of a text"),
    "other special tokens": ({"pad_id": 3}, "its piece '<pad>' is special"),
    "a symbol of the user's": ({"user_defined_symbols": ["[x]"]}, r"its piece '\[x\]' is special"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_vocabulary_is_refused(tmp_path, name):
    options, sentence = OTHERS[name]
    trained(tmp_path / FILE, **(LIKE_LLAMA | options))
    with pytest.raises(CheckpointError, match=sentence):
        bpe_from(tmp_path)


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("tokenizer_config.json", '{"legacy": false}', "should be true or left out, found False"),
        ("tokenizer_config.json", '{"legacy": null}', "should be true or left out, found None"),
        ("tokenizer_config.json", "{", "cannot be read"),
        ("added_tokens.json", '{"[SEG]": 801}', "do not follow the vocabulary's 800 tokens"),
        ("added_tokens.json", '{"<s>": 7}', "the id 7, the vocabulary 1"),
    ],
)
def test_files_beside_it_that_do_not_fit_are_refused(tmp_path, name, text, sentence):
    (tmp_path / FILE).write_bytes((LISA / "tokenizer_small.model").read_bytes())
    (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=sentence):
        bpe_from(tmp_path)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"{FILE}: no such vocabulary"):
        bpe_from(tmp_path)
