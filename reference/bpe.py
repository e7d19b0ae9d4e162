"""SentencePiece's BPE with byte fallback in a tokenizer.json, as LLaMA's tokenizer.model has it.

The ids are those of `transformers`' slow LlamaTokenizer in its legacy form: every text gets a `▁`
in front, also one behind an added token; white space beside an added token goes with it, and beside
`<s>`, `</s>` and `<unk>` it stays. A character that is no piece becomes the pieces of its UTF-8
bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from tokenizers import Tokenizer

from ris.engines.errors import CheckpointError
from ris.engines.text import quoted, reason_of
from ris.reference.sentencepiece_model import (
    BYTE,
    CONTROL,
    NORMAL,
    UNKNOWN,
    SentencePieceModel,
    read_added_tokens,
    read_sentencepiece,
)
from ris.reference.tokenizer_json import added_token, around, whole_tokenizer

FILE = "tokenizer.model"
"""What such a vocabulary is called in a folder."""

UNK, START, END = range(3)
"""The ids of `<unk>`, which is padding too, `<s>` and `</s>`."""

_SPECIAL = {"<unk>": UNKNOWN, "<s>": CONTROL, "</s>": CONTROL}
_BYTES = 256


def bpe_from(path: Path, *, start: bool = True) -> Tokenizer:
    """A tokenizer of a BPE vocabulary with byte fallback, without truncation and padding.

    Args:
        path: The `.model` file, or a folder with a tokenizer.model. Beside it an added_tokens.json
            names further tokens, and a tokenizer_config.json may say `legacy`.
        start: Whether `<s>` is put in front of a text.

    Raises:
        CheckpointError: Where the file cannot be read, is no such model with LLaMA's special
            tokens, or its tokens are put together in another way.
    """
    file = path / FILE if path.is_dir() else path
    if not file.is_file():
        raise CheckpointError(f"{file}: no such vocabulary; give a {FILE} or a folder with one")
    model = read_sentencepiece(file)
    if problems := _problems(model):
        raise CheckpointError(f"{file} is not the BPE vocabulary expected: {'; '.join(problems)}")
    _check_legacy(file.with_name("tokenizer_config.json"))
    added_file = file.with_name("added_tokens.json")
    added = read_added_tokens(added_file)
    _check_added(added, model, added_file)
    return bpe_tokenizer(model, added, start=start)


def bpe_tokenizer(
    model: SentencePieceModel, added: Mapping[str, int], *, start: bool = True
) -> Tokenizer:
    """The tokenizer of a vocabulary that fits, with added tokens' ids by name.

    Args:
        model: The vocabulary.
        added: Tokens that the model's own texts alone have: an expression with one is refused.
            Their ids follow the vocabulary's: the library counts on, whatever it is told.
        start: Whether `<s>` is put in front of a text.
    """
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    data = whole_tokenizer(
        [],
        {
            "type": "BPE",
            "dropout": None,
            "unk_token": "<unk>",
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": True,
            "byte_fallback": True,
            "ignore_merges": False,
            "vocab": ids,
            "merges": [" ".join(pair) for pair in _merges(model)],
        },
        [
            *(added_token(i, token, special=True) for i, token in enumerate(_SPECIAL)),
            *(
                added_token(i, token, special=True, strip=True)
                for token, i in sorted(added.items(), key=lambda entry: entry[1])
                if token not in _SPECIAL
            ),
        ],
        around({"<s>": START}, {}) if start else None,
    )
    return Tokenizer.from_str(json.dumps(data))


def _merges(model: SentencePieceModel) -> list[tuple[str, str]]:
    """Every way to put a piece together of two others, the best piece first.

    SentencePiece merges the two neighbours whose product has the highest score, whatever pieces
    they are.
    """
    normal = {piece.text: i for i, piece in enumerate(model.pieces) if piece.type == NORMAL}
    found = []
    for text, number in normal.items():
        for cut in range(1, len(text)):
            left, right = normal.get(text[:cut]), normal.get(text[cut:])
            if left is not None and right is not None:
                rank = (-model.pieces[number].score, number, left, right)
                found.append((rank, (text[:cut], text[cut:])))
    return [pair for _, pair in sorted(found)]


def _problems(model: SentencePieceModel) -> list[str]:
    """Why a file is not what is read here, in words; nothing where it is."""
    problems = []
    if model.kind != "bpe" or not model.byte_fallback:
        without = "" if model.byte_fallback else " without bytes"
        problems.append(f"it is a {model.kind} model{without}")
    if model.first_pieces() != tuple(_SPECIAL.items()):
        found = ", ".join(quoted(text) for text, _ in model.first_pieces())
        problems.append(f"its special tokens are {found}, not '<unk>', '<s>', '</s>'")
    rest = model.pieces[len(_SPECIAL) :]
    bytes_ = [piece.text for piece in rest if piece.type == BYTE]
    if bytes_ != [f"<0x{value:02X}>" for value in range(_BYTES)]:
        problems.append("it has not all bytes as pieces")
    if other := next((piece for piece in rest if piece.type not in (BYTE, NORMAL)), None):
        problems.append(f"its piece {quoted(other.text)} is special, too")
    if other := next((piece for piece in rest if " " in piece.text), None):
        problems.append(f"its piece {quoted(other.text)} has a blank")
    if model.charsmap:
        problems.append("it normalises the text")
    if model.remove_extra_whitespaces or model.treat_whitespace_as_suffix:
        problems.append("it treats blanks in another way")
    if not (model.add_dummy_prefix and model.escape_whitespaces):
        problems.append("it puts no blank in front of a text")
    return problems


def _check_legacy(path: Path) -> None:
    """Refuses a tokenizer_config.json under which a text behind an added token gets no `▁`."""
    if not path.is_file():
        return
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from None
    legacy = data.get("legacy", True) if isinstance(data, dict) else data
    if legacy is not True:
        raise CheckpointError(
            f"{path}: legacy should be true or left out, found {quoted(legacy)}; this version reads"
            " the tokenizer in its legacy form alone"
        )


def _check_added(added: Mapping[str, int], model: SentencePieceModel, path: Path) -> None:
    """Refuses added tokens that do not stand behind the vocabulary one after the other."""
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    known = {token: number for token, number in added.items() if token in ids}
    if wrong := next((token for token, number in known.items() if ids[token] != number), None):
        raise CheckpointError(
            f"{path} gives {quoted(wrong)} the id {added[wrong]}, the vocabulary {ids[wrong]}"
        )
    behind = sorted(number for token, number in added.items() if token not in ids)
    if behind != list(range(len(ids), len(ids) + len(behind))):
        raise CheckpointError(
            f"{path} gives ids that do not follow the vocabulary's {len(ids)} tokens one after the"
            " other"
        )
