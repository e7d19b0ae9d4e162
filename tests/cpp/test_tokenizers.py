"""libris cuts texts as `tokenizers` does, by a tokenizer.json of each kind, and reads no other."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tokenizers import Tokenizer

from libris_helper import MAX_TOKENS, tokenize
from ris.engines.errors import BundleError, ExpressionError
from ris.reference.bpe import bpe_tokenizer
from ris.reference.sentencepiece_model import read_sentencepiece
from ris.reference.unigram import PAD, made_up_unigram, unigram_from
from ris.runtime.text import ExpressionTokenizer
from sentencepiece_helper import (
    ADDED,
    LISA,
    MARKS_APART,
    SEMANTIC,
    any_texts,
    as_xlm_r,
    texts,
    trained,
    with_added_tokens,
)

SURE = ["left man", SEMANTIC, f" {SEMANTIC}  sky", f"the{SEMANTIC}{SEMANTIC} man", "left 🐶🐱 man"]
REFUSED = ["", " \t", "\u200b", "a</s>b", "＜/s＞ man", "<pad>", "x" * 1001]
ADDED_TEXTS = ["the [SEG] thing", "<im_end>\n What is left man", "a <s>b", "[SEG", "a [seg] b"]


@pytest.fixture(scope="module")
def unigram(tmp_path_factory):
    """The folder of a trained vocabulary with its tokenizer.json, and SentencePiece's reader."""
    folder = tmp_path_factory.mktemp("unigram")
    processor = trained(folder / "sentencepiece.bpe.model")
    size = processor.get_piece_size() + 2
    with_added_tokens(folder / "sentencepiece.bpe.model", {SEMANTIC: size})
    unigram_from(folder, size + 1).save(str(folder / "tokenizer.json"))
    return folder, processor


@pytest.fixture(scope="module")
def made_up(tmp_path_factory):
    path = tmp_path_factory.mktemp("made-up") / "tokenizer.json"
    made_up_unigram().save(str(path))
    return path


@pytest.fixture(scope="module")
def bpe(tmp_path_factory):
    path = tmp_path_factory.mktemp("bpe") / "tokenizer.json"
    bpe_tokenizer(read_sentencepiece(LISA / "tokenizer_small.model"), ADDED).save(str(path))
    return path


def by_python(path, asked, pad_id=0):
    tokenizer = ExpressionTokenizer(path, MAX_TOKENS, pad_id)
    rows = np.full((len(asked), MAX_TOKENS), -1, np.int32)
    for row, text in zip(rows, asked, strict=True):
        try:
            row[:] = tokenizer([text]).ids[0]
        except ExpressionError:
            continue
    return rows


def differing(internals, path, asked, pad_id=0):
    """The texts of which libris and Python make different ids, or which one of them refuses."""
    ours = tokenize(internals, path, asked, pad_id)[0]
    return [asked[i] for i in np.flatnonzero((ours != by_python(path, asked, pad_id)).any(1))]


def test_sentencepiece_tokenizers_and_libris_agree(internals, unigram):
    folder, processor = unigram
    asked = texts(6000, seed=1)
    assert differing(internals, folder / "tokenizer.json", asked, PAD) == []
    found = tokenize(internals, folder / "tokenizer.json", asked, PAD)[0]
    for text, row in zip(asked, found, strict=True):
        want = as_xlm_r(processor, text)
        if row[0] >= 0:  # what is nothing but blanks is refused
            assert [*row] == (want + [PAD] * MAX_TOKENS)[:MAX_TOKENS], ascii(text)
    assert (found[:, 0] >= 0).mean() > 0.9


@pytest.mark.parametrize("kind", ["unigram", "made-up", "bpe"])
def test_any_characters_are_cut_as_tokenizers_does(internals, unigram, made_up, bpe, kind):
    path = {"unigram": unigram[0] / "tokenizer.json", "made-up": made_up, "bpe": bpe}[kind]
    asked = [*texts(2000, seed=2), *any_texts(4000), *SURE, *REFUSED, *ADDED_TEXTS, *MARKS_APART]
    assert differing(internals, path, asked, PAD) == []


@pytest.fixture(scope="module")
def bytes_alone(unigram, bpe, tmp_path_factory):
    """A tokenizer.json whose ids tell the normalised text: LISA's bytes behind a charsmap."""
    data = json.loads(bpe.read_text(encoding="utf-8"))
    unigrams = json.loads((unigram[0] / "tokenizer.json").read_text(encoding="utf-8"))
    data["normalizer"] = unigrams["normalizer"]
    path = tmp_path_factory.mktemp("bytes") / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def test_every_character_is_normalised_as_tokenizers_does(internals, bytes_alone):
    reference = Tokenizer.from_file(str(bytes_alone))
    codes = [*range(1, 0xD800), *range(0xE000, 0x20000), *range(0xE0000, 0xE0200)]
    asked = [f"a{c}b {c}" for c in map(chr, codes)]
    want = np.zeros((len(asked), MAX_TOKENS), np.int32)
    for row, encoding in zip(want, reference.encode_batch_fast(asked), strict=True):
        row[: len(encoding.ids)] = encoding.ids[:MAX_TOKENS]
    wrong = (tokenize(internals, bytes_alone, asked)[0] != want).any(1)
    assert [ascii(asked[i][1]) for i in np.flatnonzero(wrong)] == []


def test_texts_are_normalised_as_tokenizers_does(internals, bytes_alone):
    words = [word for text in texts(3000, seed=4) for word in text.split(" ")]
    asked = [*words, *any_texts(4000, seed=4), *MARKS_APART]
    assert [ascii(text) for text in differing(internals, bytes_alone, asked)] == []


