"""Stands in for `ris.reference.unigram` until that is there: made-up words, no file is read."""

from __future__ import annotations

import json
import string
from pathlib import Path

from tokenizers import Tokenizer

from ris.engines.errors import CheckpointError

_WORDS = ("the", "left", "right", "man", "woman", "dog", "cat", "car", "on", "in", "of", "red")


def made_up_unigram(size: int, added: tuple[str, ...] = ("[semantic]",)) -> Tokenizer:
    """A few words and all of ASCII; of size ids at most, the added ones behind them."""
    pieces = [["<s>", 0.0], ["<pad>", 0.0], ["</s>", 0.0], ["<unk>", 0.0], ["\u2581", -4.0]]
    pieces += [["\u2581" + word, -5.0] for word in _WORDS]
    letters = string.ascii_letters + string.digits + string.punctuation
    pieces += [[letter, -9.0] for letter in letters]
    special = [str(piece) for piece, _ in pieces[:4]]
    first = len(pieces)
    assert first <= size
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            _added(number, word, number < first)
            for number, word in [*enumerate(special), *enumerate(added, first)]
        ],
        "normalizer": {"type": "NFKC"},
        "pre_tokenizer": {
            "type": "Metaspace",
            "replacement": "\u2581",
            "prepend_scheme": "always",
            "split": True,
        },
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [_special("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, _special("</s>")],
            "pair": [_special("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, _special("</s>")],
            "special_tokens": {
                word: {"id": word, "ids": [number], "tokens": [word]}
                for word, number in (("<s>", 0), ("</s>", 2))
            },
        },
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": False},
    }
    return Tokenizer.from_str(json.dumps(data))


def _added(number: int, word: str, special: bool) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": True, "normalized": False}
    return {"id": number, "content": word, **flags, "special": special}


def _special(word: str) -> dict[str, object]:
    return {"SpecialToken": {"id": word, "type_id": 0}}


def unigram_from(path: Path, embeddings: int) -> Tokenizer:
    """The tokenizer of a SentencePiece model. Raises CheckpointError, always."""
    raise CheckpointError(f"{path} cannot be read yet; give a tokenizer.json")
