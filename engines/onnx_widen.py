"""An FP16 graph computing in FP32, for a processor without FP16: ONNX Runtime's CPU.

Left to itself, ONNX Runtime casts around every operator that it has no FP16 kernel for, and takes
softmax and GELU apart into many operators. Here the weights are widened once, when the graph is
loaded, and the casts between disappear. So an FP16 bundle runs the same kernels as an FP32 one.

Inputs and outputs that are FP16 themselves stay so. The exporter has put casts between them and
what computes: those behind an input become casts to FP32 like any, and those in front of an output
are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from pathlib import Path

from ris.engines.errors import EngineError
from ris.engines.wire import number, part, raw_fields, text

_FLOAT, _FLOAT16 = 1, 10  # of TensorProto.DataType

# numbers of fields in onnx.proto
_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER, _GRAPH_OUTPUT = 1, 5, 12  # of GraphProto
_INPUT, _OUTPUT, _NAME, _OPERATOR, _ATTRIBUTE = 1, 2, 3, 4, 5  # of NodeProto
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER, _ATTRIBUTE_TYPE = 1, 3, 20  # of AttributeProto
_INTEGER = 2  # of AttributeProto.AttributeType
_TENSOR_TYPE, _TENSOR_NAME = 2, 8  # of TensorProto
_VALUE_NAME, _VALUE_TYPE = 1, 2  # of ValueInfoProto
_OF_TENSORS, _ELEMENTS = 1, 1  # of TypeProto, and of its Tensor

_Field = tuple[int, int | bytes | None, bytes]  # as of `raw_fields`


def widened(path: Path) -> bytes:
    """The ONNX file at `path`, changed so that it computes in FP32.

    Every FP16 weight stands behind a cast to FP32, and every cast to FP16 is one to FP32, but for
    the last ones in front of an FP16 output. Weights in a data file stay there.

    Raises:
        EngineError: Where the file cannot be read or is not ONNX.
    """
    try:
        return b"".join(
            part(_GRAPH, _graph(value)) if field == _GRAPH and isinstance(value, bytes) else raw
            for field, value, raw in raw_fields(path.read_bytes())
        )
    except (OSError, ValueError, IndexError) as error:
        raise EngineError(f"{path} is not an ONNX file that can be read ({error})") from None


def _graph(data: bytes) -> bytes:
    """The GraphProto with its weights and casts changed; the new casts come before its nodes."""
    casts, rest = [], []
    found = list(raw_fields(data))
    edge = _edge(found)
    for field, value, raw in found:
        if field == _NODE and isinstance(value, bytes):
            raw = part(_NODE, _node(value, edge))
        elif field == _INITIALIZER and isinstance(value, bytes):
            tensor, name = _tensor(value)
            if name is not None:
                raw = part(_INITIALIZER, tensor)
                casts.append(part(_NODE, _cast(f"{name}.fp16", name)))
        rest.append(raw)
    return b"".join(casts + rest)


def _edge(graph: Iterable[_Field]) -> set[bytes]:
    """The values that FP16 outputs are joined of, up to the last casts; they stay FP16."""
    nodes = []
    edge: set[bytes] = set()
    for field, value, _ in graph:
        if field == _NODE and isinstance(value, bytes):
            nodes.append(value)
        elif field == _GRAPH_OUTPUT and isinstance(value, bytes):
            edge |= _half_name(value)
    for node in reversed(nodes) if edge else ():
        about = [(field, value) for field, value, _ in raw_fields(node)]
        is_inside = any(field == _OUTPUT and value in edge for field, value in about)
        if is_inside and (_OPERATOR, b"Cast") not in about:
            edge.update(
                value for field, value in about if field == _INPUT and isinstance(value, bytes)
            )
    return edge


def _half_name(data: bytes) -> set[bytes]:
    """The name in a ValueInfoProto, where that is of an FP16 tensor."""
    name, is_half = b"", False
    for field, value, _ in raw_fields(data):
        if field == _VALUE_NAME and isinstance(value, bytes):
            name = value
        elif field == _VALUE_TYPE and isinstance(value, bytes):
            tensors = (one for kind, one, _ in raw_fields(value) if kind == _OF_TENSORS)
            is_half = any(
                (kind, one) == (_ELEMENTS, _FLOAT16)
                for tensor in tensors
                if isinstance(tensor, bytes)
                for kind, one, _ in raw_fields(tensor)
            )
    return {name} if is_half else set()


def _node(data: bytes, edge: AbstractSet[bytes]) -> bytes:
    """A NodeProto; a cast to FP16 becomes one to FP32, but for what writes a value of the edge."""
    found = list(raw_fields(data))
    if (_OPERATOR, b"Cast") not in [(field, value) for field, value, _ in found]:
        return data
    if any(field == _OUTPUT and value in edge for field, value, _ in found):
        return data
    return b"".join(
        part(_ATTRIBUTE, _to(value)) if field == _ATTRIBUTE and isinstance(value, bytes) else raw
        for field, value, raw in found
    )


def _to(data: bytes) -> bytes:
    """An attribute of a Cast: "to" is changed, and those of later operator sets are not."""
    found = list(raw_fields(data))
    if (_ATTRIBUTE_NAME, b"to") not in [(field, value) for field, value, _ in found]:
        return data
    to_fp16, to_fp32 = (_ATTRIBUTE_INTEGER, _FLOAT16), number(_ATTRIBUTE_INTEGER, _FLOAT)
    return b"".join(to_fp32 if (field, value) == to_fp16 else raw for field, value, raw in found)


def _tensor(data: bytes) -> tuple[bytes, str | None]:
    """A TensorProto, and None; an FP16 one under another name, and the name that it had."""
    found = list(raw_fields(data))
    if (_TENSOR_TYPE, _FLOAT16) not in [(field, value) for field, value, _ in found]:
        return data, None
    [name] = [
        value.decode()
        for field, value, _ in found
        if field == _TENSOR_NAME and isinstance(value, bytes)
    ]
    new_name = text(_TENSOR_NAME, f"{name}.fp16")
    return b"".join(new_name if field == _TENSOR_NAME else raw for field, _, raw in found), name


def _cast(source: str, target: str) -> bytes:
    """A node that casts the value `source` to FP32."""
    to = (
        text(_ATTRIBUTE_NAME, "to")
        + number(_ATTRIBUTE_INTEGER, _FLOAT)
        + number(_ATTRIBUTE_TYPE, _INTEGER)
    )
    return (
        text(_INPUT, source)
        + text(_OUTPUT, target)
        + text(_NAME, f"{target}.widen")
        + text(_OPERATOR, "Cast")
        + part(_ATTRIBUTE, to)
    )
