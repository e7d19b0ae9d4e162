"""The graphs of a bundle: each is traced, written in its precision, and checked.

A graph is checked in FP32 before its precision changes. Only where its FP32 weights would be too
many to be written, they are rounded on their way into the file; the graph is then checked against
a pass of the reference with the same matrices rounded, to the same tolerance.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import onnx

from ris.calibration.numerics.ranges import content_hash
from ris.calibration.weights.graph import quantise_file
from ris.calibration.weights.groups import Rounder, WeightFormat, nearest_levels
from ris.engines import EngineOptions, Graph, create
from ris.engines.errors import BundleError, ParityError, RisError
from ris.export import precision
from ris.export.bf16 import convert_to_bf16
from ris.export.families.design import StageDesign
from ris.export.fp16 import make_fp16
from ris.export.held import HeldBack
from ris.export.narrow_values import full_edges, halve_edges
from ris.export.onnx_writer import name_input, trace_onnx, write_onnx
from ris.export.operations import count_operations
from ris.export.options import ExportOptions
from ris.export.places import layer_places, node_places
from ris.export.reference_pass import ReferencePass
from ris.export.resizing import resize_inside
from ris.export.space import DIRECT_FROM
from ris.export.streaming import Kept, Traced
from ris.export.weights import every_tenth, require_finite, require_matrices, stored
from ris.runtime.bundle import hash_files
from ris.runtime.manifest import GraphEntry, Manifest, Precision, StageParity
from ris.runtime.manifest_weights import Rounding
from ris.runtime.parity import check_stage
from ris.runtime.tolerance import TOLERANCES, failed_rows, no_target_row, thresholded_rows

Rows = dict[str, StageParity]
"""The parity of outputs, by "stage.output"."""


@dataclass(frozen=True)
class GraphJob:
    """What all graphs of an export have in common."""

    planned: Manifest
    """The manifest as far as it is known."""

    model: Any
    """The reference model."""

    reference: ReferencePass
    """The reference pass."""

    folder: Path
    """The bundle's folder."""

    options: ExportOptions
    """The options of the export."""

    report: Callable[[str], None]
    """Called with the name of each stage, and with what takes long."""

    formats: dict[str, WeightFormat] = field(default_factory=dict)
    """What the matrices of graphs are stored in, by stage, where it is not their own precision."""

    held: HeldBack | None = None
    """The matrices that the model does not hold; None where it has all."""

    kept: Kept | None = None
    """Where a stopped export left what it wrote; None: nobody goes on with this one."""

    @property
    def rounder(self) -> Rounder:
        """How matrices are rounded."""
        return self.options.rounded or nearest_levels

    @property
    def rounding(self) -> Rounding:
        """The same in the manifest's word."""
        return "gptq" if self.options.rounded else "nearest"

    def graph(self, stage: StageDesign) -> Graph:
        """A stage's graph."""
        path = self.folder / self.planned.graphs[stage.name].file
        return Graph(stage.name, path, stage.inputs, stage.outputs, lengths=stage.lengths)

    def files(self, stage: str) -> dict[str, str]:
        """The sha256 of a graph's files: the graph, and its data where it has any."""
        graph = self.planned.graphs[stage].file
        data = f"{graph}.data"
        names = [graph, data] if (self.folder / data).exists() else [graph]
        return hash_files(self.folder, names)


class _Written(NamedTuple):
    """A graph that is written."""

    entry: GraphEntry
    """The manifest's entry."""

    rows: Rows
    """Its parity; empty where a pass with rounded matrices is needed first."""

    rounded: dict[int, WeightFormat]
    """What the model's matrices are stored in that were rounded unchecked, by their keys."""


def write_graphs(
    stages: Sequence[StageDesign],
    job: GraphJob,
    reference_pass: Callable[[], ReferencePass],
) -> tuple[tuple[GraphEntry, ...], Rows]:
    """Writes and checks every graph.

    Args:
        stages: What to write.
        job: What they have in common.
        reference_pass: Another pass of the reference over the same questions.

    Returns:
        The manifest's entries, and the parity of the graphs' outputs.

    Raises:
        ParityError: Where a graph does not agree with the reference.
        RisError: For narrow weights that there is nothing to be stored in.
    """
    (job.folder / "graphs").mkdir()
    written: list[_Written] = []
    for stage in stages:
        job.report(stage.name)
        written.append(_write(stage, job))

    rounded = _together(written)
    parity: Rows = {}
    entries: list[GraphEntry] = []
    against = _rounded_pass(job, rounded, reference_pass) if rounded else job.reference
    for stage, one in zip(stages, written, strict=True):
        entry, rows = one.entry, one.rows
        if one.rounded:
            checked = dataclasses.replace(job, reference=against)
            _check_graph(job.graph(full_edges(stage)), entry.precision, checked)
            halve_edges(job.graph(stage).path, stage)
            entry = dataclasses.replace(entry, sha256=job.files(stage.name))
            rows = _measured(job.graph(stage), job)
        entries.append(entry)
        parity |= rows
    return tuple(entries), parity


