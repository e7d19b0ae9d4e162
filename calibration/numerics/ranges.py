"""The largest magnitude of every value in a bundle's graphs, over calibration samples."""

from __future__ import annotations

import dataclasses
import json
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from ris.calibration.numerics.edges import EdgeRange, Edges, edge_sources
from ris.calibration.numerics.half import value_types
from ris.calibration.numerics.weights import content_of
from ris.calibration.samples import CalibrationSample
from ris.engines import EngineOptions, Graph, Session, TensorSpec, Value
from ris.engines.errors import BundleError, ImageError, RisError, Skipped, refuse
from ris.engines.onnxruntime import OnnxRuntimeEngine
from ris.engines.temporary import write_atomically
from ris.runtime import Bundle, Model
from ris.runtime.manifest import GraphEntry
from ris.runtime.onnx_weights import data_files

FP16_MAX = 65504.0
"""The largest finite FP16 number."""

_OUTPUT = "ris_ranges"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class TensorRange:
    """How large one value gets."""

    node: str
    """The node that writes it."""

    operator: str
    """That node's operator."""

    largest: float
    """The largest magnitude seen; inf and nan where such a number was among them."""


@dataclass(frozen=True)
class Ranges:
    """How large every value of a bundle's graphs gets."""

    stages: dict[str, dict[str, TensorRange]]
    """The ranges by stage and by the value's name."""

    samples: int
    """How many expressions were seen."""

    sha256: dict[str, dict[str, str]]
    """The hashes of each stage's files, by stage and by the file's name."""

    edges: dict[str, dict[str, EdgeRange]] = field(default_factory=dict)
    """The ranges of what a graph hands on in FP16, by stage and by the value's name."""

    def above(self, limit: float) -> list[tuple[str, str, TensorRange]]:
        """(stage, value, range) of all that are larger than `limit` or nan, the largest first."""
        found = [
            (stage, name, entry)
            for stage, entries in self.stages.items()
            for name, entry in entries.items()
            if not entry.largest <= limit
        ]
        return sorted(found, key=lambda row: -np.nan_to_num(row[2].largest, nan=np.inf))

    def edges_above(self, limit: float) -> list[tuple[str, str, EdgeRange]]:
        """(stage, value, range) of the values handed on in FP16 that are larger, or nan."""
        return [
            (stage, name, edge)
            for stage, edges in self.edges.items()
            for name, edge in edges.items()
            if not edge.largest <= limit
        ]

    def write(self, path: Path) -> None:
        """Writes sorted JSON to a temporary file, which then replaces `path`."""
        text = json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True)
        write_atomically(path, lambda file: file.write(text.encode()))