def test_lisas_own_ids(internals, bpe, tmp_path):
    model = read_sentencepiece(LISA / "tokenizer_small.model")
    bpe_tokenizer(model, ADDED, start=False).save(str(tmp_path / "tokenizer.json"))
    plain = json.loads((LISA / "tokenizer_tests.json").read_text(encoding="utf-8"))["plain"]
    asked = [case for case in plain if case["text"]]
    found = tokenize(internals, tmp_path / "tokenizer.json", [case["text"] for case in asked])[0]
    for case, row in zip(asked, found, strict=True):
        assert [*row[: len(case["ids"])]] == case["ids"], case["text"]


def test_lisas_own_ids_around_added_tokens(internals, bpe, tmp_path):
    """Also whole questions, in the two parts beside the picture; nothing is refused for once."""
    model = read_sentencepiece(LISA / "tokenizer_small.model")
    data = json.loads(bpe_tokenizer(model, ADDED, start=False).to_str())
    for token in data["added_tokens"]:
        token["special"] = False
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(data), encoding="utf-8")
    cases = json.loads((LISA / "tokenizer_tests.json").read_text(encoding="utf-8"))
    wanted = {case["text"]: case["ids"] for case in cases["added"] if case["text"].strip()}
    for case in cases["template"]:
        place = case["ids"].index(-200)
        before, behind = case["string"].split("<image>")
        wanted[before] = case["ids"][1:place]  # without the <s>
        wanted[behind] = case["ids"][place + 1 :]
    found = tokenize(internals, path, list(wanted))[0]
    for (text, ids), row in zip(wanted.items(), found, strict=True):
        assert [*row[: len(ids)]] == ids[:MAX_TOKENS], text


def test_notes_are_those_of_python(internals, unigram, made_up):
    asked = ["left ☃ man 🐶🐱", "the " * 40 + "end", "left man", f"{SEMANTIC} ☃"]
    for path in (unigram[0] / "tokenizer.json", made_up):
        python = ExpressionTokenizer(path, MAX_TOKENS, PAD)
        lines = tokenize(internals, path, asked, PAD)[1].splitlines()
        assert lines == [
            f"{i} {note}" for i, text in enumerate(asked) for note in python([text]).notes[0]
        ]
        assert lines[0] == "0 words the model does not know: ☃, 🐶🐱"


def without(*names):
    """Removes a field."""

    def change(data):
        *path, last = names
        for name in path:
            data = data[name]
        del data[last]

    return change


def set_to(value, *names):
    def change(data):
        *path, last = names
        for name in path:
            data = data[name]
        data[last] = value

    return change


def charsmap(change):
    """Changes the compiled normaliser."""

    def changed(data):
        step = data["normalizer"]["normalizers"][1]
        step["precompiled_charsmap"] = change(step["precompiled_charsmap"])

    return changed


DAMAGED = {
    "unk_id behind the end": set_to(1 << 20, "model", "unk_id"),
    "no unk_id": set_to(None, "model", "unk_id"),
    "a piece without a score": set_to(["<s>"], "model", "vocab", 0),
    "a score in words": set_to(["<s>", "many"], "model", "vocab", 0),
    "no vocabulary": without("model", "vocab"),
    "no base64": charsmap(lambda text: "*" + text[1:]),
    "no charsmap": charsmap(lambda text: ""),
    "a cut charsmap": charsmap(lambda text: text[: len(text) // 8 * 4]),
    "rules that lead nowhere": charsmap(lambda text: "BAAAAP////8A" + text[12:16]),
}
OTHER_FORMS = {
    "unknown kind": set_to("WordLevel", "model", "type"),
    "bytes": set_to(True, "model", "byte_fallback"),
    "a pre-tokenizer": set_to(
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}, "pre_tokenizer"
    ),
    "another normaliser": lambda data: data["normalizer"]["normalizers"].append(
        {"type": "Lowercase"}
    ),
    "another id": lambda data: data["added_tokens"][-1].update(id=7),
    "an added token's option": lambda data: data["added_tokens"][-1].update(single_word=True),
    "many tokens around a text": lambda data: data["post_processor"]["special_tokens"][
        "<s>"
    ].update(ids=[0] * 65, tokens=["<s>"] * 65),
}


@pytest.mark.parametrize("name", [*DAMAGED, *OTHER_FORMS])
def test_damaged_and_other_forms_are_refused(internals, unigram, tmp_path, name):
    path = tmp_path / "tokenizer.json"
    data = json.loads((unigram[0] / "tokenizer.json").read_text(encoding="utf-8"))
    (DAMAGED | OTHER_FORMS)[name](data)
    path.write_text(json.dumps(data), encoding="utf-8")
    ids, message = tokenize(internals, path, ["left man"], PAD)
    assert (ids == -1).all()
    assert message.startswith(f"refused: {path}")
    assert "export the bundle again" in message
    if name in DAMAGED:
        with pytest.raises(BundleError, match="export the bundle again"):
            ExpressionTokenizer(path, MAX_TOKENS, PAD)


@pytest.mark.parametrize(
    "change",
    [
        without("model", "vocab", "<0x41>"),
        without("model", "vocab", "<unk>"),
        set_to([["nothing", "known"]], "model", "merges"),
        set_to(["three of them"], "model", "merges"),
        set_to(False, "model", "byte_fallback"),
        set_to(0.1, "model", "dropout"),
        set_to("##", "model", "continuing_subword_prefix"),
    ],
)
def test_other_bpe_is_refused(internals, bpe, tmp_path, change):
    path = tmp_path / "tokenizer.json"
    data = json.loads(bpe.read_text(encoding="utf-8"))
    change(data)
    path.write_text(json.dumps(data), encoding="utf-8")
    assert tokenize(internals, path, ["left man"])[1].startswith(f"refused: {path}")
