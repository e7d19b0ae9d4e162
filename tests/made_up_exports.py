"""Bundles of made-up weights, for the fixtures and for tests that need one of another model.

Each process of a run makes its fixtures anew, and an export of a tiny model takes half a minute. So
a bundle of a small preset is kept in `build/exported`, by everything that its bytes depend on: what
was asked for, our code, and the versions of what it stands on. A test that changes the exporter's
code in memory exports by itself.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import shutil
import sys
from importlib import metadata
from pathlib import Path
from types import MappingProxyType
from typing import Any

REPO = Path(__file__).parent.parent

FOLDER = REPO / "build" / "exported"
"""Where the bundles are kept, each in a folder named by its key."""

_KEPT = 120  # entries; a run of all tests makes some 40, of 5 to 30 MB


def export_made_up(
    folder: Path,
    config: Any,
    precision: Any = "fp32",
    sampling: Any = "native",
    family: str = "dfam",
    resizing: Any = "host",
    weights: Any = MappingProxyType({}),
) -> Path:
    """The bundle of a model with the weights of seed 0, in a folder of `folder`."""
    from ris.reference.families import FAMILIES

    out = folder / "ris-bundle"
    asked = config, precision, sampling, family, resizing, dict(weights)
    if config.preset not in FAMILIES[family].small_presets:
        _export(out, *asked)
        return out
    entry = FOLDER / hashlib.sha256(f"{asked!r} {_code()}".encode()).hexdigest()[:32]
    FOLDER.mkdir(parents=True, exist_ok=True)
    with (FOLDER / f".{entry.name}.lock").open("w") as lock:
        # two processes that need the same bundle: the second waits for the first one's
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not entry.exists():
            _forget_old()
            _export(out, *asked)
            partial = entry.with_name(f".{entry.name}.partial")
            shutil.rmtree(partial, ignore_errors=True)
            shutil.copytree(out, partial)
            partial.rename(entry)  # whole, or not there
        else:
            entry.touch()
            shutil.copytree(entry, out)
    return out


def _export(
    out: Path,
    config: Any,
    precision: Any,
    sampling: Any,
    family: str,
    resizing: Any,
    weights: Any,
) -> None:
    from ris.export.bundle_writer import ExportOptions, export_bundle
    from ris.reference.families import FAMILIES
    from ris.runtime.manifest import Source
    from traced import share_traces

    share_traces()
    source = Source(
        kind="deterministic", trained=False, seed=0, checkpoint=None, checkpoint_sha256=None
    )
    export_bundle(
        lambda: FAMILIES[family].made_up_model(config, 0),
        config,
        out,
        family=family,
        source=source,
        options=ExportOptions(
            precision=precision, sampling=sampling, resizing=resizing, weights=weights
        ),
    )


@functools.cache
def _code() -> str:
    """Everything that exports: our files, and all that is installed."""
    told = hashlib.sha256(sys.version.encode())
    for room in ("calibration", "data", "engines", "export", "package", "reference", "runtime"):
        for file in sorted((REPO / room).rglob("*")):
            if file.suffix in (".py", ".json", ".txt"):
                told.update(str(file.relative_to(REPO)).encode() + file.read_bytes())
    installed = sorted(f"{one.name} {one.version}" for one in metadata.distributions())
    told.update(repr(installed).encode())
    return told.hexdigest()


def _forget_old() -> None:
    """Deletes the entries that were not used for longest."""
    entries = [entry for entry in FOLDER.iterdir() if not entry.name.startswith(".")]
    entries.sort(key=lambda entry: entry.stat().st_mtime)
    for entry in entries[:-_KEPT]:
        shutil.rmtree(entry, ignore_errors=True)
