"""The bundle's tokenizer.json: BERT's uncased WordPiece, from a vocabulary."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from ris.engines.errors import CheckpointError
from ris.reference.config import ModelConfig

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def read_vocabulary(path: Path | None, config: ModelConfig) -> list[str]:
    """A vocab.txt, one token a line; without a path the one that belongs to the preset.

    Full-size BERT gets bert-base-uncased's, a narrow one a few words and all ASCII letters.
    """
    if path is None:
        name = "bert-base-uncased-vocab.txt" if config.bert.vocab_size == 30522 else "tiny-vocab.txt"
        text = resources.files("ris.export").joinpath("data", name).read_text(encoding="utf-8")
    else:
        text = path.read_text(encoding="utf-8")
    tokens = text.removesuffix("\n").split("\n")
    if len(tokens) > config.bert.vocab_size:
        raise CheckpointError(
            f"the vocabulary has {len(tokens)} tokens, the model's BERT has {config.bert.vocab_size} embeddings"
        )
    missing = [token for token in SPECIAL if token not in tokens]
    if missing or tokens[0] != "[PAD]":
        raise CheckpointError(f"the vocabulary must begin with [PAD] and contain {', '.join(SPECIAL)}")
    return tokens


def build_tokenizer(vocabulary: list[str]) -> Tokenizer:
    """BertTokenizer's behaviour with the `tokenizers` library: same normalisation, same splits, same ids."""
    ids = {token: i for i, token in enumerate(vocabulary)}
    tokenizer = Tokenizer(WordPiece(ids, unk_token="[UNK]", max_input_chars_per_word=100))
    tokenizer.normalizer = BertNormalizer(clean_text=True, handle_chinese_chars=True, lowercase=True)
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", ids["[CLS]"]), ("[SEP]", ids["[SEP]"])]
    )
    return tokenizer
