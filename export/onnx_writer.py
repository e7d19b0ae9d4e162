"""One module -> one ONNX file with external data and dynamic batch axes, by torch's exporter."""

from __future__ import annotations

import contextlib
import hashlib
import io
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from ris.engines.errors import ParityError
from ris.export.families.design import StageDesign
from ris.export.held import HeldBack
from ris.export.streaming import Traced, save_graph

OPSET = 20
"""The version of ONNX's operators."""

# unequal, and above one: the exporter makes an axis of size 1 a constant
_TRACE_SIZES = {"images": 2, "expressions": 3, "tokens": 5}
_MOST = 1024  # images or expressions
_SCOPES = "pkg.torch.onnx.name_scopes"


def trace_inputs(
    stage: StageDesign, sizes: Mapping[str, int] = MappingProxyType(_TRACE_SIZES)
) -> dict[str, Tensor]:
    """Inputs to trace with, by name: right dtypes and shapes, valid indices, otherwise zeros.

    sizes: the lengths of the axes that have a name.
    """
    tensors = {}
    for spec in stage.inputs:
        shape = [sizes[d] if isinstance(d, str) else d for d in spec.shape]
        dtype = torch.int32 if spec.dtype == "int32" else torch.float32
        tensors[spec.name] = torch.zeros(shape, dtype=dtype)
    return tensors


def write_onnx(
    module: nn.Module, stage: StageDesign, path: Path, *, one_image: bool = False
) -> dict[str, list[str]]:
    """Traces `module` and writes `path` and `path.data`.

    Args:
        module: As of `trace_onnx`.
        stage: As of `trace_onnx`.
        path: As of `trace_onnx`.
        one_image: As of `trace_onnx`.

    Returns:
        `Traced.scopes`. FP32 islands are chosen by these.

    Raises:
        ParityError: As `trace_onnx` does.
    """
    traced = trace_onnx(module, stage, path, one_image=one_image)
    traced.write()
    return traced.scopes


def trace_onnx(
    module: nn.Module,
    stage: StageDesign,
    path: Path,
    *,
    one_image: bool = False,
    held: HeldBack | None = None,
) -> Traced:
    """Traces `module` and writes `path`, without the names of source files; its data is to follow.

    The names of the module's arguments are those of the graph's inputs.

    Args:
        module: What to trace.
        stage: Its inputs and outputs.
        path: The file to write.
        one_image: Whether all expressions of a call are about one image, as nothing says which: a
            graph that takes images and expressions then has one image for good.
        held: The matrices that the module does not hold; None: it has all.

    Raises:
        ParityError: Where an input or output has other axes than the stage says.
    """
    sizes = _TRACE_SIZES | ({"images": 1} if one_image and _takes_both(stage) else {})
    # a graph may hold tables of as many tokens as there can be
    most = {"tokens": stage.lengths[-1]} if stage.lengths else {}
    axes = {
        name: torch.export.Dim(name, min=1, max=most.get(name, _MOST))
        for name, size in sizes.items()
        if size > 1
    }
    shapes = {
        spec.name: {i: axes[d] for i, d in enumerate(spec.shape) if d in axes}
        for spec in stage.inputs
    }
    running = nullcontext() if held is None else held.traced()
    with _quiet(), torch.no_grad(), running:
        program = torch.onnx.export(
            module,
            kwargs=trace_inputs(stage, sizes),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=[spec.name for spec in stage.inputs],
            output_names=[spec.name for spec in stage.outputs],
            verbose=False,
        )
        assert program is not None
        _share_buffers(program, module)
    found = {} if held is None else _held(program, held)
    parts = save_graph(program.model, path, {name: read for name, (_, read) in found.items()})
    _require_axes(path, stage, {name: 1 for name in sizes if name not in axes})
    return Traced(path, parts, _strip(path), {name: key for name, (key, _) in found.items()})


def _held(
    program: torch.onnx.ONNXProgram, held: HeldBack
) -> dict[str, tuple[int, Callable[[], Any]]]:
    """The graph's weights that the module does not hold: what `HeldBack.find` gives, by name."""
    found = {}
    for name, value in program.model.graph.initializers.items():
        if (one := held.find(value.const_value)) is not None:
            found[name] = one
    return found


