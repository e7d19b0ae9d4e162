"""What a bundle must have beyond the kinds of its manifest's values, before anything is opened.

Only files whose hashes are in the manifest are opened, its stages fit each other, and its graphs
are what it says of them.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from pathlib import Path

from ris.runtime import wiring
from ris.runtime.manifest import GraphEntry, Manifest
from ris.runtime.onnx_weights import data_files, inputs_and_outputs


def problems(manifest: Manifest) -> list[str]:
    """What is wrong with a manifest whose values are of the right kinds, in sentences."""
    return [*_unhashed(manifest), *_two_hashes(manifest), *wiring.problems(manifest)]


def graph_problems(entry: GraphEntry, path: Path) -> list[str]:
    """What in the ONNX file at `path` is not as the manifest says, in sentences.

    Raises:
        BundleError: Where it is no ONNX file.
    """
    folder = posixpath.dirname(entry.file)
    found = [
        f"{entry.file} keeps weights in {name!r}, which has no sha256 in the manifest"
        for name in data_files(path)
        if posixpath.join(folder, name) not in entry.sha256
    ]
    if inputs_and_outputs(path) != sorted(spec.name for spec in (*entry.inputs, *entry.outputs)):
        found.append(f"{entry.file} has not the inputs and outputs that the manifest says")
    return found


def _unhashed(manifest: Manifest) -> Iterator[str]:
    """A sentence for each field that names a file without a hash."""
    named = {"host.text.tokenizer": manifest.host.text.tokenizer, "golden": manifest.golden}
    if (table := manifest.host.categories) is not None:
        named["host.categories.names"] = table.names
        named["host.categories.features"] = table.features
    places = {field: (name, manifest.files) for field, name in named.items()}
    for i, entry in enumerate(manifest.stages):
        places[f"stages.{i}.file"] = (entry.file, entry.sha256)
    for field, (name, hashes) in places.items():
        if name not in hashes:
            yield f"{field} is {name!r}, which has no sha256 in the manifest"


def _two_hashes(manifest: Manifest) -> Iterator[str]:
    """A sentence for each file whose hash in one place is another one elsewhere."""
    first = dict(manifest.files)
    for entry in manifest.stages:
        for name, sha256 in sorted(entry.sha256.items()):
            if first.setdefault(name, sha256) != sha256:
                yield f"{name!r} has two different sha256 in the manifest"
