"""The bundle's tokenizer gives BertTokenizer's ids; a user's own tokenizer is checked."""

from __future__ import annotations

import hashlib
import json
import random
import unicodedata
from importlib import resources

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers
from transformers import BertTokenizer, BertTokenizerFast

from ris.engines.errors import CheckpointError
from ris.reference.dfam.config import PRESETS
from ris.reference.tokenizer import build_tokenizer, read_vocabulary, tokenizer_from
from ris.runtime.text import MAX_CHARACTERS, ExpressionTokenizer

FULL = PRESETS["vitb-vitl336"]
VOCABULARY = resources.files("ris.reference").joinpath("data", "bert-base-uncased-vocab.txt")
WORDS = [
    "man",
    "left",
    "the",
    "dog",
    "Person",
    "WOMEN",
    "unaffable",
    "surfboard",
    "2nd",
    "3.5",
    "antidisestablishment",
]

HAND_WRITTEN = [
    "man",
    "",
    " ",
    "left man",
    "second car from the right",
    "The LEFT man!",
    "man's hat, blue-ish",
    "a  b\tc\nd\r\ne",
    "naïve café",
    "nai\u0308ve cafe\u0301",
    "Ünïcödé ÇA",
    "Ångström Å \u212b A\u030a",
    "İstanbul ısı",
    "ǅ ﬁ ﬀ ligatures",
    "straße STRASSE ẞ",
    "人 on the left",
    "左边的男人",
    "日本語テキスト",
    "カ゛ ｶﾞ",
    "한국어 문장",
    "\u1112\u1161\u11ab",
    "emoji 🐶 dog",
    "🐶dog🐶",
    "👨‍👩‍👧‍👦 family",
    "👍🏽 thumb",
    "🏳️‍🌈 flag 🇫🇷",
    "❤️ heart ☺",
    "null\x00byte",
    "bell\x07 esc\x1b[0m",
    "del\x7f",
    "\ufffd replacement",
    "\ufeffbom",
    "\u200bzero\u200bwidth",
    "non\u200cjoin\u200ders",
    "soft\u00adhyphen",
    "nb\u00a0space",
    "\u2003em\u3000ideographic",
    "line\u2028sep\u2029",
    "مرحبا بالعالم",
    "שלום עולם",
    "\u202bleft\u202c \u202eman\u202c",
    "\u0645\u064f\u062d\u0645\u0651\u062f",
    "антон Й и\u0306",
    "Ελληνικά ςσ",
    "ไทย ภาษา",
    "हिन्दी में",
    "தமிழ்",
    "ｆｕｌｌ ｗｉｄｔｈ ！",
    "1,000.50 apples",
    "12345678901234567890",
    "1/2 ½ ² ₂ Ⅷ ①",
    "-5°C +3%",
    "https://example.com/a?b=c&d=%20#e",
    "user@example.com",
    "C:\\path\\file.txt",
    "#hashtag @at",
    "a/b\\c",
    "don't",
    "…—“quotes”‘’",
    "!?!?...",
    "((nested [brackets] {here}))",
    "$5 €6 £7 ¥8",
    "`~^|<>=+",
    "snake_case camelCase kebab-case",
    "##man ##s",
    "[CLS] [SEP] [MASK]",
    "[SEP] left [MASK] man",
    "[CLS]left man[SEP]",
    "left[UNK]man",
    "left [PAD] man",
    "[sep] [Mask] [ CLS ]",
    "[[SEP]]",
    "[unused1] [unused99]",
    "x" * 99,
    "x" * 100,
    "x" * 101,
    "x" * 200,
    "man" * 33 + "s",
    "man" * 34,
    "é" * 100,
    "e\u0301" * 100,
    "e\u0301" * 101,
    "a\u0301" * 60,
    "左" * 150,
    "-" * 120,
    "man " * 33,
    "man " * 34,
    "man " * 40 + "dog",
    "left man " * 90,
    "𝒎𝒂𝒏 𝓁𝑒𝒻𝓉",
    "\U000e0041tag",
    "\ue000private",
    "".join(chr(0x61 + i) + chr(0x300 + 3 * i) * 9 for i in range(8)),
]


def old(character):
    """Assigned by Unicode 3.2 already, and not among the few that have changed their kind since."""
    return (
        unicodedata.ucd_3_2_0.category(character) not in ("Cn", "Cs")
        and character not in "\u166d\u1734\u1885\u1886"
    )


