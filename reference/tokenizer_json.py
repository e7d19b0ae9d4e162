"""Parts of a tokenizer.json that SentencePiece's vocabularies share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def whole_tokenizer(
    normalizers: Sequence[dict[str, Any]],
    model: dict[str, Any],
    added_tokens: Sequence[dict[str, Any]],
    template: dict[str, Any] | None,
) -> dict[str, Any]:
    """A tokenizer.json without truncation and padding.

    Args:
        normalizers: The normaliser's steps before a blank is put in front and blanks become `▁`.
        model: The model, with its vocabulary.
        added_tokens: Entries as `added_token` makes them.
        template: What stands around a text, as `around` makes it; None for nothing.
    """
    blanks_marked = [{"type": "Prepend", "prepend": "▁"}, replacing({"String": " "}, "▁")]
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": list(added_tokens),
        "normalizer": {"type": "Sequence", "normalizers": [*normalizers, *blanks_marked]},
        "pre_tokenizer": None,
        "post_processor": template,
        "decoder": None,
        "model": model,
    }


def added_token(
    number: int, content: str, *, special: bool = False, strip: bool = False
) -> dict[str, Any]:
    """An entry of tokenizer.json's `added_tokens`, found in the text as it is.

    Args:
        number: Its id.
        content: Its text.
        special: Whether the model's own texts alone have it: an expression with it is refused.
        strip: Whether white space beside it goes with it.
    """
    return {
        "id": number,
        "content": content,
        "single_word": False,
        "lstrip": strip,
        "rstrip": strip,
        "normalized": False,
        "special": special,
    }


def replacing(pattern: dict[str, str], content: str) -> dict[str, Any]:
    """A step of a normaliser: pattern is {"String": text} or {"Regex": expression}."""
    return {"type": "Replace", "pattern": pattern, "content": content}


def around(before: dict[str, int], after: dict[str, int]) -> dict[str, Any]:
    """The template of a text with special tokens around it, their ids by name."""
    first, last = ([{"SpecialToken": {"id": n, "type_id": 0}} for n in t] for t in (before, after))
    text, pair = ({"Sequence": {"id": name, "type_id": 0}} for name in "AB")
    return {
        "type": "TemplateProcessing",
        "single": [*first, text, *last],
        "pair": [*first, text, *last, pair, *last],
        "special_tokens": {
            name: {"id": name, "ids": [number], "tokens": [name]}
            for name, number in (before | after).items()
        },
    }
