"""Tokens are BertTokenizer's, cut (docs/reference/models/dfam.md 2); odd ones get a sentence."""

from __future__ import annotations

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from golden import inputs
from ris.engines.errors import BundleError, ExpressionError
from ris.reference.dfam.config import PRESETS
from ris.reference.tokenizer import build_tokenizer, read_vocabulary
from ris.runtime.text import MAX_CHARACTERS, ExpressionTokenizer

TEXTS = [
    "left man",
    "second car from the right",
    "The LEFT man!",
    "man's hat, blue-ish",
    "a  b\tc\nd",
    "naïve café",
    "人 on the left",
    "日本語テキスト",
    "emoji 🐶 dog",
    "x" * 101,
    "x" * 100,
    "1,000.50 apples",
    "[CLS] [SEP] [MASK]",
    "don't",
    "…—“quotes”",
    "\u200bzero width",
    "soft\u00adhyphen",
    "ﬁ ligature",
    "Ünïcödé ÇA",
    "#hashtag @at",
    "a/b\\c",
    "unaffable",
    "антон",
    "مرحبا",
    "null\x00byte",
    "é",
    "İstanbul",
    "ǅ",
    "supercalifragilisticexpialidocious",
]


@pytest.fixture(scope="module")
def full_vocabulary(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocabulary")
    vocabulary = read_vocabulary(None, PRESETS["vitb-vitl336"])
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    build_tokenizer(vocabulary).save(str(folder / "tokenizer.json"))
    return folder


def test_ids_are_bert_tokenizers(full_vocabulary):
    from transformers import BertTokenizer

    theirs = BertTokenizer(str(full_vocabulary / "vocab.txt"))
    ours = ExpressionTokenizer(full_vocabulary / "tokenizer.json", 35)
    for text in TEXTS:
        want = theirs(text)["input_ids"][:35]
        got = ours([text]).ids[0]
        assert got[: len(want)].tolist() == want, text
        assert not got[len(want) :].any(), text


@pytest.mark.parametrize("seed", [0, 1])
def test_golden_expressions(full_vocabulary, seed):
    tokenize = ExpressionTokenizer(full_vocabulary / "tokenizer.json", 35)
    tokens = tokenize([inputs.EXPRESSIONS[seed][0]])
    ids, mask = inputs.tokens(seed)
    np.testing.assert_array_equal(tokens.ids, ids)
    np.testing.assert_array_equal(tokens.mask, mask)
    assert tokens.ids.dtype == np.int32
    assert tokens.mask.dtype == np.float32


def test_rows_of_a_call_have_the_first_length_that_holds_the_longest(full_vocabulary):
    path = full_vocabulary / "tokenizer.json"
    tokenize, whole = (
        ExpressionTokenizer(path, 35, lengths=(4, 8, 35)),
        ExpressionTokenizer(path, 35),
    )
    for texts, length in (
        (["man"], 4),  # [CLS] man [SEP]
        (["left man"], 4),
        (["the left man"], 8),
        (["man", "the left man", "dog"], 8),
        (["man " * 7], 35),
        (["man", "man " * 40], 35),
        (["[PAD]"], 4),
    ):
        tokens, want = tokenize(texts), whole(texts)
        assert tokens.ids.shape == tokens.mask.shape == (len(texts), length)
        assert tokens.ids.flags.c_contiguous
        np.testing.assert_array_equal(tokens.ids, want.ids[:, :length])
        np.testing.assert_array_equal(tokens.mask, want.mask[:, :length])
        assert not want.mask[:, length:].any()
        assert tokens.notes == want.notes


def test_a_long_sentence_loses_its_end_and_says_so(full_vocabulary):
    tokenize = ExpressionTokenizer(full_vocabulary / "tokenizer.json", 35)
    tokens = tokenize(["man " * 33, "man " * 40 + "dog"])
    assert tokens.ids[0, 34] == 102  # [CLS] + 33 + [SEP] just fits
    assert tokens.ids[1, 34] != 102
    assert not tokens.notes[0]
    assert "did not see" in tokens.notes[1][0]
    assert tokens.notes[1][0].endswith("dog'")


def test_a_long_sentence_may_keep_the_token_behind_it(full_vocabulary):
    tokenize = ExpressionTokenizer(full_vocabulary / "tokenizer.json", 35, end_id=102)
    for text, lost in (("man " * 33, None), ("man " * 33 + "dog", "'dog"), ("a " * 50, "a a")):
        tokens = tokenize([text])
        assert tokens.ids[0, 34] == 102
        assert tokens.ids[0, 33] == tokens.ids[0, 1]
        assert (not tokens.notes[0]) == (lost is None)
        assert lost is None or tokens.notes[0][0].endswith(f"{lost}'")


def test_unknown_words_are_named(full_vocabulary):
    notes = ExpressionTokenizer(full_vocabulary / "tokenizer.json", 35)(["left 🐶 man"]).notes[0]
    assert notes == ("words the model does not know: 🐶",)


def test_the_unknown_token_has_any_name(tmp_path):
    words = {"left": 0, "man": 1, "<huh>": 2}
    named = Tokenizer(models.WordLevel(words, unk_token="<huh>"))
    nameless = Tokenizer(models.BPE({"m": 0, "an": 1, "a": 2, "n": 3, "[UNK]": 4}, [("a", "n")]))
    noted = []
    for i, tokenizer in enumerate((named, nameless)):
        tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
        tokenizer.save(str(tmp_path / f"{i}.json"))
        noted.append(ExpressionTokenizer(tmp_path / f"{i}.json", 9, pad_id=7)(["man 🐶"]).notes[0])
    assert noted == [("words the model does not know: 🐶",), ()]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is empty"),
        ("  \n ", "is empty"),
        ("word " * 10_000, f"50000 characters, at most {MAX_CHARACTERS}"),
        ("\u200b", "no words in it"),
        ("\ud800", "not valid Unicode"),
        (7, "must be text, got int"),
    ],
)
def test_what_is_no_expression(full_vocabulary, text, message):
    with pytest.raises(ExpressionError, match=message):
        ExpressionTokenizer(full_vocabulary / "tokenizer.json", 35)([text])


def test_a_file_that_is_no_tokenizer(tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(BundleError, match="not a tokenizer"):
        ExpressionTokenizer(tmp_path / "tokenizer.json", 35)