def read_ranges(path: Path) -> Ranges:
    """Reads a file of `Ranges.write`. Raises RisError for any other file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        stages = {
            stage: {name: TensorRange(**entry) for name, entry in values.items()}
            for stage, values in data["stages"].items()
        }
        edges = {
            stage: {name: EdgeRange(**edge) for name, edge in values.items()}
            for stage, values in data.get("edges", {}).items()
        }
        return Ranges(stages, int(data["samples"]), dict(data["sha256"]), edges)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = f"{type(error).__name__}: {error}"
        raise RisError(f"{path} is not a file that ris-calibrate ranges wrote ({why})") from None


def add_range_output(source: Path, target: Path) -> list[tuple[str, TensorRange]]:
    """Writes `source` to `target` with one more output: the extremes of all floating-point values.

    The output is float32 [2n], the largest and the smallest element of each of the n values in
    turn. Returns those values in the same order: their names, and ranges that are still 0.
    """
    model = onnx.load(source, load_external_data=False)
    kinds = value_types(model)
    graph = model.graph
    nodes: list[onnx.NodeProto] = []
    rows: list[str] = []
    about: list[tuple[str, TensorRange]] = []
    for node in graph.node:
        nodes.append(node)
        for name in node.output:
            kind = kinds.get(name)
            if kind in _FLOATS:
                extremes, own_rows = _extremes(name, kind == TensorProto.FLOAT16)
                nodes += extremes
                rows += own_rows
                about.append((name, TensorRange(node.name, node.op_type, 0.0)))

    nodes.append(helper.make_node("Concat", rows, [_OUTPUT], axis=0))
    graph.initializer.append(helper.make_tensor(f"{_OUTPUT}/one", TensorProto.INT64, [1], [1]))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output.append(helper.make_tensor_value_info(_OUTPUT, TensorProto.FLOAT, [len(rows)]))
    onnx.save_model(model, target)
    return about


def _extremes(name: str, is_half: bool) -> tuple[list[onnx.NodeProto], list[str]]:
    """Nodes that compute a value's largest and smallest element, and the [1] values they write."""
    nodes: list[onnx.NodeProto] = []
    rows: list[str] = []
    value = name
    if is_half:
        value = f"{name}/range_input"
        nodes.append(helper.make_node("Cast", [name], [value], to=TensorProto.FLOAT))
    for operator in ("ReduceMax", "ReduceMin"):
        row = f"{name}/{operator}"
        nodes.append(helper.make_node(operator, [value], [f"{row}/all"], keepdims=0))
        nodes.append(helper.make_node("Reshape", [f"{row}/all", f"{_OUTPUT}/one"], [row]))
        rows.append(row)
    return nodes, rows


def graph_ranges(graph: Graph, feeds: Mapping[str, Value]) -> dict[str, TensorRange]:
    """The ranges of one graph's values, by name, on one set of inputs."""
    engine = OnnxRuntimeEngine(EngineOptions("cpu"))
    with (
        tempfile.TemporaryDirectory(prefix="ris-ranges-") as folder,
        _open(engine, graph, Path(folder)) as session,
    ):
        session.run(feeds)
        return session.ranges()


def _open(engine: OnnxRuntimeEngine, graph: Graph, folder: Path) -> _RangeSession:
    """A session over the graph with its range output, which goes to `folder`."""
    path = folder / graph.path.name
    about = add_range_output(graph.path, path)
    copy_data(graph.path, folder)
    outputs = (*graph.outputs, TensorSpec(_OUTPUT, "float32", (2 * len(about),)))
    wider = dataclasses.replace(graph, path=path, outputs=outputs)
    # in order, so that a value is measured when it is there, and not kept until the end: gigabytes
    # at full size
    model = onnx.load(graph.path, load_external_data=False)
    edges = Edges(edge_sources(model), [name for name, _ in about])
    return _RangeSession(graph, engine.open_in_order(wider, path), about, edges)


class _RangeSession(Session):
    """A session that notes the ranges of each run and gives the rest of the outputs."""

    picture: str = ""
    """The sample that is run."""

    def __init__(
        self, graph: Graph, inner: Session, about: list[tuple[str, TensorRange]], edges: Edges
    ) -> None:
        super().__init__(graph, inner.info)
        self._inner, self._about, self._edges = inner, about, edges
        self._largest = np.zeros(len(about))

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        outputs = self._inner.run(feeds)
        seen = np.abs(outputs.pop(_OUTPUT).astype(np.float64)).reshape(-1, 2).max(1)
        self._largest = np.maximum(self._largest, seen)  # nan stays nan
        self._edges.look(seen, self.picture)
        return outputs

    def ranges(self) -> dict[str, TensorRange]:
        """What was seen so far, by the value's name."""
        return {
            name: dataclasses.replace(entry, largest=float(value))
            for (name, entry), value in zip(self._about, self._largest, strict=True)
        }

    def edges(self) -> dict[str, EdgeRange]:
        """The same of what the graph hands on in FP16."""
        return dict(self._edges.found)

    def _close(self) -> None:
        self._inner.close()


