"""The one family of errors.

A message names what was found, what was expected, and the way out, in one sentence.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

Skipped = Callable[[str], None]
"""Takes a sentence for each item that a reader leaves out; the reader goes on."""


class RisError(Exception):
    """Anything this project refuses to do."""

    exit_code = 2
    """What a command ends with: 2 for the user's mistake, 1 for ours."""


class BundleError(RisError):
    """A bundle that is missing, damaged, too new, or would be overwritten."""


class EngineError(RisError):
    """An engine that is not installed, cannot run here, or was given inputs that do not fit."""


class PlanError(EngineError):
    """A compiled graph that does not load as it is, and may when it is compiled again."""


class ImageError(RisError):
    """An image that cannot be read or is out of limits."""


class ExpressionError(RisError):
    """An expression or category that the model cannot be asked."""


class CheckpointError(RisError):
    """Weights that are missing, damaged or of another model."""


class HubError(RisError):
    """A download or an upload that did not work, or a name that no published model has."""


class ParityError(RisError):
    """An exported graph that does not agree with its reference; never a warning."""

    exit_code = 1


def refuse(sentence: str) -> NoReturn:
    """The `Skipped` of a caller that wants nothing left out."""
    raise RisError(sentence)
