"""SentencePiece vocabularies that the tests train, and texts to cut by them."""

from __future__ import annotations

import io
import json
import random
from pathlib import Path

import sentencepiece

LISA = Path(__file__).parent / "golden" / "lisa"
ADDED = {"<im_patch>": 800, "<im_start>": 801, "<im_end>": 802, "[SEG]": 803}
"""The added tokens of LISA's small vocabulary."""

SEMANTIC = "[semantic]"
WORDS = """the left right man woman dog cat red blue car closest to bottle broccoli café naïve
ångström fine 日本語 한국어 привет ガラス Việt Nam à la second third from of in a"""
"""What the vocabulary is trained on."""

SCRIPTS = """Ω Å é ȩ́ ½ ² ™ … “quoted” 1,000.50 don't ﬁne ＡＢＣ ㈱ ﷺ ｱ ａ 🐶 👩‍👩‍👧 ❤️ 1️⃣ हिन्दी مرحبا
İ ı ß ẞ ～ ก็ \ue000 ⁇ _under_ #tag a/b\\c supercalifragilisticexpialidocious
a\u0301b e\u0323\u0302 Vie\u0323\u0302t \u1112\u1161\u11ab か\u3099 x\u0301 🐶🐱 xyzzyzzy"""
BLANKS = ["", " ", "  ", "\t", "\n", "\r\n", "\u3000", "\xa0", "\u200b", "\u2028", "\ufeff", "▁"]
CONTROLS = ["\x01", "\x00", "\x7f", "\x85", "\xad", "\x1f"]
SYLLABLES = ["ba", "ke", "lo", "mu", "ri", "sta", "tion", "er", "ing", "un", "re", "al"]
SEEN = WORDS.split()
POOL = [*SEEN, *SEEN, *SCRIPTS.split(), *SYLLABLES, *BLANKS, *CONTROLS]

MARKS_APART = ["ª\u0300", "ｶﾞ", "e\u0302\u0323", "\xa0\u200dman"]
"""Texts that `tokenizers` normalises in another way than SentencePiece (reference/unigram.py)."""


def texts(count: int, seed: int = 0) -> list[str]:
    """Made-up expressions: words of several scripts, blanks, controls, very long words."""
    rng = random.Random(seed)

    def words(separator: str, most: int) -> str:
        return separator.join(rng.choice(POOL) for _ in range(rng.randint(1, most)))

    found = [words(" ", 12) for _ in range(count // 2)]
    found += [words("", 9) for _ in range(count // 2)]
    return [*found, "man" * 300, "x" * 1000, "é" * 999, "🐶 " * 400, "the " * 250]


def any_texts(count: int, seed: int = 0) -> list[str]:
    """Any characters in any order."""
    rng = random.Random(seed)
    blocks = [(0x20, 0x7F), (0xA0, 0x250), (0x300, 0x370), (0x370, 0xD7FF), (0x10000, 0x1FFFF)]

    def character() -> str:
        return chr(rng.randint(*rng.choice(blocks)))

    return ["".join(character() for _ in range(rng.randint(1, 25))) for _ in range(count)]


def trained(path: Path, **options: object) -> sentencepiece.SentencePieceProcessor:
    """Trains a vocabulary of the words above into `path`; options are SentencePiece's."""
    rng = random.Random(7)
    made_up = ["".join(rng.choices(SYLLABLES, k=rng.randint(1, 4))) for _ in range(400)]
    lines = [" ".join(rng.choice(SEEN + made_up) for _ in range(8)) for _ in range(3000)]
    usual = {
        "model_type": "unigram",
        "vocab_size": 300,
        "character_coverage": 1.0,
        "hard_vocab_limit": False,
        "num_threads": 1,
        "minloglevel": 2,
    }
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=written, **(usual | options)
    )
    path.write_bytes(written.getvalue())
    return sentencepiece.SentencePieceProcessor(model_file=str(path))


def with_added_tokens(path: Path, ids: dict[str, int]) -> None:
    """Writes added_tokens.json beside a vocabulary."""
    path.with_name("added_tokens.json").write_text(json.dumps(ids), encoding="utf-8")


def as_xlm_r(processor: sentencepiece.SentencePieceProcessor, text: str) -> list[int]:
    """What transformers' slow XLMRobertaTokenizer makes of a text without added tokens."""
    return [0, *(3 if piece == 0 else piece + 1 for piece in processor.encode(text)), 2]