def measure_ranges(
    bundle: Bundle,
    samples: Iterable[CalibrationSample],
    *,
    threads: int | None = None,
    skipped: Skipped = refuse,
) -> Ranges:
    """Runs the bundle's graphs over all images and expressions with ONNX Runtime on the CPU.

    Args:
        bundle: The bundle.
        samples: The images and expressions.
        threads: CPU threads of ONNX Runtime. None: all cores.
        skipped: Gets a sentence for each image that the model does not take; the others go on.

    Raises:
        BundleError: A graph's weights are missing.
        RisError: There are no samples, and by default in place of leaving something out.
        MeasuringStopped: Ctrl-C, once a sample was asked.
    """
    engine = OnnxRuntimeEngine(EngineOptions("cpu", threads))
    sessions: dict[str, _RangeSession] = {}
    asked, stopped = [0], False
    with tempfile.TemporaryDirectory(prefix="ris-ranges-") as folder:
        try:
            for stage in bundle.stages:
                place = Path(folder) / stage
                place.mkdir()
                sessions[stage] = _open(engine, bundle.graph(stage), place)
            try:
                _run_all(bundle, sessions, samples, skipped, asked)
            except KeyboardInterrupt:
                if not sum(asked):
                    raise
                stopped = True
        finally:
            for session in sessions.values():
                session.close()

    done = sum(asked)
    if not done:
        raise RisError("there are no calibration samples")
    stages = {stage: session.ranges() for stage, session in sessions.items()}
    hashes = {entry.name: _measured(bundle, entry) for entry in bundle.manifest.stages}
    edges = {stage: found for stage, session in sessions.items() if (found := session.edges())}
    ranges = Ranges(stages, done, hashes, edges)
    if stopped:
        raise MeasuringStopped(ranges)
    return ranges


class MeasuringStopped(KeyboardInterrupt):
    """Ctrl-C in `measure_ranges`, which loses nothing."""

    def __init__(self, found: Ranges) -> None:
        super().__init__(f"stopped after {found.samples} expressions")
        self.found = found
        """Of the expressions that were asked before it, and of what was seen of the next."""


def _measured(bundle: Bundle, entry: GraphEntry) -> dict[str, str]:
    """Which graph was measured: the hashes of its own files, or of what it has where it shares one.

    An export knows the file that graphs share when all of them are written.
    """
    if all(name in (entry.file, f"{entry.file}.data") for name in entry.sha256):
        return dict(entry.sha256)
    return content_hash(bundle.path, entry.file)


def content_hash(folder: Path, file: str) -> dict[str, str]:
    """What stands in `Ranges.sha256` of a graph that shares its weights' file."""
    return {file: content_of(folder / file)}


def _run_all(
    bundle: Bundle,
    sessions: Mapping[str, _RangeSession],
    samples: Iterable[CalibrationSample],
    skipped: Skipped,
    asked: list[int],
) -> None:
    """Asks the model every sample; `asked` gets how many expressions each had."""
    with Model(bundle, sessions, max_expressions=4) as model:
        for sample in samples:
            for session in sessions.values():
                session.picture = sample.name
            categories = sample.categories if model.categories else None
            try:
                scene = model.encode_image(sample.rgb)
            except ImageError as error:
                skipped(f"{sample.name}: {error}")
                continue
            scene.segment_many(sample.expressions, categories=categories)
            asked.append(len(sample.expressions))


def copy_data(graph: Path, folder: Path) -> None:
    """Copies the data files of `graph`, if it has any, into `folder`.

    It is a copy because ONNX Runtime refuses symbolic links, and the onnx package hard ones, to the
    original too. Raises BundleError where the copy fails.
    """
    for name in data_files(graph):
        if (folder / name).exists():
            continue  # of another graph that shares it
        try:
            shutil.copyfile(graph.with_name(name), folder / name)
        except OSError as error:
            raise BundleError(
                f"{graph.with_name(name)} cannot be copied to {folder}: {error.strerror}"
            ) from None
