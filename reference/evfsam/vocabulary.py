"""The tokenizer of BEiT-3: its own SentencePiece vocabulary, or made-up words."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from tokenizers.models import Unigram

from ris.engines.errors import CheckpointError
from ris.engines.text import is_fault, reason_of
from ris.reference.evfsam.config import EvfsamConfig
from ris.reference.unigram import made_up_unigram, unigram_from

SEMANTIC = "[semantic]"
"""The word in front that asks a multitask checkpoint for everything of a class."""

PAD_ID = 1
"""The id of padding."""

_UNREACHED = 8  # rows of the table behind <mask>, the last word; the first is SEMANTIC's
_IDS = {"<s>": 0, "<pad>": PAD_ID, "</s>": 2, "<unk>": 3}


def tokenizer_from(path: Path | None, config: EvfsamConfig) -> Tokenizer:
    """The tokenizer of a vocabulary; the sequence is <s>, the pieces, </s>.

    path: a SentencePiece model, with added_tokens.json beside it perhaps, or a tokenizer.json; None
    for made-up words. Raises CheckpointError where it cannot be read or does not fit the model.
    """
    rows = config.beit3.vocab_size
    if path is None:
        return made_up_unigram(rows - _UNREACHED, (SEMANTIC,))
    is_json = path.suffix.lower() == ".json"
    tokenizer = _read_json(path) if is_json else unigram_from(path, rows)
    if problems := _problems(tokenizer, config):
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(problems)}")
    _require_multitask(tokenizer, path, config)
    return tokenizer


def _read_json(path: Path) -> Tokenizer:
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as error:  # a panic is no Exception
        if not is_fault(error):
            raise
        raise CheckpointError(
            f"{path} is not a tokenizer that can be read: {reason_of(error)}"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _problems(tokenizer: Tokenizer, config: EvfsamConfig) -> list[str]:
    """Why a tokenizer does not fit the model, in words; nothing where it does."""
    if not isinstance(tokenizer.model, Unigram):
        return [f"it is {type(tokenizer.model).__name__}, BEiT-3's is Unigram"]
    ids = tokenizer.get_vocab(with_added_tokens=True)
    problems = [
        f"{token} has id {ids[token]}, it should be {wanted}"
        if token in ids
        else f"it has no {token}"
        for token, wanted in _IDS.items()
        if ids.get(token) != wanted
    ]
    last, rows = max(ids.values(), default=0), config.beit3.vocab_size
    if last >= rows:
        problems.append(f"it has ids up to {last}, the model's BEiT-3 has {rows} embeddings")
    if problems:
        return problems
    if reason := _unlike_ours(tokenizer):
        return [reason]
    found = tokenizer.encode("left man").ids
    if len(found) < 3 or (found[0], found[-1]) != (0, 2):
        problems.append("it does not put <s> before and </s> behind the text")
    return problems


def _unlike_ours(tokenizer: Tokenizer) -> str:
    """Why a tokenizer.json cuts text in another way than SentencePiece does; empty where not.

    What transformers makes of such a vocabulary splits at blanks first. libris does not read it.
    """
    data, ours = (json.loads(one.to_str()) for one in (tokenizer, made_up_unigram(128)))
    own, last = (one["normalizer"] or {} for one in (data, ours))
    alike = own.get("normalizers", [])[-len(_blanks(last)) :] == _blanks(last)
    if data["pre_tokenizer"] is not None or not alike:
        return "it splits and normalises text in its own way; give sentencepiece.bpe.model"
    semantic = [one for one in data["added_tokens"] if one["content"] == SEMANTIC]
    if any(one["special"] for one in semantic):
        return f"{SEMANTIC} is marked as special, so that no expression could have it"
    return ""


def _blanks(normalizer: dict[str, Any]) -> list[Any]:
    """The last two steps of a normaliser: a blank in front, and blanks become pieces."""
    return list(normalizer["normalizers"][-2:])


def _require_multitask(tokenizer: Tokenizer, path: Path, config: EvfsamConfig) -> None:
    """Version 2 runs its multitask checkpoint, whose vocabulary alone tells it from the plain one.

    The plain one was trained with another way of making the picture and of choosing the mask.
    """
    if config.version == "2" and tokenizer.token_to_id(SEMANTIC) is None:
        raise CheckpointError(
            f"{path} has no {SEMANTIC}: it is of the plain EVF-SAM2 (evf-sam2), which makes its"
            " picture and chooses its mask in other ways than this version runs; give the"
            " multitask checkpoint (evf-sam2-multitask), with the added_tokens.json that was"
            " published with it beside the vocabulary"
        )
