"""What a manifest says about expressions: how they become token ids, and what they stand in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated

from ris.engines.errors import ExpressionError
from ris.engines.text import quoted
from ris.runtime.from_json import within
from ris.runtime.manifest_kinds import MOST_TOKENS, FileName, Lengths, Name


@dataclass(frozen=True)
class Form:
    """A text that an expression stands in when a model is asked.

    White space around the expression is left out.
    """

    before: str
    """What stands in front of the expression."""

    behind: str
    """What stands behind it."""

    lower: bool
    """Whether the expression is lower-cased."""

    def asked(self, expression: str) -> str:
        """The text of an expression."""
        words = expression.strip()
        return self.before + (words.lower() if self.lower else words) + self.behind


@dataclass(frozen=True)
class Text:
    """How expressions become token ids."""

    tokenizer: FileName
    """The tokenizer's file."""

    max_tokens: Annotated[int, within(2, MOST_TOKENS)]
    """The length T of a row of ids; with `lengths` the longest.

    What is longer is cut. An expression in a form is refused, as the form's end would be cut off.
    """

    pad_id: Annotated[int, within(0, (1 << 31) - 1)]
    """The id that fills a row."""

    ids: Name
    """The value that the ids become, int32 [N, T]."""

    mask: Name | None
    """The value that is 1 on tokens and 0 on padding, float32 [N, T]; None: nothing takes it."""

    end_id: Annotated[int, within(0, (1 << 31) - 1)] | None = None
    """The id that a cut row ends with; None: it ends with what stands there. May be absent."""

    forms: dict[Name, Form] = field(default_factory=dict)
    """The forms by name; empty: an expression is asked as it is. May be absent."""

    form: Name | None = None
    """The form where the user names none; None where there are no forms. May be absent."""

    lengths: Lengths = ()
    """The lengths that the rows of a call may have, ascending up to `max_tokens`. May be absent.

    All rows of a call have the first one that holds the longest of them, and the graphs have the
    axis `tokens` for it. Empty: all rows have `max_tokens`.
    """

    def form_named(self, name: str | None) -> Form | None:
        """The form of a name; None where expressions are asked as they are.

        name: None for the model's own choice. Raises ExpressionError for one that is not there.
        """
        if name is None:
            return None if self.form is None else self.forms[self.form]
        if name in self.forms:
            return self.forms[name]
        if not self.forms:
            raise ExpressionError(
                f"the model asks every expression as it is; leave the form {quoted(name)} out"
            )
        raise ExpressionError(
            f"there is no form {quoted(name)}; the model has {' and '.join(self.forms)}"
        )
