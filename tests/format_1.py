"""The built-in bundle as it was in format 1: tests/golden/format-1, and what is still the same.

A file that the built-in bundle has as well is a link to it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from conftest import GOLDEN, REPO

OWN = GOLDEN / "format-1"
"""The manifest, and the files that differ from the built-in bundle's."""

BUILT_IN = REPO / "runtime" / "demo-bundle"


def manifest() -> Any:
    """What its manifest.json says."""
    return json.loads((OWN / "manifest.json").read_text(encoding="utf-8"))


def files() -> dict[str, Path]:
    """Where each file is, by its name in the bundle; the manifest too."""
    said = manifest()
    hashes = [said["files"], *(graph["sha256"] for graph in said["graphs"].values())]
    names = ["manifest.json", *(name for each in hashes for name in each)]
    return {name: next(p for p in (OWN / name, BUILT_IN / name) if p.exists()) for name in names}


def lay(folder: Path) -> Path:
    """The bundle in a new folder."""
    for name, source in files().items():
        place = folder / name
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(source)
    return folder
