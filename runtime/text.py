"""Expressions to token ids, with `tokenizers` alone."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import BundleError, ExpressionError
from ris.engines.text import is_fault, quoted, reason_of, shown
from ris.runtime.from_json import read_text
from ris.runtime.interpolate import Float
from ris.runtime.manifest_text import Form

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

MAX_CHARACTERS = 1000
"""The longest expression that is accepted.

A model itself reads the first few dozen tokens.
"""


_PROBE = "a \u2603"
"""A word of one letter, and one that vocabularies do not have."""


@dataclass(frozen=True)
class Tokens:
    """N expressions as the text encoder takes them."""

    ids: NDArray[np.int32]
    """[N, T], padded to the same length."""

    mask: Float
    """[N, T], 1 on the tokens and 0 on the padding."""

    notes: tuple[tuple[str, ...], ...]
    """For each expression, what the user should know: that it was cut, or has unknown words."""


def check_expression(expression: str) -> None:
    """Refuses what no model can be asked.

    Raises:
        ExpressionError: Where the expression is empty, too long, or not text in valid Unicode.
    """
    if not isinstance(expression, str):
        raise ExpressionError(f"an expression must be text, got {type(expression).__name__}")
    if not expression.strip():
        raise ExpressionError('the expression is empty; say what to find, such as "left man"')
    if len(expression) > MAX_CHARACTERS:
        raise ExpressionError(
            f"the expression has {len(expression)} characters, at most {MAX_CHARACTERS} are"
            " accepted (a model reads the first few dozen tokens)"
        )
    if shown(expression) != expression:
        raise ExpressionError("the expression is not valid Unicode text")


class ExpressionTokenizer:
    """A bundle's tokenizer.json; rows of ids have `max_tokens`, and end with `pad_id`.

    With `lengths` the rows of a call have the first length that holds the longest of them. A text
    with more tokens is cut; `end_id` is the last id of its row, where that is not None. The
    constructor raises BundleError where the file cannot be read.
    """

    def __init__(
        self,
        path: Path,
        max_tokens: int,
        pad_id: int = 0,
        end_id: int | None = None,
        form_named: Callable[[str | None], Form | None] = lambda name: None,
        lengths: Sequence[int] = (),
    ) -> None:
        """Reads the file.

        Args:
            path: The tokenizer.json.
            max_tokens: The length of a row, or of the longest.
            pad_id: What fills a row.
            end_id: What a row that was cut ends with; None for what stands there.
            form_named: The form of a name (`ris.runtime.manifest_text.Text.form_named`).
            lengths: The lengths that rows may have, ascending up to `max_tokens`; empty: all have
                that.
        """
        from tokenizers import Tokenizer  # importing the runtime alone loads no tokenizer

        self._path, self._form_named = path, form_named
        self._max_tokens, self._pad, self._end = max_tokens, pad_id, end_id
        self._lengths = tuple(lengths) or (max_tokens,)
        text = read_text(path)
        with self._refusing():
            self._tokenizer = Tokenizer.from_str(text)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            self._added = self._tokenizer.num_special_tokens_to_add(False)
            self._unknown = _unknown_id(self._tokenizer.model, text)
            self._own = _own_tokens(self._tokenizer)
        self._ids_of(_PROBE)

    def __call__(self, expressions: Sequence[str], form: str | None = None) -> Tokens:
        """The ids of some expressions.

        Args:
            expressions: What to find.
            form: The name of the form that they stand in; None for the model's own choice.

        Raises:
            ExpressionError: Where there is no such form; where an expression is empty, too long,
                not text, or has a token in it that only the model's own texts have.
        """
        inside = self._form_named(form)
        ids = np.full((len(expressions), self._max_tokens), self._pad, np.int32)
        notes = []
        for row, expression in zip(ids, expressions, strict=True):
            encoding = self._encode(expression, inside)
            found = encoding.ids[: self._max_tokens]
            row[: len(found)] = found
            if len(encoding.ids) > self._max_tokens and self._end is not None:
                row[-1] = self._end
            # a form's own words are known, and its end is never cut off
            notes.append(() if inside else self._notes(expression, encoding))
        ids = self._shortened(ids)
        return Tokens(ids, (ids != self._pad).astype(np.float32), tuple(notes))

    def _shortened(self, ids: NDArray[np.int32]) -> NDArray[np.int32]:
        """The rows without the padding that all of them can do without."""
        used = np.flatnonzero((ids != self._pad).any(0))
        longest = int(used[-1]) + 1 if len(used) else 0
        length = next(one for one in self._lengths if one >= longest)
        return np.ascontiguousarray(ids[:, :length])

    def _encode(self, expression: str, form: Form | None) -> Encoding:
        check_expression(expression)
        encoding = self._ids_of(form.asked(expression) if form else expression)
        if form is not None and len(encoding.ids) > self._max_tokens:
            raise ExpressionError(
                f"the expression {quoted(expression)} is too long: its question has"
                f" {len(encoding.ids)} tokens, and the model reads {self._max_tokens}; say it in"
                " fewer words"
            )
        self._refuse_own_tokens(expression, encoding)
        if len(encoding.ids) <= self._added:  # such as [CLS] and [SEP]
            raise ExpressionError(f"the expression {expression!r} has no words in it")
        return encoding

    def _refuse_own_tokens(self, expression: str, encoding: Encoding) -> None:
        """Refuses an expression with, say, `</s>` in it, which would end it for the model."""
        found = next((token for token in self._own.values() if token in expression), None)
        if found is None:  # characters that the normaliser makes one of
            ids = zip(encoding.ids, encoding.special_tokens_mask, strict=True)
            of_the_text = (i for i, around in ids if not around and i != self._unknown)
            found = next((self._own[i] for i in of_the_text if i in self._own), None)
        if found is not None:
            raise ExpressionError(
                f"the expression {quoted(expression)} has {found!r} in it, a token of the model's"
                " own; leave it out"
            )

    def _ids_of(self, expression: str) -> Encoding:
        with self._refusing():
            encoding = self._tokenizer.encode(expression)
        if max(encoding.ids, default=0) > np.iinfo(np.int32).max:
            raise BundleError(
                f"{self._path} gives ids of more than 32 bits; export the bundle again"
            )
        if not len(encoding.ids) == len(encoding.tokens) == len(encoding.offsets):
            raise BundleError(
                f"{self._path} gives special tokens another number of ids than of names; export the"
                " bundle again"
            )
        return encoding

    @contextmanager
    def _refusing(self) -> Iterator[None]:
        """Whatever the library raises is the file's fault; some files make it panic."""
        try:
            yield
        except BaseException as error:  # a panic is no Exception
            if not is_fault(error):
                raise
            raise BundleError(
                f"{self._path} is not a tokenizer that can be read: {reason_of(error)}; export the"
                " bundle again"
            ) from None

    def _notes(self, expression: str, encoding: Encoding) -> tuple[str, ...]:
        notes = []
        if len(encoding.ids) > self._max_tokens:
            of_the_text = self._max_tokens - (self._end is not None)
            last = encoding.offsets[of_the_text - 1][1]
            rest = expression[last:].strip()
            lost = repr(rest) if rest else "the token behind the text"
            notes.append(f"the model reads {self._max_tokens} tokens: it did not see {lost}")
        unknown = [
            expression[start:end]
            for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
            if token == self._unknown
        ]
        if unknown:
            notes.append(f"words the model does not know: {', '.join(unknown)}")
        read = encoding.ids[: self._max_tokens]
        if self._pad in read:  # a user may write "[PAD]"
            word = encoding.tokens[read.index(self._pad)]
            notes.append(f"{word} is padding to the model: it does not read it")
        return tuple(notes)


def _unknown_id(model: Any, text: str) -> int | None:
    """The id of the token that stands for unknown words; None where the tokenizer has none.

    text: tokenizer.json, for what the library does not tell of a unigram model.
    """
    if type(model).__name__ == "Unigram":
        number: int | None = json.loads(text)["model"].get("unk_id")
        return number
    name = getattr(model, "unk_token", None)
    return None if name is None else model.token_to_id(name)


def _own_tokens(tokenizer: Tokenizer) -> dict[int, str]:
    """Tokens that no expression may have, by id: the special ones of SentencePiece's vocabularies.

    BERT's stay what they are to BERT: it reads a `[MASK]` in an expression.
    """
    if type(tokenizer.model).__name__ not in ("Unigram", "BPE"):
        return {}
    added = tokenizer.get_added_tokens_decoder()
    return {i: token.content for i, token in added.items() if token.special}
