"""Weights of a graph in 8 or 4 bits: a DequantizeLinear between each matrix and its product.

ONNX Runtime, OpenVINO and TensorRT know the form, and keep the bytes as they are. Biases, norms,
tables and convolutions stay as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper
from onnx.external_data_helper import uses_external_data

from ris.calibration.numerics.weights import weight_values
from ris.calibration.weights.data import Part, Report, place, write_data
from ris.calibration.weights.groups import (
    BITS,
    Rounded,
    Rounder,
    WeightFormat,
    group_of,
    nearest_levels,
    relative_error,
)

OPSET = 21
"""The version of ONNX's operators with groups and with 4 bits."""

_IR_VERSION = 10  # of ONNX's files, the first with 4 bits
_KINDS = {"int8": TensorProto.INT8, "int4": TensorProto.INT4}

NOWHERE: Mapping[str, str] = MappingProxyType({})
"""The places of matrices, where none is known."""

Values = Callable[[], NDArray[np.float32]]
"""Reads a matrix."""


@dataclass(frozen=True)
class Matrix:
    """A weight that can be stored in fewer bits."""

    name: str
    """Its name in the graph."""

    rows: int
    """The length K of the sums."""

    columns: int
    """The number N of results."""

    group: int
    """How many rows share a scale."""

    reader: str = ""
    """The product that reads it, the first of several."""

    place: str = ""
    """The matrix's name in the model; empty where that is not known."""


@dataclass(frozen=True)
class Quantised:
    """What became of a graph."""

    matrices: tuple[Matrix, ...]
    """The matrices that are stored in fewer bits."""

    errors: dict[str, float] = field(default_factory=dict)
    """By matrix the root mean square of what rounding changed, divided by that of the matrix."""

    @property
    def error(self) -> float:
        """That of all matrices together."""
        return self.error_of(self.matrices)

    def error_of(self, matrices: Sequence[Matrix]) -> float:
        """That of some matrices together, each by its number of weights."""
        sizes = {one.name: one.rows * one.columns for one in matrices}
        squares = sum(size * self.errors.get(name, 0.0) ** 2 for name, size in sizes.items())
        return (squares / sum(sizes.values())) ** 0.5 if sizes else 0.0


def find_matrices(graph: onnx.GraphProto, places: Mapping[str, str] = NOWHERE) -> dict[str, Matrix]:
    """The FP32 matrices that nothing but products read, as their second factor, by name.

    places: By a product's node the model's name of the matrix that it reads, where that is known.
    """
    readers: dict[str, list[bool]] = {}
    first: dict[str, str] = {}
    for node in graph.node:
        for i, name in enumerate(node.input):
            readers.setdefault(name, []).append(node.op_type == "MatMul" and i == 1)
            first.setdefault(name, node.name)
    given = {value.name for value in graph.output}
    found = {}
    for tensor in graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or len(tensor.dims) != 2 or tensor.name in given:
            continue
        rows, columns = tensor.dims
        group = group_of(rows)
        if group is not None and columns > 1 and all(readers.get(tensor.name, [False])):
            reader = first[tensor.name]
            place = places.get(reader, "")
            found[tensor.name] = Matrix(tensor.name, rows, columns, group, reader, place)
    return found


def rewrite(model: onnx.ModelProto, chosen: Mapping[str, Matrix], format: WeightFormat) -> None:
    """Lets the products of a graph read these matrices in a format; their values follow.

    `parts_of` gives what the data file then has to hold. The operators stay what they are: of those
    that torch's exporter writes, none changed its meaning from 20 to 21.
    """
    graph = model.graph
    kept = [tensor for tensor in graph.initializer if tensor.name not in chosen]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    nodes = []
    for one in chosen.values():
        levels, scale = f"{one.name}.{format}", f"{one.name}.scale"
        shape = one.rows // one.group, one.columns
        for name, kind, dims in (
            (levels, _KINDS[format], (one.rows, one.columns)),
            (scale, TensorProto.FLOAT, shape),
        ):
            tensor = graph.initializer.add(name=name, data_type=kind, dims=dims)
            place(tensor, "", 0, 0)
        about = {"axis": 0, "block_size": one.group}
        reads = [levels, scale]
        nodes.append(
            helper.make_node(
                "DequantizeLinear", reads, [one.name], f"{one.name}.dequantise", **about
            )
        )
    later = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *later])
    for version in model.opset_import:
        if version.domain in ("", "ai.onnx"):
            version.version = max(version.version, OPSET)
    model.ir_version = max(model.ir_version, _IR_VERSION)