def _together(written: Sequence[_Written]) -> dict[int, WeightFormat]:
    """What matrices were rounded to, unchecked, in all graphs.

    Raises RisError where two graphs store one in two ways, which no single pass can have.
    """
    found: dict[int, WeightFormat] = {}
    for one in written:
        for key, format in one.rounded.items():
            if found.setdefault(key, format) != format:
                raise RisError(
                    f"{one.entry.name} shares matrices with another graph that stores them in"
                    f" {found[key]}; give both the same --weight-format"
                )
    return found


def _rounded_pass(
    job: GraphJob,
    formats: dict[int, WeightFormat],
    reference_pass: Callable[[], ReferencePass],
) -> ReferencePass:
    assert job.held is not None, "only matrices that are not held are rounded unchecked"
    job.report("reference pass with rounded matrices")
    with job.held.rounded(formats, job.rounder):
        return reference_pass()


def _write(stage: StageDesign, job: GraphJob) -> _Written:
    """Writes one graph in its precision, and checks it on two batch sizes where it can be."""
    graph, entry = job.graph(stage), job.planned.graphs[stage.name]
    scopes, traced, places = _trace(stage, job)
    if stage.resizes:
        scopes = resize_inside(graph.path, scopes, stage)
    if (narrow := stage.narrow_from) is not None:
        name_input(graph.path, scopes, narrow.module, narrow.value)
    # before the precision changes: the shapes and the measured graph are those of FP32
    operations = count_operations(graph.path, *stage.lengths[:1])
    parameters = precision.count_parameters(graph.path)
    entry = dataclasses.replace(entry, operations=operations, parameters=parameters)

    format = job.formats.get(stage.name)
    if traced is not None and format is not None and _weights(traced) >= DIRECT_FROM:
        return _write_rounded(stage, job, entry, traced, format)
    if traced is not None:
        traced.write(_progress(job, stage.name), job.kept)
    _require_own_ranges(job, stage)
    if format is not None:
        return _round(stage, job, entry, format, _Nodes(scopes, places))

    converted = _convert(stage, job, scopes)
    written = dataclasses.replace(
        entry,
        sha256=job.files(stage.name),
        precision=converted.precision,
        fp32_islands=converted.kept,
        parameters=precision.count_parameters(graph.path),
    )
    rows = _check_graph(graph, converted.precision, job)
    return _Written(written, converted.rounded or rows, {})


class _Nodes(NamedTuple):
    """Where the nodes of a graph come from."""

    scopes: dict[str, list[str]]
    """For every node the paths of the modules it came from."""

    places: dict[str, str]
    """For the nodes of linear layers the names of their matrices in the model."""


def _trace(
    stage: StageDesign, job: GraphJob
) -> tuple[dict[str, list[str]], Traced | None, dict[str, str]]:
    """Writes the FP32 graph.

    Returns:
        Its scopes; what is still to be written of it, where the model has not all; and as
        `_Nodes.places`.
    """
    graph, held = job.graph(stage), job.held
    traced_stage = dataclasses.replace(full_edges(stage), inputs=stage.module_inputs)
    one_image = job.planned.host.image_index is None
    if held is None:
        module = stage.build(job.model, job.options.sampling)
        scopes = write_onnx(module, traced_stage, graph.path, one_image=one_image)
        return scopes, None, node_places(scopes, layer_places(job.model, stage.name, module))
    module = held.build(lambda: stage.build(job.model, job.options.sampling))
    traced = trace_onnx(module, traced_stage, graph.path, one_image=one_image, held=held)
    places = node_places(traced.scopes, layer_places(job.model, stage.name, module))
    return traced.scopes, dataclasses.replace(traced, places=places), places


def _weights(traced: Traced) -> int:
    """The bytes of FP32 weights that are read from the model's files."""
    return sum(part.length for part in traced.parts if part.name in traced.held)


def _progress(job: GraphJob, stage: str) -> Callable[[int, int], None]:
    return every_tenth(job.report, stage)


def _write_rounded(
    stage: StageDesign,
    job: GraphJob,
    entry: GraphEntry,
    traced: Traced,
    format: WeightFormat,
) -> _Written:
    """Writes a graph whose matrices are rounded on their way into the file.

    Its edges are FP32, and its files have no sums yet: it is checked once all graphs are there.
    """
    narrow, found = traced.quantised(format, job.rounder)
    require_matrices(stage.name, found)
    narrow.write(_progress(job, stage.name), job.kept)
    rounded = {traced.held[one.name]: format for one in found.matrices}
    kept = _convert_rest(stage, job)
    return _Written(
        dataclasses.replace(
            entry,
            precision=kept.precision,
            fp32_islands=kept.kept,
            weights=stored(found, format, traced.scopes, job.rounding),
        ),
        {},
        rounded,
    )


