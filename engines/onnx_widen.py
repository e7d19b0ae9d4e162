"""An FP16 graph computing in FP32, for a processor without FP16: ONNX Runtime's CPU.

Left to itself, ONNX Runtime casts around every operator that it has no FP16 kernel for, and takes
softmax and GELU apart into many operators. Here the weights are widened once, when the graph is
loaded, and the casts between disappear. So an FP16 bundle runs the same kernels as an FP32 one.
"""

from __future__ import annotations

from pathlib import Path

from ris.engines.errors import EngineError
from ris.engines.wire import number, part, raw_fields, text

_FLOAT, _FLOAT16 = 1, 10  # of TensorProto.DataType

# numbers of fields in onnx.proto
_GRAPH = 7  # of ModelProto
_NODE, _INITIALIZER = 1, 5  # of GraphProto
_INPUT, _OUTPUT, _NAME, _OPERATOR, _ATTRIBUTE = 1, 2, 3, 4, 5  # of NodeProto
_ATTRIBUTE_NAME, _ATTRIBUTE_INTEGER, _ATTRIBUTE_TYPE = 1, 3, 20  # of AttributeProto
_INTEGER = 2  # of AttributeProto.AttributeType
_TENSOR_TYPE, _TENSOR_NAME = 2, 8  # of TensorProto


def widened(path: Path) -> bytes:
    """The ONNX file at `path`, changed so that it computes in FP32.

    Every FP16 weight stands behind a cast to FP32, and every cast to FP16 is one to FP32. Weights
    in a data file stay there.

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
    for field, value, raw in raw_fields(data):
        if field == _NODE and isinstance(value, bytes):
            raw = part(_NODE, _node(value))
        elif field == _INITIALIZER and isinstance(value, bytes):
            tensor, name = _tensor(value)
            if name is not None:
                raw = part(_INITIALIZER, tensor)
                casts.append(part(_NODE, _cast(f"{name}.fp16", name)))
        rest.append(raw)
    return b"".join(casts + rest)


def _node(data: bytes) -> bytes:
    """A NodeProto; a cast to FP16 becomes one to FP32."""
    found = list(raw_fields(data))
    if (_OPERATOR, b"Cast") not in [(field, value) for field, value, _ in found]:
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
