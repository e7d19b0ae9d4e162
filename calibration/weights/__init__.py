"""Precision by weights alone: matrices in 8 or 4 bits, and products in floating point."""

from ris.calibration.weights.groups import (
    FORMATS,
    GROUP,
    Rounded,
    WeightFormat,
    group_of,
    relative_error,
    round_in_groups,
)

__all__ = [
    "FORMATS",
    "GROUP",
    "Rounded",
    "WeightFormat",
    "group_of",
    "relative_error",
    "round_in_groups",
]