def parts_of(
    one: Matrix,
    values: Values,
    format: WeightFormat,
    errors: dict[str, float],
    rounder: Rounder = nearest_levels,
) -> list[Part]:
    """What a data file holds of a matrix: levels, then scales.

    Args:
        one: The matrix.
        values: Reads it.
        format: What it is stored in.
        errors: Where what rounding changed is noted, as in `Quantised.errors`.
        rounder: How it is rounded: to the nearest levels where nothing else is said.
    """
    held: list[Rounded] = []

    def round_it() -> Rounded:
        matrix = values()
        rounded = rounder(matrix, format, one.group, one.place)
        errors[one.name] = relative_error(matrix, rounded)
        return rounded

    def levels() -> NDArray[Any]:
        held.append(round_it())
        return held[0].packed()

    def scales() -> NDArray[Any]:
        # a run that goes on may have the levels already
        return (held.pop() if held else round_it()).scales

    count = one.rows * one.columns
    return [
        Part(f"{one.name}.{format}", count * BITS[format] // 8, levels, errors, one.name),
        Part(f"{one.name}.scale", 4 * count // one.group, scales),
    ]


def quantise_file(
    source: Path,
    target: Path,
    format: WeightFormat,
    report: Report = lambda done, whole: None,
    rounder: Rounder = nearest_levels,
    places: Mapping[str, str] = NOWHERE,
) -> Quantised:
    """Writes the FP32 graph at `source` to `target` with its matrices in a format.

    Args:
        source: The graph, with a data file or without.
        target: The file to write, with a data file of its own; may be `source`.
        format: What the matrices are stored in.
        report: Called behind each tensor.
        rounder: How they are rounded, as of `parts_of`.
        places: As of `find_matrices`.
    """
    model = onnx.load(source, load_external_data=False)
    old = {tensor.name: tensor for tensor in _copies(model)}
    chosen = find_matrices(model.graph, places)
    rewrite(model, chosen, format)
    errors: dict[str, float] = {}
    parts: list[Part] = []
    for name, one in chosen.items():
        reader = _reader(old[name], source.parent)
        parts += parts_of(one, reader, format, errors, rounder)
    fresh = {part.name for part in parts}
    for tensor in model.graph.initializer:
        if tensor.name not in fresh and uses_external_data(tensor):
            reader = _reader(old[tensor.name], source.parent)
            length = int(next(e.value for e in tensor.external_data if e.key == "length"))
            parts.append(Part(tensor.name, length, reader))
    place_all(model, parts, f"{target.name}.data")

    data = target.with_name(f"{target.name}.data")
    made = data.with_name(f"{data.name}.new")
    try:
        write_data(made, parts, report)
        made.replace(data)
    finally:
        made.unlink(missing_ok=True)
    onnx.save_model(model, target)
    return Quantised(tuple(chosen.values()), errors)


def place_all(model: onnx.ModelProto, parts: list[Part], location: str) -> None:
    """Lets the tensors of a graph lie in a data file, one behind the other as the parts are."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    offset = 0
    for part in parts:
        place(tensors[part.name], location, offset, part.length)
        offset += part.length


def _copies(model: onnx.ModelProto) -> list[TensorProto]:
    """The weights as the graph has them, to be read after it was changed."""
    found = []
    for tensor in model.graph.initializer:
        copy = TensorProto()
        copy.CopyFrom(tensor)
        found.append(copy)
    return found


def _reader(tensor: TensorProto, folder: Path) -> Callable[[], NDArray[Any]]:
    return lambda: weight_values(tensor, folder)
