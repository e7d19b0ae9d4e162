"""How much of an ONNX graph's weights is INT8, and whether it multiplies mostly in that.

ONNX Runtime's CPU has INT8 kernels for products whose weights are quantised. It does not say which
it took; each weight is multiplied once for each row, so their numbers weigh the work.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

from ris.engines.errors import EngineError
from ris.engines.wire import Span, fields, varint

# numbers of fields in onnx.proto, and of TensorProto.DataType
_GRAPH, _INITIALIZER, _DIMS, _DATA_TYPE = 7, 5, 1, 2
_INT8, _FLOATS = 3, (1, 10, 16)


def mostly_int8(path: Path) -> bool:
    """Whether most of the file's weights of two axes or more are INT8.

    Raises:
        EngineError: Where the file cannot be read or is not ONNX.
    """
    narrow, wide = _counted(path)
    return narrow > wide


def int8_elements(path: Path) -> int:
    """The elements of the file's INT8 weights of two axes or more.

    Raises:
        EngineError: As `mostly_int8`.
    """
    return _counted(path)[0]


def _counted(path: Path) -> tuple[int, int]:
    """The elements of weights of two axes or more: INT8 ones, and those of floating point."""
    narrow = wide = 0
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            for graph in _parts(data, (0, len(data)), _GRAPH):
                for tensor in _parts(data, graph, _INITIALIZER):
                    kind, size = _tensor(data, tensor)
                    narrow += size * (kind == _INT8)
                    wide += size * (kind in _FLOATS)
    except (OSError, ValueError, IndexError) as error:
        raise EngineError(f"{path} is not an ONNX file that can be read ({error})") from None
    return narrow, wide


def _parts(data: mmap.mmap, span: Span, wanted: int) -> Iterator[Span]:
    """The places of the messages with this number in the message at `span`."""
    for field, value in fields(data, span):
        if field == wanted and isinstance(value, tuple):
            yield value


def _tensor(data: mmap.mmap, span: Span) -> tuple[int, int]:
    """The data type of a TensorProto, and its number of elements; 0 of those of fewer axes."""
    kind, size, axes = 0, 1, 0
    for field, value in fields(data, span):
        if field == _DATA_TYPE and isinstance(value, int):
            kind = value
        elif field == _DIMS:
            for length in [value] if isinstance(value, int) else _packed(data, value):
                size, axes = size * length, axes + 1
    return kind, size if axes > 1 else 0


def _packed(data: mmap.mmap, span: Span) -> Iterator[int]:
    at, end = span
    while at < end:
        number, at = varint(data, at)
        yield number
