"""A traced graph whose weights are still where they came from, and the data file made of them.

The graph's file says where each weight will lie; the weights follow one by one, as they are or
rounded. So an export never holds more than one matrix beside the graph.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ris import __version__
from ris.calibration.weights.data import Part, Report, journal_of, link_or_copy, write_data
from ris.calibration.weights.graph import (
    Quantised,
    find_matrices,
    parts_of,
    place_all,
    rewrite,
)
from ris.calibration.weights.groups import Rounder, WeightFormat, nearest_levels
from ris.export.alone import kept_folder

_INSIDE = 256  # bytes up to which torch's exporter leaves a weight in the graph's own file


@dataclass(frozen=True)
class Traced:
    """A graph that is written, but for its data file."""

    path: Path
    """The graph's file."""

    parts: tuple[Part, ...]
    """What its data file has to hold, in order."""

    scopes: dict[str, list[str]] = field(default_factory=dict)
    """For every node the paths of the modules it came from, outermost first, its own name last."""

    held: Mapping[str, int] = field(default_factory=dict)
    """The weights that are read from the model's files when they are written: their keys as of
    `HeldBack.find`, by name."""

    places: Mapping[str, str] = field(default_factory=dict)
    """The names of the model's matrices, by the nodes of the layers that have them."""

    @property
    def data(self) -> Path:
        """The data file."""
        return self.path.with_name(f"{self.path.name}.data")

    def write(self, report: Report = lambda done, whole: None, kept: Kept | None = None) -> None:
        """Writes the data file.

        Args:
            report: Called behind each weight.
            kept: Where a stopped export left what it wrote; None: nobody goes on with this one.
        """
        if kept is None:
            write_data(self.data, self.parts, report)
            return
        file = kept.file(self.data.name)
        write_data(file, self.parts, report, kept.recipe(self))
        link_or_copy(file, self.data)

    def quantised(
        self, format: WeightFormat, rounder: Rounder = nearest_levels
    ) -> tuple[Traced, Quantised]:
        """The graph with its matrices in a format; their errors are known when it is written.

        The graph's own file is written again. Weights that a stage computed of others when it was
        built stay FP32, where any are read from the model's files: no pass of the reference rounds
        them. rounder: as of `parts_of`.
        """
        model = onnx.load(self.path, load_external_data=False)
        chosen = {
            name: one
            for name, one in find_matrices(model.graph, self.places).items()
            if not self.held or name in self.held
        }
        rewrite(model, chosen, format)
        old = {part.name: part for part in self.parts}
        found = Quantised(tuple(chosen.values()))
        parts: list[Part] = []
        for name, one in chosen.items():
            values = _matrix_of(old[name], (one.rows, one.columns))
            parts += parts_of(one, values, format, found.errors, rounder)
        parts += [part for name, part in old.items() if name not in chosen]
        place_all(model, parts, self.data.name)
        onnx.save_model(model, self.path)
        return dataclasses.replace(self, parts=tuple(parts)), found


@dataclass(frozen=True)
class Kept:
    """A folder beside the bundle with the data files that an export has written so far."""

    folder: Path
    """The folder."""

    source: str
    """What the weights come from: files with their sizes and times of change."""

    def file(self, name: str) -> Path:
        """The place of a data file until the bundle is whole; makes the folder."""
        self.folder.mkdir(parents=True, exist_ok=True)
        return self.folder / name

    def recipe(self, traced: Traced) -> str:
        """Everything that a data file depends on, as a hash."""
        about = [self.source, [(part.name, part.length) for part in traced.parts]]
        found = hashlib.sha256(json.dumps(about).encode())
        found.update(traced.path.read_bytes())
        return found.hexdigest()

    def remove(self) -> None:
        """Throws everything away, once the bundle is whole."""
        for file in self.folder.glob("*.onnx.data"):
            file.unlink(missing_ok=True)
            journal_of(file).unlink(missing_ok=True)
        if self.folder.exists() and not any(self.folder.iterdir()):
            self.folder.rmdir()


def kept_beside(out: Path, sources: Sequence[Path]) -> Kept:
    """Where an export of these files into the bundle `out` keeps what it has written."""
    about = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    # what is computed of the weights on the way depends on who computes
    versions = {"ris-runtime": __version__, "torch": torch.__version__}
    return Kept(kept_folder(out), json.dumps([versions, sorted(about)]))


def save_graph(
    model: ir.Model, path: Path, readers: Mapping[str, Callable[[], NDArray[Any]]]
) -> tuple[Part, ...]:
    """Writes a traced graph without its data file, in torch's own layout.

    Args:
        model: The graph.
        path: The file to write.
        readers: How to read weights that the model holds placeholders of, by name.

    Returns:
        What the data file has to hold.
    """
    parts: list[Part] = []
    offset = 0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        assert tensor is not None, "every weight has a value or a placeholder"
        if tensor.nbytes <= _INSIDE:
            continue
        parts.append(Part(name, tensor.nbytes, readers.get(name) or _numpy_of(tensor)))
        value.const_value = ir.ExternalTensor(
            f"{path.name}.data",
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=tensor.name or name,
            base_dir=path.parent,
        )
        offset += tensor.nbytes
    onnx.save(ir.to_proto(model), path)
    return tuple(parts)


def _numpy_of(tensor: Any) -> Callable[[], NDArray[Any]]:
    return lambda: np.asarray(tensor.numpy())


def _matrix_of(part: Part, shape: tuple[int, int]) -> Callable[[], NDArray[np.float32]]:
    return lambda: np.asarray(part.make(), np.float32).reshape(shape)
