"""What a full-size export of EVF-SAM's golden weights needs, for the tests."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from evfsam_helper import official_keys

from golden.evfsam.inputs import EXPRESSIONS
from ris.reference.evfsam.deterministic import make_tensor

_PIECES = 64002  # of the published vocabulary; what is added to it follows
_SPECIAL = ("<s>", "<pad>", "</s>", "<unk>")
_SEMANTIC = "[semantic]"


def write_checkpoint(path: Path, version: str) -> Path:
    """A safetensors file with exactly the keys and shapes of an official one, golden weights.

    It is written tensor by tensor, so that it needs no more memory than the largest of them.
    """
    keys, header, end = official_keys(version), {}, 0
    for key, one in keys.items():
        size = 4
        for length in one["shape"]:
            size *= length
        header[key] = {"dtype": "F32", "shape": one["shape"], "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for key, one in keys.items():
            file.write(make_tensor(key, one["shape"]).tobytes())
    return path


def write_tokenizer(path: Path) -> Path:
    """A tokenizer.json that gives the golden expressions the ids of the published vocabulary.

    Each of their words is one piece; other pieces occur in no text.
    """
    pieces = [[word, 0.0] for word in _SPECIAL]
    pieces += [[f"\u2581\u00a7{number}", -20.0] for number in range(len(_SPECIAL), _PIECES)]
    for expression, ids in EXPRESSIONS.items():
        for word, number in zip(expression.split(), ids[1:-1], strict=True):
            if word != _SEMANTIC:
                pieces[number] = [f"\u2581{word}", -5.0]

    around = [_token("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, _token("</s>")]
    data = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            *(_added(number, word, True) for number, word in enumerate(_SPECIAL)),
            _added(_PIECES, _SEMANTIC, False),
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
            "single": around,
            "pair": around,
            "special_tokens": {
                word: {"id": word, "ids": [number], "tokens": [word]}
                for word, number in (("<s>", 0), ("</s>", 2))
            },
        },
        "decoder": None,
        "model": {"type": "Unigram", "unk_id": 3, "vocab": pieces, "byte_fallback": False},
    }
    path.write_text(json.dumps(data))
    return path


def _token(word: str) -> dict[str, object]:
    return {"SpecialToken": {"id": word, "type_id": 0}}


def _added(number: int, word: str, is_special: bool) -> dict[str, object]:
    flags = {"single_word": False, "lstrip": False, "rstrip": True, "normalized": False}
    return {"id": number, "content": word, **flags, "special": is_special}


if __name__ == "__main__":  # by another process, whose memory does not count
    write_checkpoint(Path(sys.argv[1]), sys.argv[2])