def generated(count, accept):
    """Words, special tokens and characters of every Unicode category; the same on any machine."""
    kinds: dict[str, list[str]] = {}
    for point in range(0x20000):
        character = chr(point)
        if unicodedata.category(character) != "Cs" and accept(character):
            kinds.setdefault(unicodedata.category(character), []).append(character)
    assert len(kinds) >= 28
    chosen = random.Random(0)
    fixed = [
        *WORDS,
        " ",
        " ",
        "  ",
        "\t",
        "\n",
        "'s",
        "[SEP]",
        "[MASK]",
        "[cls]",
        "\u200d",
        "\u0301",
        "👨‍👩‍👧",
        "人",
        "x" * 100,
        "x" * 101,
    ]
    texts = []
    for _ in range(count):
        parts = []
        for _ in range(chosen.randint(1, 14)):
            pool = fixed if chosen.random() < 0.5 else kinds[chosen.choice(sorted(kinds))]
            parts.append(chosen.choice(pool))
        texts.append("".join(parts))
    return texts


@pytest.fixture(scope="module")
def vocabulary_file():
    with resources.as_file(VOCABULARY) as path:
        yield path


@pytest.fixture(scope="module")
def theirs(vocabulary_file):
    return BertTokenizer(str(vocabulary_file))


@pytest.fixture(scope="module")
def saved(tmp_path_factory, theirs):
    """A folder as `save_pretrained` leaves it, with the vocabulary beside it."""
    folder = tmp_path_factory.mktemp("bert")
    theirs.save_pretrained(folder)
    (folder / "vocab.txt").write_bytes(VOCABULARY.read_bytes())
    return folder


def test_the_vocabulary_is_the_original():
    digest = hashlib.sha256(VOCABULARY.read_bytes()).hexdigest()
    assert digest == "07eced375cec144d27c900241f3e339478dec958f92fddbc551f295c992038a3"


def test_ids_are_bert_tokenizers(theirs, vocabulary_file, tmp_path):
    """5000 strings with every category of Unicode.

    Those that the runtime takes also go through it, cut and padded, with the file of a bundle.
    """
    ours = tokenizer_from(None, FULL)
    ours.save(str(tmp_path / "tokenizer.json"))
    runtime = ExpressionTokenizer(tmp_path / "tokenizer.json", FULL.max_tokens)
    fast = BertTokenizerFast(str(vocabulary_file))
    texts = HAND_WRITTEN + generated(5000, lambda character: True)
    cut = 0
    for text in texts:
        want = theirs(text)["input_ids"]
        assert ours.encode(text).ids == want, repr(text)
        assert fast(text)["input_ids"] == want, repr(text)
        if len(want) > 2 and text.strip() and len(text) <= MAX_CHARACTERS:
            row = np.zeros(35, np.int32)
            row[: len(want[:35])] = want[:35]
            tokens = runtime([text])
            np.testing.assert_array_equal(tokens.ids[0], row, err_msg=repr(text))
            np.testing.assert_array_equal(tokens.mask[0], row != 0)
            cut += len(want) > 35
            assert ("did not see" in "".join(tokens.notes[0])) == (len(want) > 35)
    assert cut > 20


def test_ids_are_the_pure_python_tokenizers(vocabulary_file):
    """The class that the model was trained with.

    The strings leave out what reference/tokenizer.py says it treats in another way.
    """
    legacy = pytest.importorskip("transformers.models.bert.tokenization_bert_legacy")
    slow = legacy.BertTokenizerLegacy(str(vocabulary_file))
    ours = tokenizer_from(None, FULL)
    texts = generated(3000, lambda character: old(character) and character != "Σ")
    for text in HAND_WRITTEN + texts:
        want = [101, *slow.convert_tokens_to_ids(slow.tokenize(text)), 102]
        assert ours.encode(text).ids == want, repr(text)


def test_special_tokens_in_the_text_are_special():
    ids = tokenizer_from(None, FULL).encode("[SEP] left [MASK] man").ids
    assert ids == [101, 102, 2187, 103, 2158, 102]


@pytest.mark.parametrize("name", ["", "tokenizer.json", "vocab.txt"])
def test_a_users_own_files(saved, theirs, name):
    ours = tokenizer_from(saved / name, FULL)
    assert ours.truncation is None
    assert ours.padding is None
    for text in HAND_WRITTEN:
        assert ours.encode(text).ids == theirs(text)["input_ids"], repr(text)


