"""The conversations that a question of LISA stands in: their words, and the ids of what is fixed.

Nothing here needs PyTorch.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ris.engines.errors import CheckpointError

Template = Literal["llava_v1", "llava_llama_2"]
"""The choices of `LisaConfig.template`."""

Form = Literal["phrase", "sentence"]
"""How an expression is asked: as a noun phrase, or as a sentence that stands by itself."""

FORMS: tuple[Form, ...] = ("phrase", "sentence")
"""The forms; the first is that of the referring sets, and of who names none."""


@dataclass(frozen=True)
class _Words:
    """A conversation's words."""

    system: str
    """In front of `<im_start>`, and behind `<s>`."""

    answer: str
    """What the question ends with: the state of its last token prompts SAM."""


_WORDS: dict[Template, _Words] = {
    "llava_v1": _Words(
        "A chat between a curious human and an artificial intelligence assistant. The assistant"
        " gives helpful, detailed, and polite answers to the human's questions. USER:",
        "ASSISTANT:",
    ),
    "llava_llama_2": _Words(
        "[INST] <<SYS>>\nYou are a helpful language and vision assistant. You are able to"
        " understand the visual content that the user provides, and assist the user with a variety"
        " of tasks using natural language.\n<</SYS>>",
        "[/INST]",
    ),
}

# in front of an expression and behind it
_ASKED: dict[Form, tuple[str, str]] = {
    "phrase": ("What is ", " in this image? Please output segmentation mask."),
    "sentence": ("", " Please output segmentation mask."),
}


def _ids(numbers: str) -> tuple[int, ...]:
    return tuple(map(int, numbers.split()))


# what `<s>` and the system words are in LLaMA's own pieces
_LLAMA_IDS: dict[Template, tuple[int, ...]] = {
    "llava_v1": _ids(
        "1 319 13563 1546 263 12758 5199 322 385 23116 21082 20255 29889 450 20255 4076 8444 "
        "29892 13173 29892 322 1248 568 6089 304 278 5199 29915 29879 5155 29889 3148 1001 29901"
    ),
    "llava_llama_2": _ids(
        "1 518 25580 29962 3532 14816 29903 6778 13 3492 526 263 8444 4086 322 18551 20255 29889 "
        "887 526 2221 304 2274 278 7604 2793 393 278 1404 8128 29892 322 6985 278 1404 411 263 "
        "12875 310 9595 773 5613 4086 29889 13 29966 829 14816 29903 6778"
    ),
}

# and in the 800 pieces of the tiny preset
_TINY_IDS: dict[Template, tuple[int, ...]] = {
    "llava_v1": _ids(
        "1 332 421 431 261 432 335 312 333 437 438 315 766 414 315 426 340 770 434 770 312 429 "
        "430 296 262 335 783 754 436 766 420 779"
    ),
    "llava_llama_2": _ids(
        "1 748 94 778 785 597 96 748 63 63 769 789 769 65 65 13 716 445 261 340 449 312 448 315 "
        "766 444 445 261 518 296 515 272 539 262 446 759 386 273 756 264 279 259 330 262 511 265 "
        "758 319 477 695 762 388 770 312 314 262 511 265 758 342 261 442 723 331 771 480 361 326 "
        "754 511 310 297 300 270 692 386 449 766 13 63 63 50 769 789 769 65 65"
    ),
}

LLAMA_PIECES = 32000
"""LLaMA's own pieces, in front of what LISA adds."""

TINY_PIECES = 800
"""Those of the tiny preset's tokenizer."""

_MOST_ADDED = 16


def system_text(template: Template) -> str:
    """The words in front of the picture."""
    return _WORDS[template].system


def question_text(expression: str, form: Form, template: Template) -> str:
    """The question behind the picture, up to the token whose state prompts SAM.

    A phrase is lower-cased, as the authors' evaluation does; a sentence is not. The text is
    tokenized by itself, without `<s>`.
    """
    before, behind, lower = question_parts(form, template)
    words = expression.strip()
    return before + (words.lower() if lower else words) + behind


def question_parts(form: Form, template: Template) -> tuple[str, str, bool]:
    """What stands in front of an expression and behind it, and whether it is lower-cased."""
    before, behind = _ASKED[form]
    return before, f"{behind} {_WORDS[template].answer}", form == "phrase"


def system_ids(template: Template, vocab_size: int) -> tuple[int, ...]:
    """The ids of `<s>` and `system_text`.

    vocab_size: rows of the model's token table. Raises CheckpointError for a vocabulary whose
    pieces are not known.
    """
    for pieces, ids in ((LLAMA_PIECES, _LLAMA_IDS), (TINY_PIECES, _TINY_IDS)):
        if pieces <= vocab_size <= pieces + _MOST_ADDED:
            return ids[template]
    raise CheckpointError(
        f"the language model has {vocab_size} tokens, LLaMA has {LLAMA_PIECES} and LISA adds three"
        " or four; give LISA-7B-v1 or LISA-13B-llama2-v1"
    )
