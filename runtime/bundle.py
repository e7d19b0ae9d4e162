"""The bundle: a folder with a manifest, graphs and what goes with them."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from ris.engines import Graph
from ris.engines.errors import BundleError
from ris.runtime.bundle_checks import graph_problems, problems
from ris.runtime.from_json import read_json
from ris.runtime.hub.address import address_of, is_address, parse
from ris.runtime.hub.download import Report, silent
from ris.runtime.manifest import FORMAT_VERSION, Manifest, joined, manifest_from_dict
from ris.runtime.wiring import Wiring

MANIFEST = "manifest.json"
"""The manifest's file name."""

BUILT_IN = Path(__file__).resolve().parent / "demo-bundle"
"""The folder of the demo's bundle (FP16), which is part of the package.

The commands use it where no other bundle is given or found.
"""

ENGINES = "engines"
"""The folder for what engines compile; the manifest does not list its files."""

EMULATES = "ris-calibrate emulate"
"""A key of the manifest's `writer`: the bundle's graphs round as FP16 hardware does."""


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest."""

    path: Path
    """The folder."""

    manifest: Manifest
    """What manifest.json says."""

    @cached_property
    def wiring(self) -> Wiring:
        """What depends on what."""
        return Wiring(self.manifest)

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, in the order in which they run."""
        return tuple(self.manifest.graphs)

    def graph(self, stage: str) -> Graph:
        """The graph of a stage, as an engine takes it."""
        entry = self.manifest.graphs[stage]
        # these folders are shared, and may be read-only
        shared = self.path.resolve() == BUILT_IN or address_of(self.path.absolute()) is not None
        return Graph(
            stage,
            self.path / entry.file,
            entry.inputs,
            entry.outputs,
            sha256=entry.sha256,
            precision=entry.precision,
            fp32_islands=frozenset(entry.fp32_islands),
            sampling=entry.sampling,
            cache=None if shared else self.path / ENGINES,
            bf16=entry.bfloat16,
            bf16_from=entry.bfloat16_from,
            int8=entry.int8 is not None,
            weights=entry.weights.format if entry.weights else None,
            lengths=self.manifest.host.text.lengths,
        )

    def file(self, name: str) -> Path:
        """The path of a file that the manifest names."""
        return self.path / name

    def hashes(self) -> dict[str, str]:
        """The expected sha256 of every file but the manifest, by its name in the bundle."""
        expected = dict(self.manifest.files)
        for entry in self.manifest.graphs.values():
            expected.update(entry.sha256)
        return expected


def open_bundle(path: str | Path, *, verify: bool = True, graphs: bool = True) -> Bundle:
    """Reads a bundle's manifest and checks its files.

    Args:
        path: The folder that `ris-export` wrote, or an address on a Hub
            (`hf://org/name@revision`), from which it is downloaded first.
        verify: Compare the sha256 of every file with the manifest; False only asks whether the
            files are there.
        graphs: False where the graphs are elsewhere, and only what is around them is here.

    Raises:
        BundleError: Where the bundle is missing, damaged or too new, or would have files opened
            that have no hash in the manifest. It names all that is wrong at once.
        HubError: Where it cannot be downloaded.
    """
    path = located(path)
    bundle = Bundle(path, read_manifest(path))
    if found := _damage(bundle, verify, graphs):
        raise BundleError(f"{path} is damaged: {joined(found)}. {_way_out(path)}")
    return bundle


def located(place: str | Path, report: Report = silent) -> Path:
    """The folder of a bundle; of an address on a Hub, the one that it was downloaded to.

    report: called while a file is downloaded. Raises HubError where it cannot be.
    """
    if not is_address(place):
        return Path(place)
    from ris.runtime.hub.bundles import fetch_bundle

    return fetch_bundle(parse(place), report)


def _way_out(path: Path) -> str:
    """What to do about a damaged bundle."""
    if (address := address_of(path)) is None:
        return "Export the bundle again"
    return f"Fetch it again: ris-models fetch {address}"


def read_manifest(path: Path) -> Manifest:
    """The manifest of the bundle in a folder, whose files are not looked at.

    Raises BundleError where there is none, or where it is damaged or too new.
    """
    data = _read_json(path)
    version = data.get("format_version") if isinstance(data, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise BundleError(
            f"{path} has format version {version}, this ris-runtime reads up to {FORMAT_VERSION}; "
            "upgrade ris-runtime, or export the bundle again with this version"
        )
    try:
        manifest = manifest_from_dict(data)
        if found := problems(manifest):
            raise BundleError(joined(found))
    except BundleError as error:
        raise BundleError(
            f"{path / MANIFEST} is damaged: {error}; export the bundle again"
        ) from None
    return manifest


def _read_json(path: Path) -> Any:
    """The manifest's data; says what else `path` is where it is no bundle."""
    if not path.exists():
        raise BundleError(f"{path}: no such bundle; make one with ris-export")
    if not path.is_dir():
        raise BundleError(f"{path} is a file; a bundle is the folder that ris-export writes")
    try:
        return read_json(path / MANIFEST)
    except FileNotFoundError:
        raise BundleError(
            f"{path} has no {MANIFEST}, so it is not a bundle; make one with ris-export"
        ) from None


def _damage(bundle: Bundle, verify: bool, graphs: bool) -> list[str]:
    """What is wrong with the files, in the order of their names, and with what they would open."""

    def check(item: tuple[str, str]) -> str | None:
        name, sha256 = item
        file = bundle.path / name
        try:
            if not file.is_file():
                return f"{name} is missing"
            if verify and sha256_of(file) != sha256:
                return f"{name} is not the file that was exported (sha256 differs)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror or error})"
        return None

    hashes = bundle.hashes() if graphs else bundle.manifest.files
    with ThreadPoolExecutor(4) as pool:  # hashing releases the GIL
        found = [problem for problem in pool.map(check, sorted(hashes.items())) if problem]
    if found or not graphs:
        return found
    return [
        problem
        for entry in bundle.manifest.graphs.values()
        for problem in graph_problems(entry, bundle.path / entry.file)
    ]


def sha256_of(path: Path) -> str:
    """The sha256 of a file, which is read piece by piece."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hash_files(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """The sha256 of files below a folder, by name."""
    return {name: sha256_of(folder / name) for name in names}