def _share_buffers(program: torch.onnx.ONNXProgram, module: nn.Module) -> None:
    """Lets equal buffers of the module's parts be one initializer of the graph.

    Blocks that repeat hold the same masks and indices. The exporter shares equal initializers up to
    1,024 numbers; beyond those, each block would bring its own.
    """
    values = program.model.graph.initializers
    first: dict[tuple[Any, ...], Any] = {}
    for name, _ in module.named_buffers():
        if (value := values.get(name)) is None or (held := value.const_value) is None:
            continue  # the graph does not read it
        key = held.dtype, tuple(held.shape), hashlib.sha256(held.tobytes()).digest()
        if (kept := first.setdefault(key, value)) is not value:
            value.replace_all_uses_with(kept)
            del values[name]


def _takes_both(stage: StageDesign) -> bool:
    """Whether the stage takes values of images and of expressions."""
    axes = {axis for spec in stage.inputs for axis in spec.shape}
    return {"images", "expressions"} <= axes


def _require_axes(path: Path, stage: StageDesign, fixed: Mapping[str, int]) -> None:
    """Raises ParityError where an input or output has other axes than the stage says.

    A module that writes a number for the length of an axis fixes it.

    Args:
        path: The graph.
        stage: Its stage.
        fixed: The lengths of the axes that have a name in the stage and none in the graph.
    """
    graph = onnx.load(path, load_external_data=False).graph
    found = {
        value.name: [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        for value in (*graph.input, *graph.output)
    }
    wrong = []
    for kind, specs in (("input", stage.inputs), ("output", stage.outputs)):
        for spec in specs:
            wanted = [fixed.get(d, d) if isinstance(d, str) else d for d in spec.shape]
            if found.get(spec.name) != wanted:
                has = f"is {_words(found[spec.name])}" if spec.name in found else "is missing"
                wrong.append(f"the {kind} {spec.name!r} {has}, not {_words(wanted)}")
    if wrong:
        raise ParityError(f"{stage.name} was not traced as its stage says: {'; '.join(wrong)}")


def _words(axes: Sequence[object]) -> str:
    return f"[{', '.join(map(str, axes))}]"


def _strip(path: Path) -> dict[str, list[str]]:
    """Removes every note from the graph at `path`; the scopes of its nodes, as `write_onnx`."""
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    scopes = {}
    for node in graph.node:
        properties = {p.key: p.value for p in node.metadata_props}
        scopes[node.name] = _parse(properties.get(_SCOPES, "[]"))
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*graph.value_info, *graph.input, *graph.output, *graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.metadata_props[:]
    del graph.metadata_props[:]
    model.doc_string = graph.doc_string = ""
    onnx.save_model(model, path)
    return scopes


def _parse(text: str) -> list[str]:
    """The strings of a Python list as the exporter prints it."""
    return [part.strip(" '\"") for part in text.strip("[]").split(",")]


def name_input(path: Path, scopes: Mapping[str, list[str]], module: str, name: str) -> None:
    """Renames the one value that a module reads in the graph at `path`.

    Args:
        path: The graph.
        scopes: For every node the paths of the modules it came from, as `write_onnx` returns them.
        module: A part of the module's path.
        name: The value's new name.

    Raises:
        ValueError: Where the module does not read exactly one computed value, or that is an input
            or output of the graph, whose name is the stage's.
    """
    model = onnx.load(path, load_external_data=False)
    old = _only_input(path, model.graph, scopes, module)
    if any(value.name == old for value in (*model.graph.input, *model.graph.output)):
        raise ValueError(
            f"{path}: {module} reads {old}, an input or output of the graph, which keeps its name"
        )
    for node in model.graph.node:
        for values in (node.input, node.output):
            for i, value in enumerate(values):
                if value == old:
                    values[i] = name
    for value in model.graph.value_info:
        if value.name == old:
            value.name = name
    onnx.save_model(model, path)


def _only_input(
    path: Path, graph: onnx.GraphProto, scopes: Mapping[str, list[str]], module: str
) -> str:
    """The value that a module reads, its weights and constants aside."""
    inside = [
        node
        for node in graph.node
        if any(f".{module}." in f".{scope}." for scope in scopes.get(node.name, []))
    ]
    made = {value for node in inside for value in node.output}
    weights = {tensor.name for tensor in graph.initializer}
    constants = {node.output[0] for node in graph.node if node.op_type == "Constant"}
    read = {value for node in inside for value in node.input if value} - made - weights - constants
    if len(read) != 1:
        raise ValueError(f"{path}: {module} reads {sorted(read)}, expected one value")
    return read.pop()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the exporter's progress and deprecation warnings, which do not concern the graph.

    Errors still raise.
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
