"""Values that a scene keeps in FP16: two bytes a number at the edges of the graphs that have them.

A family names such values (`StageDesign.halved`), as the keys and values of a picture's positions.
A graph is traced, and checked in FP32, with FP32 edges. They become FP16 once its own precision is
written. Casts are put where no FP32 copy of a whole value is made: behind what cuts a layer's part
out of an input, and in front of what joins an output's parts.

In an FP16 graph these Casts are from FP16 to FP16. Engines drop them; where such a graph is widened
to FP32 they say how far the edges reach (`ris.engines.onnx_widen`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import onnx
from onnx import NodeProto, TensorProto

from ris.calibration.numerics.ranges import FP16_MAX, Ranges
from ris.engines import TensorSpec
from ris.export.families.design import AS_ASKED, StageDesign
from ris.export.precision import MARGIN
from ris.runtime.manifest import Precision

_HALF, _FULL = TensorProto.FLOAT16, TensorProto.FLOAT

# what takes a part of a value, or lays it out anew; not Transpose, which an engine makes part of
# the product beside it
_PARTS = frozenset({"Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Unsqueeze"})

# what lays parts out anew or joins them
_JOINS = frozenset({"Concat", "Expand", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"})

Spec = TypeVar("Spec", bound=TensorSpec)


def halve_kept(
    stages: Sequence[StageDesign],
    precision: Precision,
    narrow: Collection[str],
    ranges: Ranges | None = None,
) -> tuple[StageDesign, ...]:
    """The stages, with the values FP16 that they name for it.

    A value stays FP32 where one of the graphs that have it does: a graph that was asked for in FP32
    is so up to its edges, whatever its matrices are stored in. It stays so where it comes near
    FP16's end as well.

    Args:
        stages: The graphs of a bundle.
        precision: What the bundle computes in.
        narrow: The graphs whose matrices are stored in 8 or 4 bits.
        ranges: What was measured on samples; None where nothing was.
    """
    wide = {
        stage.name
        for stage in stages
        if (stage.name not in narrow and (precision == "fp32" or precision in stage.whole))
        or stage.whole.get(precision) == AS_ASKED
    }
    named = {name for stage in stages for name in stage.halved}
    if ranges is not None:
        named -= {
            name
            for entries in ranges.stages.values()
            for name in named & entries.keys()
            if not entries[name].largest * MARGIN <= FP16_MAX
        }
    for stage in stages:
        if stage.name in wide:
            named -= {spec.value for spec in stage.inputs}
            named -= {spec.name for spec in stage.outputs}
    return tuple(
        replace(
            stage,
            inputs=tuple(_of_dtype(one, "float16", one.value in named) for one in stage.inputs),
            outputs=tuple(_of_dtype(one, "float16", one.name in named) for one in stage.outputs),
        )
        for stage in stages
    )


def full_edges(stage: StageDesign) -> StageDesign:
    """The stage with FP32 edges, as it is traced."""
    return replace(
        stage,
        inputs=tuple(_of_dtype(one, "float32", one.dtype == "float16") for one in stage.inputs),
        outputs=tuple(_of_dtype(one, "float32", one.dtype == "float16") for one in stage.outputs),
    )


def _of_dtype(spec: Spec, dtype: str, changes: bool) -> Spec:
    return replace(spec, dtype=dtype) if changes else spec


def halve_edges(path: Path, stage: StageDesign) -> None:
    """Makes those inputs and outputs of the graph at `path` FP16 that are so in the stage.

    Its weights stay where they are. A graph without such edges is not touched.
    """
    inputs = [spec.name for spec in stage.inputs if spec.dtype == "float16"]
    outputs = [spec.name for spec in stage.outputs if spec.dtype == "float16"]
    if not inputs and not outputs:
        return
    model = onnx.load(path, load_external_data=False)
    for names, halve in ((inputs, _Edges.halve_input), (outputs, _Edges.halve_output)):
        edges = _Edges(model.graph)
        for name in names:
            halve(edges, name)
        edges.put_back()
    onnx.save_model(model, path)


class _Edges:
    """A graph whose edges are being changed."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self._graph = graph
        self._nodes = list(graph.node)
        self._outputs = {value.name for value in graph.output}
        self._halved: set[str] = set()
        self._casts: dict[str, list[NodeProto]] = defaultdict(list)  # by what they read

    def halve_input(self, name: str) -> None:
        """Makes an input FP16."""
        self._follow(name, name, _FULL)

    def halve_output(self, name: str) -> None:
        """Makes an output FP16."""
        node, is_read = self._maker(name), self._readers(name) > 0
        if node is not None and not is_read and _casts_to(node, _FULL):  # that of an FP16 graph
            source = node.input[0]
            if not self._is_join(source):
                node.attribute[0].i = _HALF
                self._halved.add(name)
                return
            self._nodes.remove(node)
            self._rename(source, name)
            node = self._maker(name)
        if node is None or is_read or node.op_type not in _JOINS:
            self._rename(name, f"{name}.full")
            self._casts[f"{name}.full"].append(_cast(f"{name}.full", name, _HALF))
            self._halved.add(name)
            return
        self._join_halves(node)

    def put_back(self) -> None:
        """Gives the graph its nodes, and the changed values their types."""
        made = {name for node in self._nodes for name in node.output}
        nodes = [cast for name, casts in self._casts.items() if name not in made for cast in casts]
        for node in self._nodes:
            nodes.append(node)
            for name in node.output:
                nodes += self._casts.get(name, [])
        del self._graph.node[:]
        self._graph.node.extend(nodes)
        for value in (*self._graph.input, *self._graph.output, *self._graph.value_info):
            if value.name in self._halved:
                value.type.tensor_type.elem_type = _HALF

    def _follow(self, name: str, read_as: str, wanted: int) -> None:
        """Makes a value FP16, and what is cut out of it, up to what computes.

        Args:
            name: The value.
            read_as: What its readers call it: itself, or a Cast of it that is gone.
            wanted: The type that they compute in.
        """
        self._halved.add(name)
        for node in [one for one in self._nodes if read_as in one.input]:
            is_inner = self._outputs.isdisjoint(node.output)
            if is_inner and (_casts_to(node, _HALF) or _casts_to(node, _FULL)):
                self._nodes.remove(node)
                self._follow(name, node.output[0], node.attribute[0].i)
            elif is_inner and node.op_type in _PARTS and read_as not in node.input[1:]:
                node.input[0] = name
                for part in node.output:
                    self._follow(part, part, wanted)
            elif node.op_type not in ("Shape", "Size"):
                _read_instead(node, read_as, self._cast_of(name, wanted))
            else:
                _read_instead(node, read_as, name)

    def _join_halves(self, node: NodeProto) -> None:
        """Lets a node of `_JOINS` join FP16 values."""
        self._halved.update(node.output)
        for i in range(len(node.input) if node.op_type == "Concat" else 1):
            node.input[i] = self._half_of(node.input[i])

    def _half_of(self, name: str) -> str:
        """The name of a value in FP16, whose parts are made so where nothing else reads it."""
        node = self._maker(name)
        if node is not None and self._is_join(name):
            self._join_halves(node)
            return name
        return self._cast_of(name, _HALF)

    def _is_join(self, name: str) -> bool:
        """Whether a value is joined of others, or laid out anew, for a single reader."""
        node = self._maker(name)
        if node is None or name in self._outputs:
            return False
        return node.op_type in _JOINS and self._readers(name) == 1

    def _maker(self, name: str) -> NodeProto | None:
        return next((node for node in self._nodes if name in node.output), None)

    def _readers(self, name: str) -> int:
        """How often nodes read a value."""
        return sum(list(node.input).count(name) for node in self._nodes)

    def _cast_of(self, name: str, kind: int) -> str:
        """The name of a value's Cast, made where there is none yet."""
        target = f"{name}.{'half' if kind == _HALF else 'full'}"
        casts = self._casts[name]
        if all(target not in cast.output for cast in casts):
            casts.append(_cast(name, target, kind))
        return target

    def _rename(self, old: str, new: str) -> None:
        for node in self._nodes:
            _read_instead(node, old, new)
            for i, name in enumerate(node.output):
                if name == old:
                    node.output[i] = new


def _read_instead(node: NodeProto, old: str, new: str) -> None:
    for i, name in enumerate(node.input):
        if name == old:
            node.input[i] = new


def _casts_to(node: NodeProto, kind: int) -> bool:
    return node.op_type == "Cast" and node.attribute[0].i == kind


def _cast(source: str, target: str, kind: int) -> NodeProto:
    return onnx.helper.make_node("Cast", [source], [target], f"{target}.cast", to=kind)
