"""Expressions to token ids with the `tokenizers` library alone (docs/reference/models/dfam.md
2).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import BundleError, ExpressionError
from ris.runtime.interpolate import Float

MAX_CHARACTERS = 1000
"""The longest expression that is accepted; the model itself reads the first 35 tokens, about 25
words.
"""


@dataclass(frozen=True)
class Tokens:
    """A batch of N expressions: ids int32 [N, T] padded with 0; mask float32 [N, T], 1 on real
    tokens.

    notes: for each expression what the user should know (cut short, unknown words), usually
    nothing.
    """

    ids: NDArray[np.int32]
    mask: Float
    notes: tuple[tuple[str, ...], ...]


class ExpressionTokenizer:
    """WordPiece from a bundle's tokenizer.json."""

    def __init__(self, path: Path, max_tokens: int) -> None:
        from tokenizers import Tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise BundleError(f"{path} is not a tokenizer that can be read: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._max_tokens = max_tokens

    def __call__(self, expressions: Sequence[str]) -> Tokens:
        """Raises ExpressionError for an expression that is empty, too long or not text."""
        ids = np.zeros((len(expressions), self._max_tokens), np.int32)
        notes = []
        for row, expression in zip(ids, expressions, strict=True):
            found, note = self._encode(expression)
            row[: len(found)] = found
            notes.append(note)
        return Tokens(ids, (ids != 0).astype(np.float32), tuple(notes))

    def _encode(self, expression: str) -> tuple[list[int], tuple[str, ...]]:
        if not isinstance(expression, str):
            raise ExpressionError(f"an expression must be text, got {type(expression).__name__}")
        if not expression.strip():
            raise ExpressionError('the expression is empty; say what to find, such as "left man"')
        if len(expression) > MAX_CHARACTERS:
            raise ExpressionError(
                f"the expression has {len(expression)} characters, at most {MAX_CHARACTERS} are"
                f" accepted (the model reads the first {self._max_tokens} tokens)"
            )
        try:
            encoding = self._tokenizer.encode(expression)
        except (TypeError, UnicodeError):
            raise ExpressionError("the expression is not valid Unicode text") from None
        if len(encoding.ids) <= 2:
            raise ExpressionError(f"the expression {expression!r} has no words in it")
        notes = []
        if len(encoding.ids) > self._max_tokens:
            last = encoding.offsets[self._max_tokens - 1][1]
            notes.append(
                f"the model reads {self._max_tokens} tokens: it did not see"
                f" {expression[last:].strip()!r}"
            )
        unknown = [
            expression[a:b]
            for token, (a, b) in zip(encoding.tokens, encoding.offsets, strict=True)
            if token == "[UNK]"
        ]
        if unknown:
            notes.append(f"words the model does not know: {', '.join(unknown)}")
        ids = encoding.ids[: self._max_tokens]
        if 0 in ids:
            notes.append("[PAD] is padding to the model: it does not read it")
        return ids, tuple(notes)
