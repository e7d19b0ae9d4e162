"""One file of weights for graphs that read the same ones, as a language model's two stages.

A graph's weights lie in a file of their own beside it. Where a family says that stages share one,
their files are joined: what two of them have, byte for byte, is there once.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

from ris.calibration.numerics.weights import mapped_bytes
from ris.calibration.weights.data import place
from ris.runtime.bundle import hash_files
from ris.runtime.manifest import GraphEntry

_PAGE = 4096
"""Where weights begin: ONNX says so of those that are mapped."""


def share_weights(
    folder: Path, entries: Sequence[GraphEntry], shared: Mapping[str, str]
) -> tuple[GraphEntry, ...]:
    """Joins the weights of graphs that share a file, and gives the entries with the new hashes.

    Nothing is held in memory but a tensor at a time, mapped.

    Args:
        folder: The bundle's folder.
        entries: All stages of the bundle, whose graphs are written.
        shared: By stage the name of the file that it shares, without a folder.
    """
    changed: dict[str, GraphEntry] = {}
    for name in dict.fromkeys(shared.values()):
        group = [entry for entry in entries if shared.get(entry.name) == name]
        if len(group) > 1:
            changed |= _joined(folder, group, name)
    return tuple(changed.get(entry.name, entry) for entry in entries)


def _joined(folder: Path, group: Sequence[GraphEntry], name: str) -> dict[str, GraphEntry]:
    """The entries of graphs whose weights are in one file now, by stage."""
    data = (folder / group[0].file).with_name(name)
    old: set[Path] = set()
    with data.open("xb") as file:
        writer = _Writer(file, name)
        for entry in group:
            path = folder / entry.file
            model = onnx.load(path, load_external_data=False)
            for tensor in model.graph.initializer:
                if uses_external_data(tensor):
                    old.add(path.with_name(ExternalDataInfo(tensor).location))
                    writer.place(tensor, mapped_bytes(tensor, path.parent))
            onnx.save_model(model, path)
    for path in old:
        path.unlink()
    common = hash_files(folder, [data.relative_to(folder).as_posix()])
    return {
        entry.name: dataclasses.replace(entry, sha256=hash_files(folder, [entry.file]) | common)
        for entry in group
    }


class _Writer:
    """Writes tensors one behind the other, each content once."""

    def __init__(self, file: BinaryIO, name: str) -> None:
        self._file, self._name = file, name
        self._places: dict[tuple[int, bytes], int] = {}

    def place(self, tensor: onnx.TensorProto, data: NDArray[np.uint8]) -> None:
        """Writes a tensor's bytes, where they are new, and says in it where they lie."""
        key = data.nbytes, hashlib.sha256(data.data).digest()
        if key not in self._places:
            self._file.write(bytes(-self._file.tell() % _PAGE))
            self._places[key] = self._file.tell()
            self._file.write(data.data)
        place(tensor, self._name, self._places[key], data.nbytes)