def _round(
    stage: StageDesign,
    job: GraphJob,
    entry: GraphEntry,
    format: WeightFormat,
    nodes: _Nodes,
) -> _Written:
    """Checks the FP32 graph, and then rounds its matrices."""
    _check_graph(job.graph(full_edges(stage)), "fp32", job)
    graph = job.graph(stage)
    report = _progress(job, stage.name)
    rounding = job.rounder, nodes.places
    found = quantise_file(graph.path, graph.path, format, report, *rounding)
    require_matrices(stage.name, found)
    kept = _convert_rest(stage, job)
    halve_edges(graph.path, stage)
    written = dataclasses.replace(
        entry,
        sha256=job.files(stage.name),
        precision=kept.precision,
        fp32_islands=kept.kept,
        weights=stored(found, format, nodes.scopes, job.rounding),
    )
    return _Written(written, _measured(graph, job), {})


class _Converted(NamedTuple):
    """What became of an FP32 graph."""

    precision: Precision
    """What the graph computes in now."""

    kept: dict[str, str]
    """What stays FP32, by node name, with the reason; "*" is the whole graph."""

    rounded: Rows
    """The parity that true FP16 arithmetic gives; empty for other precisions."""


def _convert(stage: StageDesign, job: GraphJob, scopes: dict[str, list[str]]) -> _Converted:
    """Rewrites the FP32 graph's file in the precision that the options ask for.

    Args:
        stage: The graph's stage.
        job: What all graphs have in common.
        scopes: For every node the paths of the modules it came from.
    """
    graph, options = job.graph(full_edges(stage)), job.options
    if options.precision == "fp16" and "fp16" not in stage.whole:
        known = options.ranges.stages[stage.name] if options.ranges else None
        kept, rounded = make_fp16(
            graph,
            scopes,
            stage.islands,
            job.reference.first_image().arrays,
            known,
            (no_target_row(job.planned), thresholded_rows(job.planned, TOLERANCES["fp16"])),
            lambda what: job.report(f"{stage.name}: {what}"),
        )
        converted = _Converted("fp16", kept, rounded)
    else:
        converted = _convert_rest(stage, job)
    halve_edges(graph.path, stage)
    return converted


def _convert_rest(stage: StageDesign, job: GraphJob) -> _Converted:
    """The same for precisions that round weights alone; edges stay FP32."""
    asked = job.options.precision
    if asked == "fp32":
        return _Converted("fp32", {}, {})
    if (reason := stage.whole.get(asked)) is not None:
        return _Converted("fp32", {"*": reason}, {})
    if asked == "bf16":
        return _Converted("bf16", convert_to_bf16(job.graph(stage).path, stage.narrow_from), {})
    return _Converted("fp32", {}, {})


def _require_own_ranges(job: GraphJob, stage: StageDesign) -> None:
    """Raises BundleError where the ranges were measured on another graph than this one."""
    ranges = job.options.ranges
    if ranges is None:
        return
    if stage.shared_weights is None:
        own = job.files(stage.name)
    else:
        own = content_hash(job.folder, job.planned.graphs[stage.name].file)
    if ranges.sha256.get(stage.name) != own:
        raise BundleError(
            f"the ranges were measured on another {stage.name} than the one exported here; run "
            "ris-calibrate ranges on an FP32 bundle of this model with the same options"
        )


def _check_graph(graph: Graph, graph_precision: Precision, job: GraphJob) -> Rows:
    """The graph's parity over the whole reference pass.

    Raises ParityError where it does not agree there, or on a single expression.
    """
    reference, planned = job.reference, job.planned
    with _opened(graph) as session:
        rows = check_stage(graph.stage, session, reference.arrays)
        single = check_stage(graph.stage, session, reference.first_image(expressions=1).arrays)

    tolerance = TOLERANCES[graph_precision]
    special = no_target_row(planned), thresholded_rows(planned, tolerance)
    require(failed_rows(rows, tolerance, *special), graph.stage)
    require(failed_rows(single, tolerance, *special), f"{graph.stage} with batch 1")
    return rows


def _measured(graph: Graph, job: GraphJob) -> Rows:
    """What rounding its matrices cost a graph. Raises RisError where that is not finite."""
    with _opened(graph) as session:
        rows = check_stage(graph.stage, session, job.reference.arrays)
    require_finite(rows, graph.stage)
    return rows


def _opened(graph: Graph) -> Any:
    """A session of ONNX Runtime that takes the graph's weights as they are."""
    weights = onnx.load(graph.path, load_external_data=False).graph.initializer
    kinds = {tensor.data_type for tensor in weights}
    narrow = {onnx.TensorProto.INT4: "int4", onnx.TensorProto.INT8: "int8"}
    format = next((name for kind, name in narrow.items() if kind in kinds), None)
    return create("onnxruntime", EngineOptions()).load(dataclasses.replace(graph, weights=format))


def require(failures: Sequence[str], what: str, way_out: str = "") -> None:
    """Raises ParityError where there are failures."""
    if failures:
        raise ParityError(
            f"{what} does not agree with the PyTorch reference: {'; '.join(failures)}{way_out}"
        )
