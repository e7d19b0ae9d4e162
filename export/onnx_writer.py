"""One module -> one ONNX file with external data: torch's dynamo exporter, opset 20, dynamic batch
axes.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path

import onnx
import torch
from torch import Tensor, nn

from ris.export.graphs import GraphSignature

OPSET = 20
_TRACE_SIZES = {
    "images": 2,
    "expressions": 3,
}  # unequal and above one: the exporter bakes in axes of size 1
_SCOPES = "pkg.torch.onnx.name_scopes"


def trace_inputs(signature: GraphSignature) -> dict[str, Tensor]:
    """Inputs to trace with, by name: right dtypes and shapes, valid indices, otherwise zeros."""
    tensors = {}
    for axis in signature.inputs:
        shape = [_TRACE_SIZES[d] if isinstance(d, str) else d for d in axis.shape]
        tensors[axis.name] = torch.zeros(
            shape, dtype=torch.int32 if axis.dtype == "int32" else torch.float32
        )
    return tensors


def write_onnx(module: nn.Module, signature: GraphSignature, path: Path) -> dict[str, list[str]]:
    """Traces `module` and writes `path` and `path.data`. The module's argument names are the
    graph's input names.

    Returns for every node the paths of the modules it came from, outermost first, its own name
    last; FP32 islands are chosen by these. Whatever names the source files is stripped.
    """
    axes = {name: torch.export.Dim(name, min=1, max=1024) for name in _TRACE_SIZES}
    shapes = {
        a.name: {i: axes[d] for i, d in enumerate(a.shape) if isinstance(d, str)}
        for a in signature.inputs
    }
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            kwargs=trace_inputs(signature),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=[a.name for a in signature.inputs],
            output_names=[a.name for a in signature.outputs],
            verbose=False,
        )
        assert program is not None
        program.save(path, external_data=True)
    return _strip(path)


def _strip(path: Path) -> dict[str, list[str]]:
    model = onnx.load(path, load_external_data=False)
    scopes = {}
    for node in model.graph.node:
        properties = {p.key: p.value for p in node.metadata_props}
        scopes[node.name] = _parse(properties.get(_SCOPES, "[]"))
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (
        *model.graph.value_info,
        *model.graph.input,
        *model.graph.output,
        *model.graph.initializer,
    ):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    onnx.save_model(model, path)
    return scopes


def name_input(path: Path, scopes: dict[str, list[str]], module: str, name: str) -> None:
    """Gives the value that a module reads this name in the graph at `path`. Raises ValueError where
    that is not one.
    """
    model = onnx.load(path, load_external_data=False)
    weights = {tensor.name for tensor in model.graph.initializer}
    inside = [
        n
        for n in model.graph.node
        if any(f".{module}." in f".{s}." for s in scopes.get(n.name, []))
    ]
    made = {value for node in inside for value in node.output}
    constants = {node.output[0] for node in model.graph.node if node.op_type == "Constant"}
    read = {value for node in inside for value in node.input if value} - made - weights - constants
    if len(read) != 1:
        raise ValueError(f"{path}: {module} reads {sorted(read)}, expected one value")
    [old] = read
    for node in model.graph.node:
        for values in (node.input, node.output):
            for i, value in enumerate(values):
                if value == old:
                    values[i] = name
    for value in model.graph.value_info:
        if value.name == old:
            value.name = name
    onnx.save_model(model, path)


def _parse(text: str) -> list[str]:
    return [part.strip(" '\"") for part in text.strip("[]").split(",")]


@contextlib.contextmanager
def _quiet():  # type: ignore[no-untyped-def]
    """The exporter's progress chatter and deprecation warnings say nothing about the graph; errors
    still raise.
    """
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
