"""What the numbers inside a model do: how large they get, and what FP16 arithmetic makes of them.

Needs the onnx package: it rewrites graphs. Everything here runs on a CPU.
"""

from ris.calibration.numerics.bundles import emulate_bundle, emulated
from ris.calibration.numerics.half import emulate_half
from ris.calibration.numerics.ranges import (
    FP16_MAX,
    MeasuringStopped,
    Ranges,
    TensorRange,
    measure_ranges,
    read_ranges,
)

__all__ = [
    "FP16_MAX",
    "MeasuringStopped",
    "Ranges",
    "TensorRange",
    "emulate_bundle",
    "emulate_half",
    "emulated",
    "measure_ranges",
    "read_ranges",
]
