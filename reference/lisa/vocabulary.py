"""The tokenizer of LISA: LLaMA's own vocabulary, or the small one of the tests."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tokenizers import Tokenizer

from ris.engines.errors import CheckpointError
from ris.reference.bpe import bpe_from, bpe_tokenizer
from ris.reference.lisa.config import LisaConfig
from ris.reference.lisa.templates import system_text
from ris.reference.sentencepiece_model import read_sentencepiece

_STAND_IN = "tiny-lisa-tokenizer.model"  # 800 pieces of made-up sentences
_ADDED = ("<im_patch>", "<im_start>", "<im_end>", "[SEG]")  # what the 7B's file adds, in its order


def tokenizer_from(path: Path | None, config: LisaConfig) -> Tokenizer:
    """The tokenizer of questions, without `<s>`: a question's text is tokenized by itself.

    path: LLaMA's tokenizer.model, with added_tokens.json beside it, or the folder of both; None for
    the small vocabulary, which made-up weights are asked with. Raises CheckpointError where it
    cannot be read or does not fit the model.
    """
    if path is None:
        file = resources.files("ris.reference").joinpath("data", _STAND_IN)
        with resources.as_file(file) as found:
            pieces = read_sentencepiece(found)
        added = {token: len(pieces.pieces) + i for i, token in enumerate(_ADDED)}
        return bpe_tokenizer(pieces, added, start=False)
    tokenizer = bpe_from(path, start=False)
    if problems := _problems(tokenizer, config):
        raise CheckpointError(f"{path} does not fit the model: {'; '.join(problems)}")
    return tokenizer


def _problems(tokenizer: Tokenizer, config: LisaConfig) -> list[str]:
    """Why a tokenizer does not fit the model, in words; nothing where it does."""
    tokens = config.tokens
    wanted = {"<im_start>": tokens.im_start, "<im_end>": tokens.im_end, "[SEG]": tokens.seg}
    problems = [
        f"{token} has id {found}, the model has {number}" if found is not None else f"no {token}"
        for token, number in wanted.items()
        if (found := tokenizer.token_to_id(token)) != number
    ]
    # what the constant in front of the picture was made of
    fixed = list(config.constant_ids[1:-1])
    if tokenizer.encode(system_text(config.template)).ids != fixed:
        problems.append("it has other ids for the words in front of the picture")
    return problems
