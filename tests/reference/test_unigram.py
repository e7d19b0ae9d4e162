"""A SentencePiece unigram vocabulary becomes a tokenizer.json with XLM-RoBERTa's ids."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from tokenizers import Tokenizer

from ris.engines.errors import CheckpointError, ExpressionError
from ris.reference.sentencepiece_model import read_added_tokens, read_sentencepiece
from ris.reference.unigram import FILE, MADE_UP_IDS, PAD, made_up_unigram, unigram_from
from ris.runtime.text import ExpressionTokenizer
from sentencepiece_helper import (
    MARKS_APART,
    SEMANTIC,
    as_xlm_r,
    texts,
    trained,
    with_added_tokens,
)

GOLDEN = {
    "left man": [0, 243, 244, 2],
    "second car from the right": [0, 228, 380, 35, 4, 173, 2],
    "the broccoli closest to the ketchup bottle": [0, 4, 29391, 5710, 7, 4, 35290, 3522, 2],
    f"{SEMANTIC} sky": [0, 64002, 3188, 2],
    "woman": [0, 470, 2],
}
"""EVF-SAM's ids of its golden expressions."""


@pytest.fixture(scope="module")
def vocabulary(tmp_path_factory):
    """The folder of a trained vocabulary, SentencePiece's own reader, and the number of its ids."""
    folder = tmp_path_factory.mktemp("unigram")
    processor = trained(folder / FILE)
    size = processor.get_piece_size() + 2  # <pad> and <mask>
    with_added_tokens(folder / FILE, {SEMANTIC: size})
    return folder, processor, size + 1


@pytest.fixture(scope="module")
def tokenizer(vocabulary):
    return unigram_from(vocabulary[0], vocabulary[2])


def test_ids_are_sentencepieces_one_further(vocabulary, tokenizer):
    processor = vocabulary[1]
    asked = texts(6000)
    assert [
        ascii(text) for text in asked if ids(tokenizer, text) != as_xlm_r(processor, text)
    ] == []
    assert any(3 in ids(tokenizer, text) for text in asked)


def ids(tokenizer, text):
    return tokenizer.encode(text).ids


def test_texts_are_normalised_as_sentencepiece_does(vocabulary, tokenizer):
    processor = vocabulary[1]
    normalise = tokenizer.normalizer.normalize_str
    asked = texts(3000, seed=3)
    assert [ascii(x) for x in asked if normalise(x) != processor.normalize(x)] == []


def test_some_marks_stay_apart_that_sentencepiece_joins(vocabulary, tokenizer):
    """The difference that reference/unigram.py describes: nothing that one types by accident."""
    normalise, theirs = tokenizer.normalizer.normalize_str, vocabulary[1].normalize
    assert not [text for text in MARKS_APART if normalise(text) == theirs(text)]


def test_without_composing_first_decomposed_text_falls_apart(vocabulary, tokenizer):
    """transformers' fast XLM-R has the file's rules alone, without NFC before them."""
    data = json.loads(tokenizer.to_str())
    assert data["normalizer"]["normalizers"].pop(0) == {"type": "NFC"}
    plain = Tokenizer.from_str(json.dumps(data)).normalizer.normalize_str
    for text in ("Vie\u0323\u0302t", "\u1112\u1161\u11ab"):
        theirs = vocabulary[1].normalize(text)
        assert plain(text) != theirs == tokenizer.normalizer.normalize_str(text)


def test_special_tokens_have_xlm_rs_ids(vocabulary, tokenizer):
    last = vocabulary[2] - 1
    names = ("<s>", "<pad>", "</s>", "<unk>", "<mask>", SEMANTIC)
    assert [tokenizer.token_to_id(name) for name in names] == [0, 1, 2, 3, last - 1, last]


def test_blanks_beside_an_added_token_count_for_nothing(vocabulary, tokenizer):
    processor, added = vocabulary[1], vocabulary[2] - 1
    man = as_xlm_r(processor, "man")[1:-1]
    for text in (f"{SEMANTIC}man", f" {SEMANTIC}   man ", f"{SEMANTIC}\tman"):
        assert ids(tokenizer, text) == [0, added, *man, 2]
    assert ids(tokenizer, f"man {SEMANTIC} {SEMANTIC}") == [0, *man, added, added, 2]


def test_without_the_added_token_it_is_cut_into_pieces(vocabulary, tmp_path):
    (tmp_path / FILE).write_bytes((vocabulary[0] / FILE).read_bytes())
    plain = unigram_from(tmp_path / FILE, vocabulary[2] - 1)
    assert ids(plain, f"{SEMANTIC} man") == as_xlm_r(vocabulary[1], f"{SEMANTIC} man")
    assert plain.token_to_id(SEMANTIC) is None


def test_rows_are_padded_with_pad_and_the_mask_counts_tokens(tokenizer, tmp_path):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    tokens = ExpressionTokenizer(tmp_path / "tokenizer.json", 12, PAD)(["left man", "🐶🐱 man"])
    assert tokens.ids[0, 4:].tolist() == [PAD] * 8
    assert tokens.mask.sum(1).tolist() == [4, (tokens.ids[1] != PAD).sum()]
    assert tokens.notes == ((), ("words the model does not know: 🐶🐱",))


