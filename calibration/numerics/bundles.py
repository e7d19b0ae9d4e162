"""A bundle that rounds as FP16 hardware does, so that everything that takes a bundle can say what
FP16 costs.
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
    """Writes to the new folder `out` what `emulate_half` makes of the FP16 bundle's graphs; the
    rest is the same.

    Raises BundleError where `out` exists or `bundle` is not FP16.
    """
    manifest = bundle.manifest
    if manifest.precision != "fp16":
        raise BundleError(
            f"{bundle.path} is {manifest.precision}; only FP16 has to be emulated on a CPU"
        )
    if EMULATES in manifest.writer:
        raise BundleError(f"{bundle.path} is an emulated bundle already")
    if out.exists():
        raise BundleError(f"{out} exists; choose another folder")
    with building(out, overwrite=False) as folder:
        (folder / "graphs").mkdir()
        for name in manifest.files:
            shutil.copyfile(bundle.file(name), folder / name)
        graphs = dict(manifest.graphs)
        for stage, entry in graphs.items():
            source, target = bundle.path / entry.file, folder / entry.file
            copy_data(source, target.parent)
            if entry.precision == "fp16":
                emulate_half(source, target)
            else:
                shutil.copyfile(source, target)
            hashes = hash_files(folder, list(entry.sha256))
            # FP32 graphs now, whose roundings are no FP16 arithmetic that an engine may do as it
            # likes
            graphs[stage] = dataclasses.replace(entry, sha256=hashes, precision="fp32")
        writer = {**manifest.writer, EMULATES: __version__}
        changed = dataclasses.replace(manifest, graphs=graphs, writer=writer)
        (folder / MANIFEST).write_text(changed.to_json(), encoding="utf-8")
    return open_bundle(out, verify=False)


@contextlib.contextmanager
def emulated(bundle: Bundle) -> Iterator[Bundle]:
    """`emulate_bundle` in a temporary folder."""
    with tempfile.TemporaryDirectory(prefix="ris-emulated-") as folder:
        yield emulate_bundle(bundle, Path(folder) / "bundle")
