"""The host's resizes inside of the graphs that take their results.

A resize of maps is two products with constant matrices (`ris.runtime.interpolate`), so that a
graph may do it itself. Nothing then goes through the host between two graphs, and on a GPU the maps
stay there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from ris.engines import TensorSpec
from ris.engines.errors import RisError
from ris.export.families.design import StageDesign
from ris.runtime.interpolate import matrix
from ris.runtime.manifest import Host, Resize


def require_resizes(host: Host, family: str) -> None:
    """Raises RisError where the host of a family resizes nothing between its graphs."""
    if not host.resizes:
        raise RisError(
            f"nothing is resized between the graphs of {family}; leave --resizing graph out"
        )


def resizes_inside(
    stages: Sequence[StageDesign], host: Host
) -> tuple[tuple[StageDesign, ...], Host]:
    """The stages, each with the resizes of what it takes, and the host without any.

    A stage then takes the value before its resize. Where the host resizes nothing, nothing changes.
    """
    given = {spec.name: spec for stage in stages for spec in stage.outputs}
    moved = tuple(_with_resizes(stage, host.resizes, given) for stage in stages)
    return moved, replace(host, resizes={})


def _with_resizes(
    stage: StageDesign, resizes: Mapping[str, Resize], given: Mapping[str, TensorSpec]
) -> StageDesign:
    own = {spec.name: resizes[spec.value] for spec in stage.inputs if spec.value in resizes}
    if not own:
        return stage
    inputs = tuple(
        replace(spec, value=own[spec.name].of, shape=given[own[spec.name].of].shape)
        if spec.name in own
        else spec
        for spec in stage.inputs
    )
    return replace(stage, inputs=inputs, resizes=own)


def resize_inside(
    path: Path, scopes: Mapping[str, list[str]], stage: StageDesign
) -> dict[str, list[str]]:
    """Lets the graph at `path`, as its module was traced, take the inputs of its stage.

    Args:
        path: The graph, in float32.
        scopes: For every node the paths of the modules it came from, as `write_onnx` returns them.
        stage: The graph's stage, with `resizes`.

    Returns:
        The scopes, with those of the new nodes.
    """
    model = onnx.load(path, load_external_data=False)
    graph = model.graph
    added = []
    for spec in stage.inputs:
        if (resize := stage.resizes.get(spec.name)) is None:
            continue
        _read_instead(graph, spec.name, f"{spec.name}_resized")
        added += _products(graph, spec, resize)
        [taken] = [value for value in graph.input if value.name == spec.name]
        for axis, size in zip(taken.type.tensor_type.shape.dim, spec.shape, strict=True):
            if isinstance(size, int):
                axis.dim_value = size

    later = list(graph.node)
    del graph.node[:]
    graph.node.extend([*added, *later])
    onnx.save_model(model, path)
    return {**scopes, **{node.name: [node.name] for node in added}}


def _read_instead(graph: onnx.GraphProto, old: str, new: str) -> None:
    """Lets every node read another value than the one it read."""
    for node in graph.node:
        for i, value in enumerate(node.input):
            if value == old:
                node.input[i] = new


def _products(graph: onnx.GraphProto, spec: TensorSpec, resize: Resize) -> list[onnx.NodeProto]:
    """The nodes of a resize; its matrices go into the graph. Columns first, as the host does it."""
    *_, height, width = spec.shape
    assert isinstance(height, int)
    assert isinstance(width, int)
    name, half = spec.name, f"{spec.name}_wide"
    weights = {
        f"{name}_columns": matrix(width, resize.size, resize.interpolation).T,
        f"{name}_rows": matrix(height, resize.size, resize.interpolation),
    }
    for key, values in weights.items():
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(values), key))
    columns, rows = weights
    count, channels = spec.shape[:2]
    for key, size in ((half, (height, resize.size)), (f"{name}_resized", (resize.size,) * 2)):
        shape = (count, channels, *size)
        graph.value_info.append(helper.make_tensor_value_info(key, onnx.TensorProto.FLOAT, shape))
    return [
        helper.make_node("MatMul", [name, columns], [half], f"{half}_product"),
        helper.make_node("MatMul", [rows, half], [f"{name}_resized"], f"{name}_resized_product"),
    ]
