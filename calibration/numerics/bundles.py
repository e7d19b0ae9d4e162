"""A bundle that rounds as FP16 hardware does.

Everything that takes a bundle can then say what FP16 costs.
"""

from __future__ import annotations

import contextlib
import dataclasses
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ris import __version__
from ris.calibration.numerics.half import emulate_half
from ris.calibration.numerics.ranges import copy_data
from ris.engines.errors import BundleError
from ris.runtime import Bundle, open_bundle
from ris.runtime.bundle import EMULATES, MANIFEST, hash_files
from ris.runtime.bundle_folder import building


def emulate_bundle(bundle: Bundle, out: Path) -> Bundle:
    """Writes the FP16 bundle to the new folder `out`, its graphs rewritten by `emulate_half`.

    Raises BundleError where `out` exists or `bundle` is not FP16.
    """
    _check(bundle, out)
    with building(out, overwrite=False) as folder:
        _write(bundle, folder)
    return open_bundle(out, verify=False)


def _check(bundle: Bundle, out: Path) -> None:
    manifest = bundle.manifest
    if manifest.precision != "fp16":
        raise BundleError(
            f"{bundle.path} is {manifest.precision}; only FP16 has to be emulated on a CPU"
        )
    if EMULATES in manifest.writer:
        raise BundleError(f"{bundle.path} is an emulated bundle already")
    if out.exists():
        raise BundleError(f"{out} exists; choose another folder")


def _write(bundle: Bundle, folder: Path) -> None:
    """Writes the emulated bundle's files to the empty `folder`."""
    manifest = bundle.manifest
    for name in bundle.hashes():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
    for name in manifest.files:
        shutil.copyfile(bundle.file(name), folder / name)

    entries = []
    for entry in manifest.stages:
        source, target = bundle.path / entry.file, folder / entry.file
        copy_data(source, target.parent)
        if entry.precision == "fp16":
            emulate_half(source, target)
        else:
            shutil.copyfile(source, target)
        hashes = hash_files(folder, list(entry.sha256))
        # they are FP32 graphs now: marked "fp16", an engine could leave their roundings out
        entries.append(dataclasses.replace(entry, sha256=hashes, precision="fp32"))

    writer = {**manifest.writer, EMULATES: __version__}
    changed = dataclasses.replace(manifest.with_graphs(entries), writer=writer)
    (folder / MANIFEST).write_text(changed.to_json(), encoding="utf-8")


@contextlib.contextmanager
def emulated(bundle: Bundle) -> Iterator[Bundle]:
    """`emulate_bundle` in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="ris-emulated-") as folder:
        yield emulate_bundle(bundle, Path(folder) / "bundle")
