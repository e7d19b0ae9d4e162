"""The kinds of values in a manifest: their types, and what holds for them beyond that."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from ris.engines import TensorSpec
from ris.engines.base import DTYPES
from ris.runtime.from_json import Rule, within

LARGEST_SIDE = 1 << 14
"""The largest side of an image or a map."""

LARGEST_SEED = (1 << 31) - 1
"""The largest seed of random numbers."""

_LARGEST_FLOAT32 = 3.4e38
_SMALLEST_FLOAT32 = 1.2e-38  # a smaller one may be rounded to zero
_LARGEST_AXIS = 1 << 24
_AXES = ("images", "expressions", "tokens")  # whose length differs from call to call


def _is_inside(name: str) -> bool:
    """Whether this is a plain relative name, of a file below the bundle on every system."""
    plain = name.isprintable() and not set(name) & set("\\:")
    return plain and all(
        part not in ("", ".", "..") and len(part.encode()) < 256 for part in name.split("/")
    )


def _is_name(name: str) -> bool:
    return re.fullmatch("[a-z][a-z0-9_]{0,63}", name) is not None


def _is_tensor(spec: TensorSpec) -> bool:
    return spec.dtype in DTYPES and all(
        size in _AXES if isinstance(size, str) else 1 <= size <= _LARGEST_AXIS
        for size in spec.shape
    )


def _are_tensors(specs: Iterable[TensorSpec]) -> bool:
    return all(map(_is_tensor, specs))


def _fits_float32(values: tuple[float, ...], least: float = -_LARGEST_FLOAT32) -> bool:
    return all(least <= value <= _LARGEST_FLOAT32 for value in values)


FileName = Annotated[str, Rule(_is_inside, "the name of a file inside the bundle")]
"""The name of a file relative to the bundle, with "/" between folders."""

Hashes = dict[FileName, str]
"""SHA-256 sums of files by name."""

Side = Annotated[int, within(1, LARGEST_SIDE)]
"""A side of an image or a map."""

Count = Annotated[int, within(0, 1 << 62)]
"""How many there are of something."""

Share = Annotated[float, Rule(lambda share: 0 <= share <= 1, "a number from 0 to 1")]
"""A part of a whole."""

Step = Annotated[float, Rule(lambda step: 0 < step <= 0.1, "a number above 0 and up to 0.1")]
"""A relative error that a step behind a threshold may make."""

MOST_TOKENS = 4096
"""The longest row of token ids."""


def _are_lengths(lengths: tuple[int, ...]) -> bool:
    rising = all(a < b for a, b in itertools.pairwise(lengths))
    return rising and all(2 <= length <= MOST_TOKENS for length in lengths)


Lengths = Annotated[
    tuple[int, ...],
    Rule(_are_lengths, f"an ascending list of whole numbers from 2 to {MOST_TOKENS}"),
]
"""Lengths of rows of token ids."""

Name = Annotated[str, Rule(_is_name, "a name of small letters, digits and _")]
"""The name of a stage or of a value."""


@dataclass(frozen=True)
class Taken(TensorSpec):
    """An input of a stage."""

    value: Name
    """The value that it takes."""


_ARE_TENSORS = Rule(
    _are_tensors,
    "a list of tensors of float32, float16 or int32, whose axes are whole numbers from 1 on,"
    " images, expressions or tokens",
)

Inputs = Annotated[tuple[Taken, ...], _ARE_TENSORS]
"""The inputs of a stage."""

_ARE_NAMED = Rule(
    lambda specs: all(_is_name(spec.name) for spec in specs),
    "a list of tensors with names of small letters, digits and _",
)

Tensors = Annotated[tuple[TensorSpec, ...], _ARE_TENSORS, _ARE_NAMED]
"""The outputs of a stage; their names are those of the values that it gives."""

Means = Annotated[
    tuple[float, ...],
    Rule(lambda means: len(means) == 3 and _fits_float32(means), "a list of three numbers"),
]
"""A mean for each channel."""

Deviations = Annotated[
    tuple[float, ...],
    Rule(
        lambda all_std: len(all_std) == 3 and _fits_float32(all_std, _SMALLEST_FLOAT32),
        "a list of three numbers above zero",
    ),
]
"""A standard deviation for each channel."""

Threshold = Annotated[float, Rule(lambda value: _fits_float32((value,)), "a number of 32 bits")]
"""A threshold of logits or of probabilities."""

Seed = Annotated[int, within(0, LARGEST_SEED)]
"""What random numbers are drawn from."""

DrawnShape = Annotated[
    tuple[int, ...],
    Rule(
        lambda shape: 0 < len(shape) <= 7 and min(shape) > 0 and math.prod(shape) <= _LARGEST_AXIS,
        "a list of one to seven whole numbers from 1 on, whose product is at most 16777216",
    ),
]
"""The shape of random numbers, without the axis of the expressions."""
