"""Expressions to token ids (docs/reference/models/dfam.md 2), with `tokenizers` alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import BundleError, ExpressionError
from ris.runtime.interpolate import Float

if TYPE_CHECKING:
    from tokenizers import Encoding

MAX_CHARACTERS = 1000
"""The longest expression that is accepted.

The model itself reads the first 35 tokens, about 25 words.
"""


@dataclass(frozen=True)
class Tokens:
    """N expressions as the text encoder takes them."""

    ids: NDArray[np.int32]
    """[N, T], padded with 0."""

    mask: Float
    """[N, T], 1 on the tokens and 0 on the padding."""

    notes: tuple[tuple[str, ...], ...]
    """For each expression, what the user should know: that it was cut, or has unknown words."""


class ExpressionTokenizer:
    """WordPiece from a bundle's tokenizer.json.

    The constructor raises BundleError where the file cannot be read.
    """

    def __init__(self, path: Path, max_tokens: int) -> None:
        from tokenizers import Tokenizer  # importing the runtime alone loads no tokenizer

        try:
            self._tokenizer = Tokenizer.from_file(str(path))
        except Exception as error:
            raise BundleError(f"{path} is not a tokenizer that can be read: {error}") from None
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._max_tokens = max_tokens

    def __call__(self, expressions: Sequence[str]) -> Tokens:
        """The ids of some expressions.

        Raises:
            ExpressionError: Where an expression is empty, too long or not text.
        """
        ids = np.zeros((len(expressions), self._max_tokens), np.int32)
        notes = []
        for row, expression in zip(ids, expressions, strict=True):
            encoding = self._encode(expression)
            found = encoding.ids[: self._max_tokens]
            row[: len(found)] = found
            notes.append(self._notes(expression, encoding))
        return Tokens(ids, (ids != 0).astype(np.float32), tuple(notes))

    def _encode(self, expression: str) -> Encoding:
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
        if len(encoding.ids) <= 2:  # [CLS] and [SEP] alone
            raise ExpressionError(f"the expression {expression!r} has no words in it")
        return encoding

    def _notes(self, expression: str, encoding: Encoding) -> tuple[str, ...]:
        notes = []
        if len(encoding.ids) > self._max_tokens:
            last = encoding.offsets[self._max_tokens - 1][1]
            notes.append(
                f"the model reads {self._max_tokens} tokens: it did not see"
                f" {expression[last:].strip()!r}"
            )
        unknown = [
            expression[start:end]
            for token, (start, end) in zip(encoding.tokens, encoding.offsets, strict=True)
            if token == "[UNK]"
        ]
        if unknown:
            notes.append(f"words the model does not know: {', '.join(unknown)}")
        if 0 in encoding.ids[: self._max_tokens]:  # a user may write "[PAD]"
            notes.append("[PAD] is padding to the model: it does not read it")
        return tuple(notes)
