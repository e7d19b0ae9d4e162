"""SentencePiece's unigram vocabularies in a tokenizer.json, with XLM-RoBERTa's ids.

The ids are those of `transformers`' slow XLMRobertaTokenizer: `<s>` 0, `<pad>` 1, `</s>` 2,
`<unk>` 3, piece k of the file k + 1 from k = 3 on, `<mask>` behind the last. A text is
`<s> A </s>`.

The file's own normaliser goes into tokenizer.json as it is. `tokenizers` looks its rules up in
another way than SentencePiece does, which takes the longest rule at each place: `tokenizers` takes
grapheme clusters of up to five bytes, and of those the shortest rule, and single characters else.
So a letter with combining marks might lose marks, or keep them apart from it. Composing the text
first (NFC) takes care of all text that people type. What is left are marks behind characters that
only compatibility makes letters (ª, ½, half-width kana), and several marks in an order that is not
the canonical one.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from ris.engines.errors import CheckpointError
from ris.engines.text import is_fault, quoted, reason_of
from ris.reference.sentencepiece_model import (
    CONTROL,
    NORMAL,
    UNKNOWN,
    Piece,
    SentencePieceModel,
    read_added_tokens,
    read_sentencepiece,
)
from ris.reference.tokenizer_json import added_token, around, replacing, whole_tokenizer

FILE = "sentencepiece.bpe.model"
"""What such a vocabulary is called in a folder. It is unigram for all its name, XLM-R's."""

START, PAD, END, UNK = range(4)
"""The ids of `<s>`, `<pad>`, `</s>` and `<unk>`."""

