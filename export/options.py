"""How a model becomes a bundle: the options of an export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from ris.calibration.numerics import Ranges
from ris.calibration.weights.groups import WeightFormat
from ris.export.rounded_file import RoundedFile
from ris.reference.layers.deformable import Sampling
from ris.runtime.manifest import Precision

Resizing = Literal["host", "graph"]
"""What resizes maps between two graphs: the host, or the graph that takes them."""


@dataclass(frozen=True)
class ExportOptions:
    """How a model becomes a bundle."""

    precision: Precision = "fp32"
    """What the graphs compute in."""

    fp32: tuple[str, ...] = ()
    """The graphs that stay FP32 beside those that the family keeps so."""

    sampling: Sampling = "native"
    """How deformable attention samples bilinearly: with GridSample nodes ("native") or "gather"."""

    resizing: Resizing = "host"
    """What resizes maps between two graphs."""

    vocabulary: Path | None = None
    """A vocab.txt or tokenizer.json; None for the preset's own."""

    overwrite: bool = False
    """Replace a bundle that is there."""

    ranges: Ranges | None = None
    """What was measured on an FP32 bundle of the same model; None where nothing was.

    An FP16 graph keeps in FP32 what these ranges show to be too large.
    """

    weights: Mapping[str, WeightFormat] = field(default_factory=dict)
    """What matrices are stored in where it is not the graphs' own precision, by stage.

    Under "" stands that of the stages that the family names (`StageDesign.narrow_weights`).
    """

    rounded: RoundedFile | None = None
    """Their levels, as `ris-calibrate weights` found them; None: the nearest."""


DEFAULTS = ExportOptions()
"""FP32, and everything else as it is where nobody says otherwise."""
