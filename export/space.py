"""Disk that an export needs while it works."""

from __future__ import annotations

import shutil
from collections.abc import Collection
from pathlib import Path

from ris.calibration.weights.groups import BITS, GROUP, WeightFormat
from ris.engines.errors import BundleError
from ris.runtime.bundle_folder import behind_links

DIRECT_FROM = 8_000_000_000
"""The bytes of FP32 weights from which on a graph's matrices are rounded as they are written.

A graph of less is written and checked in FP32 first.
"""


def disk_needed(parameters: int, large: int = 0, formats: Collection[WeightFormat] = ()) -> int:
    """The bytes that an export of a model needs at most.

    Args:
        parameters: The model's parameters.
        large: Those of large matrices that the model does not hold.
        formats: What each graph with narrow weights stores them in.
    """
    narrow = large if formats and 4 * large >= DIRECT_FROM else 0
    each = sum(BITS[format] / 8 + 4 / GROUP for format in formats)
    # four bytes a parameter in FP32, and a fifth for everything else
    return round(1.2 * (4 * (parameters - narrow) + each * narrow))


def kept_folder(out: Path) -> Path:
    """Where an export into `out` keeps what it writes: beside the folder that `out` leads to."""
    folder = behind_links(out)
    return folder.with_name(f".{folder.name}.export")


def require_disk(out: Path, needed: int) -> None:
    """Raises BundleError where the disk has less than `needed` bytes left.

    It is the disk of `out`, a folder that need not exist yet. What a stopped export into it has
    left there counts as free: this one goes on with it, or begins it anew.
    """
    out = behind_links(out)
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    left = kept_folder(out).glob("*.onnx.data")
    free = shutil.disk_usage(folder).free + sum(file.stat().st_size for file in left)
    if free < needed:
        raise BundleError(
            f"{out}: the disk is too full: the export needs about {needed / 1e6:.0f} MB, "
            f"{free / 1e6:.0f} MB are free"
        )
