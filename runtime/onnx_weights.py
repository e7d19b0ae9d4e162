"""What an ONNX file has, without the onnx package: weights, where they lie, inputs and outputs.

It follows the protobuf's tags and lengths alone: ModelProto.graph (7), GraphProto.initializer (5),
input (11) and output (12), ValueInfoProto.name (1), TensorProto.dims (1) and data_type (2). Raw
data is skipped, so a large file costs no memory.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from ris.engines.errors import BundleError
from ris.engines.wire import Span, fields, varint

WEIGHT_TYPES = {
    1: "fp32",
    2: "uint8",
    3: "int8",
    10: "fp16",
    11: "fp64",
    16: "bf16",
    17: "fp8",
    18: "fp8",
    19: "fp8",
    20: "fp8",
    21: "uint4",
    22: "int4",
    23: "fp4",
}
"""ONNX's numbers for the types of weights.

Integers of 16 bits and more are left out: they are shapes and indices.
"""

_GRAPH, _INITIALIZER, _DIMS, _DATA_TYPE = 7, 5, 1, 2
_INPUT, _OUTPUT, _NAME = 11, 12, 1


def count_weights(path: Path) -> dict[str, int]:
    """The number of weights by type, the most frequent first.

    Raises:
        BundleError: Where the file is not ONNX.
    """
    counts: dict[str, int] = {}
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for graph in _parts(data, (0, len(data)), _GRAPH):
                for tensor in _parts(data, graph, _INITIALIZER):
                    kind, size = _tensor(data, tensor)
                    if kind in WEIGHT_TYPES:
                        name = WEIGHT_TYPES[kind]
                        counts[name] = counts.get(name, 0) + size
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f"{path} is not an ONNX file that can be read ({error})") from None
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


_INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {13: "entry"},
}
"""The messages in which tensors lie, by the message around them and the field's number."""

_LOCATION = b"location"  # the key of the entry that names a tensor's data file


def data_files(path: Path) -> list[str]:
    """The names of the files that an ONNX file keeps tensors in, as they stand there.

    Raises:
        BundleError: Where the file is not ONNX.
    """
    found: dict[str, None] = {}
    try:
        data = path.read_bytes()
        waiting = [("model", (0, len(data)))]
        while waiting:
            kind, span = waiting.pop()
            if kind == "entry":
                found |= dict.fromkeys(_location(data, span))
                continue
            for field, value in fields(data, span):
                inside = _INSIDE[kind].get(field)
                # a message without the key names no file: most need not be entered
                if inside and isinstance(value, tuple) and data.find(_LOCATION, *value) >= 0:
                    waiting.append((inside, value))
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f"{path} is not an ONNX file that can be read ({error})") from None
    return list(found)


def inputs_and_outputs(path: Path) -> list[str]:
    """The names of what goes into an ONNX file's graph and of what comes out, sorted.

    Raises:
        BundleError: Where the file is not ONNX.
    """
    names = []
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for graph in _parts(data, (0, len(data)), _GRAPH):
                for field, value in fields(data, graph):
                    if field in (_INPUT, _OUTPUT) and isinstance(value, tuple):
                        name = next(_parts(data, value, _NAME), (0, 0))
                        names.append(data[slice(*name)].decode(errors="replace"))
    except (OSError, ValueError, IndexError) as error:
        raise BundleError(f"{path} is not an ONNX file that can be read ({error})") from None
    return sorted(names)


def _location(data: bytes, span: Span) -> list[str]:
    """The values of a StringStringEntryProto with that key."""
    texts = [(field, data[slice(*at)]) for field, at in fields(data, span) if isinstance(at, tuple)]
    if (1, _LOCATION) not in texts:
        return []
    return [text.decode(errors="replace") for field, text in texts if field == 2]


def _tensor(data: mmap.mmap, span: tuple[int, int]) -> tuple[int, int]:
    """The data type of a TensorProto, and its number of elements."""
    kind, size = 0, 1
    for field, value in fields(data, span):
        if field == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif field == _DIMS and isinstance(value, int):
            size *= value
        elif field == _DIMS and isinstance(value, tuple):  # packed
            at, end = value
            while at < end:
                n, at = varint(data, at)
                size *= n
    return kind, size


def _parts(data: mmap.mmap, span: tuple[int, int], wanted: int) -> Iterator[tuple[int, int]]:
    """The places of the messages with this tag, in the message at `span`."""
    for field, value in fields(data, span):
        if field == wanted and isinstance(value, tuple):
            yield value