_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_MASK = "<mask>"
_FIRST = (("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL))
"""The first three pieces of the file, which have other ids in the tokenizer."""

MADE_UP_IDS = {
    "the": 4,
    "to": 7,
    "from": 35,
    "right": 173,
    "second": 228,
    "left": 243,
    "man": 244,
    "car": 380,
    "woman": 470,
    "sky": 3188,
    "bottle": 3522,
    "closest": 5710,
    "Left": 8267,
    "broccoli": 29391,
    "ketchup": 35290,
}
"""Words that are one piece of the released vocabulary, with their ids in it."""

Vocabulary = Sequence[tuple[str, float]]


def unigram_from(path: Path, embeddings: int) -> Tokenizer:
    """A tokenizer of a unigram vocabulary, without truncation and padding.

    Args:
        path: The `.model` file, or a folder with a sentencepiece.bpe.model. An added_tokens.json
            beside it names further tokens, such as `[semantic]`.
        embeddings: Rows of the model's table of tokens.

    Raises:
        CheckpointError: Where the file cannot be read, is no unigram model of SentencePiece with
            XLM-R's special tokens, or has more ids than the model has embeddings.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{file}: no such vocabulary; give a {FILE} or a folder with one")
    model = read_sentencepiece(file)
    if problems := _problems(model):
        raise CheckpointError(
            f"{file} is not the unigram vocabulary expected: {'; '.join(problems)}"
        )

    special = list(zip(_SPECIAL, (0.0,) * len(_SPECIAL), strict=True))
    normal = [(piece.text, piece.score) for piece in model.pieces[len(_FIRST) :]]
    vocabulary = [*special, *normal, (_MASK, 0.0)]
    added_file = file.with_name("added_tokens.json")
    added = _added_behind(vocabulary, read_added_tokens(added_file), added_file)
    if len(vocabulary) + len(added) > embeddings:
        raise CheckpointError(
            f"{file} gives {len(vocabulary) + len(added)} ids, the model has {embeddings}"
            " embeddings; give the vocabulary that belongs to the weights"
        )

    data = tokenizer_data(vocabulary, added, model.charsmap)
    try:
        return Tokenizer.from_str(json.dumps(data))
    except BaseException as error:  # a panic is no Exception
        if not is_fault(error):
            raise
        raise CheckpointError(
            f"{file} has a normaliser that cannot be read: {reason_of(error)}; fetch it again"
        ) from None


def made_up_unigram(size: int = 64002, added: Sequence[str] = ("[semantic]",)) -> Tokenizer:
    """A vocabulary for made-up weights; nothing of the released one is in it but a few ids.

    The words of `MADE_UP_IDS` have their ids of the released vocabulary, where the size allows it.
    Other words are spelled in ASCII characters; what is neither is unknown. The rest are pieces of
    private-use characters, which no text has.

    Args:
        size: Ids of the vocabulary, 128 at least; the released one has 64002.
        added: Tokens behind it. Only multitask models have `[semantic]`.
    """
    if size < 128:
        raise ValueError(f"a made-up vocabulary has 128 ids at least, not {size}")
    last = size - 1  # <mask>
    pieces = {number: f"▁{word}" for word, number in MADE_UP_IDS.items() if number < last}
    free = (number for number in range(len(_SPECIAL), last) if number not in pieces)
    others = [f"▁{word}" for word, number in MADE_UP_IDS.items() if number >= last]
    letters = ["▁", *map(chr, range(ord("!"), ord("~") + 1))]
    placed = dict(zip(free, [*others, *letters], strict=False)) | pieces

    vocabulary = [(token, 0.0) for token in _SPECIAL]
    for number in range(len(_SPECIAL), last):
        text = placed.get(number)
        if text is None:
            text, score = f"{chr(0xE000 + (number >> 8))}{chr(0xE000 + (number & 255))}", -20.0
        else:
            score = -12.0 if len(text) == 1 else -8.0
        vocabulary.append((text, score))
    vocabulary.append((_MASK, 0.0))
    return Tokenizer.from_str(json.dumps(tokenizer_data(vocabulary, added)))


def tokenizer_data(
    vocabulary: Vocabulary, added: Sequence[str] = (), charsmap: bytes = b""
) -> dict[str, Any]:
    """The tokenizer.json of a unigram vocabulary.

    Args:
        vocabulary: All pieces with their scores by id: the special ones in front, `<mask>` last.
        added: Tokens behind it that users may write, in the order of their ids.
        charsmap: SentencePiece's compiled normaliser; empty where the text is composed alone.
    """
    special = [*enumerate(_SPECIAL), (len(vocabulary) - 1, _MASK)]
    tokens = [added_token(i, token, special=True) for i, token in special]
    tokens += [
        # a text beside it is a text of its own, whose outer blanks count for nothing
        added_token(len(vocabulary) + i, token, strip=True)
        for i, token in enumerate(added)
    ]
    model = {
        "type": "Unigram",
        "unk_id": UNK,
        "vocab": [list(entry) for entry in vocabulary],
        "byte_fallback": False,
    }
    template = around({"<s>": START}, {"</s>": END})
    return whole_tokenizer(_normalizers(charsmap), model, tokens, template)


def _normalizers(charsmap: bytes) -> list[dict[str, Any]]:
    """SentencePiece's normaliser in steps, up to single blanks between words."""
    steps: list[dict[str, Any]] = [{"type": "NFC"}]
    if charsmap:
        text = base64.b64encode(charsmap).decode()
        steps.append({"type": "Precompiled", "precompiled_charsmap": text})
    return [*steps, replacing({"Regex": r"\A +| +\z| +(?= )"}, "")]


def _problems(model: SentencePieceModel) -> list[str]:
    """Why a file is not what is read here, in words; nothing where it is."""
    problems = []
    if model.kind != "unigram":
        problems.append(f"it is a {model.kind} model")
    if model.first_pieces() != _FIRST:
        found = ", ".join(quoted(text) for text, _ in model.first_pieces())
        problems.append(f"its special tokens are {found}, not '<unk>', '<s>', '</s>'")
    rest = model.pieces[len(_FIRST) :]
    if other := next((piece for piece in rest if not _is_usual(piece)), None):
        problems.append(f"its piece {quoted(other.text)} is special, too")
    if model.byte_fallback or model.treat_whitespace_as_suffix:
        problems.append("it cuts words in another way")
    usual = (model.add_dummy_prefix, model.remove_extra_whitespaces, model.escape_whitespaces)
    if usual != (True, True, True):
        problems.append("it treats blanks in another way")
    return problems


def _is_usual(piece: Piece) -> bool:
    return piece.type == NORMAL and piece.text not in (*_SPECIAL, _MASK)


def _added_behind(vocabulary: Vocabulary, added: Mapping[str, int], path: Path) -> list[str]:
    """The added tokens in the order of their ids, which follow the vocabulary's.

    One that the vocabulary has already, such as `<mask>`, must be there under the same id.
    """
    ids = {token: i for i, (token, _) in enumerate(vocabulary)}
    behind: list[str] = []
    for token, number in sorted(added.items(), key=lambda entry: entry[1]):
        if token in ids:
            fits = ids[token] == number
        else:
            fits = number == len(vocabulary) + len(behind)
            behind.append(token)
        if not fits:
            raise CheckpointError(
                f"{path} gives {quoted(token)} the id {number}, which does not fit the vocabulary"
                f" of {len(vocabulary)} tokens beside it"
            )
    return behind