@pytest.mark.parametrize("text", ["left <s> man", "</s>", "＜pad＞", "a <unk>", "<mask>"])
def test_an_expression_with_a_token_of_the_models_own_is_refused(tokenizer, tmp_path, text):
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ExpressionError, match="a token of the model's own; leave it out"):
        ExpressionTokenizer(tmp_path / "tokenizer.json", 12, PAD)([text])


def test_a_made_up_vocabulary_has_the_golden_ids():
    tokenizer = made_up_unigram()
    assert {text: ids(tokenizer, text) for text in GOLDEN} == GOLDEN
    assert tokenizer.get_vocab_size() == 64003
    assert ids(tokenizer, "a zebra")[1:-1] == [
        tokenizer.token_to_id(letter) for letter in "▁a▁zebra"
    ]
    assert made_up_unigram().to_str() == tokenizer.to_str()


def test_a_small_made_up_vocabulary_has_the_same_words():
    tokenizer = made_up_unigram(128, ())
    assert tokenizer.get_vocab_size() == 128
    assert all(len(ids(tokenizer, word)) == 3 for word in MADE_UP_IDS)
    with pytest.raises(ValueError, match="128 ids at least"):
        made_up_unigram(127)


OTHERS = {
    "bpe": ({"model_type": "bpe"}, "it is a bpe model"),
    "bytes": ({"byte_fallback": True, "vocab_size": 500}, "special, too"),
    "other special tokens": ({"pad_id": 0, "unk_id": 3}, "its special tokens are '<pad>'"),
    "no start": ({"bos_id": -1}, "its special tokens are '<unk>', '▁ba', '</s>'"),
    "a symbol of the user's": ({"user_defined_symbols": ["[x]"]}, r"its piece '\[x\]' is special"),
    "a mask of its own": ({"control_symbols": ["<mask>"]}, "its piece '<mask>' is special"),
    "blanks kept": ({"remove_extra_whitespaces": False}, "blanks in another way"),
    "no blank in front": ({"add_dummy_prefix": False}, "blanks in another way"),
    "blanks behind": ({"treat_whitespace_as_suffix": True}, "cuts words in another way"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_another_vocabulary_is_refused(tmp_path, name):
    options, sentence = OTHERS[name]
    trained(tmp_path / FILE, **options)
    with pytest.raises(CheckpointError, match=sentence):
        unigram_from(tmp_path, 1000)


@pytest.mark.parametrize("part", [0.0, 0.1, 0.5, 0.999])
def test_a_file_that_is_cut_short_is_refused(vocabulary, tmp_path, part):
    whole = (vocabulary[0] / FILE).read_bytes()
    (tmp_path / FILE).write_bytes(whole[: int(part * len(whole))])
    with pytest.raises(CheckpointError, match="fetch it again"):
        unigram_from(tmp_path, 1000)


@pytest.mark.parametrize("change", [b"", bytes(4), b"\xff" * 8])
def test_a_damaged_normaliser_is_refused(vocabulary, tmp_path, change, monkeypatch):
    """The library panics at some of them, which is no Exception."""
    read = read_sentencepiece(vocabulary[0] / FILE)
    damaged = replace(read, charsmap=(change + read.charsmap)[: len(read.charsmap) // 8 * 4])
    monkeypatch.setattr("ris.reference.unigram.read_sentencepiece", lambda path: damaged)
    with pytest.raises(CheckpointError, match="has a normaliser that cannot be read"):
        unigram_from(vocabulary[0], 2000)


@pytest.mark.parametrize("data", [b"{}", b"PK\x03\x04" * 50, b"\x0a\x03\x0a\x01\xff" * 9])
def test_another_file_is_refused(tmp_path, data):
    (tmp_path / "some.model").write_bytes(data)
    with pytest.raises(CheckpointError, match="SentencePiece model"):
        read_sentencepiece(tmp_path / "some.model")


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match=f"{FILE}: no such vocabulary"):
        unigram_from(tmp_path, 1000)


def test_a_vocabulary_larger_than_the_models_table_is_refused(vocabulary):
    folder, _, size = vocabulary
    with pytest.raises(CheckpointError, match=f"{size} ids, the model has {size - 1} embeddings"):
        unigram_from(folder, size - 1)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ('{"[semantic]": 7}', "does not fit the vocabulary"),
        ('{"<mask>": 3}', "does not fit the vocabulary"),
        ('{"[semantic]": "302"}', "should have an id"),
        ('{"a": 302, "b": 302}', "the same id"),
        ("[]", "should be an object"),
        ("{", "cannot be read"),
    ],
)
def test_damaged_added_tokens_are_refused(vocabulary, tmp_path, text, sentence):
    (tmp_path / FILE).write_bytes((vocabulary[0] / FILE).read_bytes())
    (tmp_path / "added_tokens.json").write_text(text)
    with pytest.raises(CheckpointError, match=sentence):
        unigram_from(tmp_path, 1000)


def test_a_folder_without_added_tokens_has_none(tmp_path):
    assert read_added_tokens(tmp_path / "added_tokens.json") == {}
