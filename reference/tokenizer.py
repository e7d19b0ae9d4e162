"""The bundle's tokenizer.json: BERT's WordPiece, from a vocabulary or a tokenizer of the user's.

The ids are those of `transformers`' BertTokenizer, which since version 5 is the `tokenizers`
library underneath, as BertTokenizerFast was before. The old pure-Python class differs in a few
exotic places, none of which is English: a capital sigma at the end of a word, unassigned code
points, and characters that Unicode has added since about its version 8 or given another kind since.
"""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any, Protocol

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from ris.engines.errors import CheckpointError
from ris.engines.text import quoted, reason_of
from ris.reference.layers.encoder_sizes import BertSpec

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
"""The special tokens that every vocabulary must have."""

_FILES = ("tokenizer.json", "vocab.txt")
"""What a folder may hold; the first is taken where there are both, as `transformers` does."""


class HasBert(Protocol):
    """A configuration of a model that reads its text with BERT."""

    @property
    def preset(self) -> str:
        """The preset's name; the demo has a vocabulary of its own."""

    @property
    def bert(self) -> BertSpec:
        """BERT's sizes."""


def read_vocabulary(path: Path | None, config: HasBert) -> list[str]:
    """A vocab.txt, one token a line; without a path the one that belongs to the configuration.

    Raises CheckpointError where the file cannot be read, has more tokens than the model's BERT has
    embeddings, or lacks a special token.
    """
    text = _built_in_vocabulary(config) if path is None else _read_text(path)
    tokens = text.removesuffix("\n").split("\n")
    if len(tokens) > config.bert.vocab_size:
        raise CheckpointError(
            f"the vocabulary has {len(tokens)} tokens, the model's BERT has"
            f" {config.bert.vocab_size} embeddings"
        )
    missing = [token for token in SPECIAL if token not in tokens]
    if missing or tokens[0] != "[PAD]":
        raise CheckpointError(
            f"the vocabulary must begin with [PAD] and contain {', '.join(SPECIAL)}"
        )
    return tokens


def _built_in_vocabulary(config: HasBert) -> str:
    """Full-size BERT's is bert-base-uncased's; the demo's has the words of its scenes.

    Any other word is unknown to the demo. Another narrow BERT gets a few words and all ASCII
    letters.
    """
    if config.preset == "demo":
        name = "demo-vocab.txt"
    elif config.bert.vocab_size == 30522:
        name = "bert-base-uncased-vocab.txt"
    else:
        name = "tiny-vocab.txt"
    return resources.files("ris.reference").joinpath("data", name).read_text(encoding="utf-8")


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{path} is not a vocabulary that can be read: {reason_of(error)}"
        ) from None


def build_tokenizer(
    vocabulary: list[str],
    *,
    lowercase: bool = True,
    strip_accents: bool | None = None,
    handle_chinese_chars: bool = True,
) -> Tokenizer:
    """BertTokenizer's behaviour with the `tokenizers` library: same splits, same ids.

    Args:
        vocabulary: The tokens in the order of their ids, the special ones among them.
        lowercase: Whether the text is lower-cased.
        strip_accents: Whether accents are removed; None does so where `lowercase` is on, as
            BertTokenizer does.
        handle_chinese_chars: Whether each Chinese character is a word of its own.
    """
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(True, handle_chinese_chars, strip_accents, lowercase)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return tokenizer


def tokenizer_from(path: Path | None, config: HasBert) -> Tokenizer:
    """A tokenizer for the bundle, without truncation and padding, from what a user has.

    Args:
        path: A vocab.txt, a Hugging Face tokenizer.json, or a folder with either (tokenizer.json is
            taken where there are both). A tokenizer_config.json beside it may say `do_lower_case`,
            `strip_accents` and `tokenize_chinese_chars`. None takes the built-in vocabulary of the
            configuration.
        config: The model that it is for.

    Raises:
        CheckpointError: Where the file cannot be read, or is no BERT tokenizer that fits the
            model's embedding table.
    """
    if path is None:
        return build_tokenizer(read_vocabulary(None, config))
    file = _tokenizer_file(path)
    options = _normalizer_options(file.with_name("tokenizer_config.json"))
    if file.suffix.lower() != ".json":
        return build_tokenizer(read_vocabulary(file, config), **options)

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises plain Exception
        raise CheckpointError(
            f"{file} is not a tokenizer that can be read: {reason_of(error)}"
        ) from None
    tokenizer.no_truncation()
    tokenizer.no_padding()
    if options:
        tokenizer.normalizer = _changed_normalizer(tokenizer, options, file)

    if problems := _problems(tokenizer, config):
        raise CheckpointError(f"{file} does not fit the model: {'; '.join(problems)}")
    return tokenizer


def find_tokenizer_file(folder: Path) -> Path | None:
    """The tokenizer.json or vocab.txt of a folder; None where it has neither."""
    return next((folder / name for name in _FILES if (folder / name).is_file()), None)


def _tokenizer_file(path: Path) -> Path:
    if path.is_dir():
        found = find_tokenizer_file(path)
        if found is None:
            raise CheckpointError(f"{path} has neither tokenizer.json nor vocab.txt")
        return found
    if not path.is_file():
        raise CheckpointError(
            f"{path}: no such tokenizer; give a vocab.txt, a tokenizer.json or a folder with one"
        )
    return path


def _normalizer_options(path: Path) -> dict[str, Any]:
    """What tokenizer_config.json says about the normaliser, under `build_tokenizer`'s names."""
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read: {reason_of(error)}") from None

    names = {
        "do_lower_case": "lowercase",
        "strip_accents": "strip_accents",
        "tokenize_chinese_chars": "handle_chinese_chars",
    }
    options = {}
    for theirs, ours in names.items():
        value = data.get(theirs) if isinstance(data, dict) else None
        if isinstance(value, bool):
            options[ours] = value
        elif value is not None:
            raise CheckpointError(
                f"{path}: {theirs} should be true or false, found {quoted(value)}"
            )
    return options


def _changed_normalizer(
    tokenizer: Tokenizer, options: dict[str, Any], file: Path
) -> BertNormalizer:
    """tokenizer.json's own normaliser under tokenizer_config.json's options.

    The options win, as in `transformers`.
    """
    normalizer = tokenizer.normalizer
    if not isinstance(normalizer, BertNormalizer):
        raise CheckpointError(
            f"{file} has no BERT normaliser; its tokenizer_config.json cannot be applied"
        )
    for name, value in options.items():
        setattr(normalizer, name, value)
    return normalizer


def _problems(tokenizer: Tokenizer, config: HasBert) -> list[str]:
    """Why a tokenizer does not fit the model, in words; nothing where it does."""
    if not isinstance(tokenizer.model, WordPiece):
        return [f"it is {type(tokenizer.model).__name__}, BERT's is WordPiece"]

    ids = tokenizer.get_vocab(with_added_tokens=True)
    problems = []
    missing = [token for token in SPECIAL if token not in ids]
    if missing:
        problems.append(f"it has no {', '.join(missing)}")
    elif ids["[PAD]"] != 0:
        problems.append(f"[PAD] has id {ids['[PAD]']}, it should be 0")
    last = max(ids.values(), default=0)
    if last >= config.bert.vocab_size:
        problems.append(
            f"it has ids up to {last}, the model's BERT has {config.bert.vocab_size} embeddings"
        )
    if not missing:
        found = tokenizer.encode("left man").ids
        if len(found) < 3 or (found[0], found[-1]) != (ids["[CLS]"], ids["[SEP]"]):
            problems.append("it does not put [CLS] before and [SEP] behind the text")
    return problems