def test_truncation_and_padding_are_switched_off(saved, tmp_path):
    tokenizer = Tokenizer.from_file(str(saved / "tokenizer.json"))
    tokenizer.enable_truncation(8)
    tokenizer.enable_padding(length=16)
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    assert len(tokenizer_from(tmp_path, FULL).encode("man " * 20).ids) == 22
    assert len(tokenizer_from(tmp_path, FULL).encode("man").ids) == 3


@pytest.mark.parametrize("name", ["tokenizer.json", "vocab.txt"])
@pytest.mark.parametrize(
    "options",
    [
        {"do_lower_case": False},
        {"do_lower_case": True, "strip_accents": False},
        {"do_lower_case": False, "strip_accents": True},
        {"tokenize_chinese_chars": False, "strip_accents": None},
    ],
)
def test_tokenizer_config_is_honoured(saved, tmp_path, name, options):
    (tmp_path / name).write_bytes((saved / name).read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"model_max_length": 512, **options})
    )
    theirs = BertTokenizer(str(saved / "vocab.txt"), **options)
    ours = tokenizer_from(tmp_path, FULL)
    for text in HAND_WRITTEN:
        assert ours.encode(text).ids == theirs(text)["input_ids"], repr(text)


def changed(tokenizer, **parts):
    data = json.loads(tokenizer.to_str())
    for name, change in parts.items():
        data[name] = change(data[name])
    return json.dumps(data)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("tokenizer.json", lambda t: "{}", r"tokenizer\.json is not a tokenizer that can be read"),
        (
            "tokenizer.json",
            lambda t: Tokenizer(models.BPE()).to_str(),
            "it is BPE, BERT's is WordPiece",
        ),
        (
            "tokenizer.json",
            lambda t: Tokenizer(models.WordPiece({"[UNK]": 0, "[PAD]": 1})).to_str(),
            r"it has no \[CLS\], \[SEP\], \[MASK\]",
        ),
        (
            "tokenizer.json",
            lambda t: changed(t, post_processor=lambda p: None),
            r"does not put \[CLS\] before",
        ),
        (
            "tokenizer.json",
            lambda t: changed(t, model=lambda m: {**m, "vocab": {**m["vocab"], "new": 30522}}),
            "ids up to 30522, the model's BERT has 30522 embeddings",
        ),
        ("vocab.txt", lambda t: "a\nb\n", r"must begin with \[PAD\]"),
        ("vocab.txt", lambda t: "[PAD]\n" * 30523, "has 30523 tokens"),
        ("other.txt", lambda t: "", r"has neither tokenizer\.json nor vocab\.txt"),
    ],
)
def test_what_is_no_bert_tokenizer(tmp_path, name, content, message):
    (tmp_path / name).write_text(content(tokenizer_from(None, FULL)))
    with pytest.raises(CheckpointError, match=message):
        tokenizer_from(tmp_path, FULL)


def test_files_that_cannot_be_read(tmp_path):
    with pytest.raises(CheckpointError, match="no such tokenizer"):
        tokenizer_from(tmp_path / "nothing.json", FULL)
    (tmp_path / "vocab.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(CheckpointError, match=r"vocab\.txt is not a vocabulary that can be read"):
        tokenizer_from(tmp_path, FULL)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "cannot be read"),
        ('{"do_lower_case": "yes"}', "should be true or false, found 'yes'"),
    ],
)
def test_a_damaged_tokenizer_config(saved, tmp_path, text, message):
    (tmp_path / "vocab.txt").write_bytes((saved / "vocab.txt").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(text)
    with pytest.raises(CheckpointError, match=message):
        tokenizer_from(tmp_path, FULL)


def test_a_foreign_normalizer_cannot_take_options(saved, tmp_path):
    tokenizer = Tokenizer.from_file(str(saved / "tokenizer.json"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    with pytest.raises(CheckpointError, match="has no BERT normaliser"):
        tokenizer_from(tmp_path, FULL)


def test_a_typed_padding_token_is_pointed_out(tmp_path):
    build_tokenizer(read_vocabulary(None, FULL)).save(str(tmp_path / "tokenizer.json"))
    tokens = ExpressionTokenizer(tmp_path / "tokenizer.json", 35)(["left [PAD] man"])
    assert tokens.mask[0, :5].tolist() == [1, 1, 0, 1, 1]
    assert "[PAD] is padding" in tokens.notes[0][0]
