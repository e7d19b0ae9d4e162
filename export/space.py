"""Disk that an export needs while it works."""

from __future__ import annotations

import shutil
from pathlib import Path

from ris.engines.errors import BundleError


def disk_needed(parameters: int) -> int:
    """The bytes that an export of a model with this many parameters needs at most."""
    # four bytes a parameter in FP32, and a fifth for everything else
    return round(1.2 * 4 * parameters)


def require_disk(out: Path, needed: int) -> None:
    """Raises BundleError where the disk has less than `needed` bytes left.

    It is the disk of `out`, a folder that need not exist yet.
    """
    folder = out.absolute().parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise BundleError(
            f"{out}: the disk is too full: the export needs about {needed / 1e6:.0f} MB, "
            f"{free / 1e6:.0f} MB are free"
        )
