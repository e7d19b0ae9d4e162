"""What a manifest says of matrices that are stored in fewer bits than products compute in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from ris.runtime.from_json import Rule, within
from ris.runtime.manifest_kinds import Count

RelativeError = Annotated[
    float, Rule(lambda error: 0 <= error < float("inf"), "a finite number from 0 on")
]
"""A root mean square of differences, divided by that of what they are from."""

Rounding = Literal["nearest", "gptq"]
"""How levels are chosen."""


@dataclass(frozen=True)
class StoredWeights:
    """Matrices of a graph that DequantizeLinear nodes widen before their products.

    The products are in the graph's own precision. Scales are symmetric.
    """

    format: Literal["int8", "int4"]
    """What the matrices are stored in."""

    group: Annotated[int, within(16, 4096)]
    """How many weights share a scale, along the axis that is summed over; the most of a matrix."""

    matrices: Count
    """How many matrices are stored so."""

    elements: Count
    """How many weights they have together."""

    rounding: Rounding
    """How levels were chosen: each weight at the nearest, or as `ris-calibrate weights` found them,
    for the products; there too single matrices may be at the nearest."""

    error: RelativeError
    """The root mean square of what rounding changed in the matrices, divided by theirs."""

    layers: dict[str, RelativeError] = field(default_factory=dict)
    """The same of the matrices of each layer, by its path in the model. May be absent."""
