"""The largest magnitude of every value in a bundle's graphs, over calibration samples."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper

from ris.calibration.numerics.half import value_types
from ris.calibration.samples import CalibrationSample
from ris.engines import EngineOptions, Graph, Session, TensorSpec, Value
from ris.engines.errors import BundleError, RisError
from ris.engines.onnxruntime import OnnxRuntimeEngine
from ris.runtime import Bundle, Model
from ris.runtime.bundle import STAGES

FP16_MAX = 65504.0
_OUTPUT = "ris_ranges"
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16)


@dataclass(frozen=True)
class TensorRange:
    """One value: the node that writes it, that node's operator, and the largest magnitude seen (inf
    and nan count).
    """

    node: str
    operator: str
    largest: float


@dataclass(frozen=True)
class Ranges:
    """stages: by stage and by the value's name; samples: expressions seen; sha256: of each stage's
    files, by name.
    """

    stages: dict[str, dict[str, TensorRange]]
    samples: int
    sha256: dict[str, dict[str, str]]

    def above(self, limit: float) -> list[tuple[str, str, TensorRange]]:
        """(stage, value, range) of all that reach beyond `limit` or are no number, the largest
        first.
        """
        found = [
            (stage, name, entry)
            for stage, entries in self.stages.items()
            for name, entry in entries.items()
            if not entry.largest <= limit
        ]
        return sorted(found, key=lambda row: -np.nan_to_num(row[2].largest, nan=np.inf))

    def write(self, path: Path) -> None:
        """As JSON, sorted, to a temporary file that then takes the old one's place."""
        temporary = path.with_name(path.name + ".part")
        temporary.write_text(
            json.dumps(dataclasses.asdict(self), indent=1, sort_keys=True), encoding="utf-8"
        )
        os.replace(temporary, path)


def read_ranges(path: Path) -> Ranges:
    """The inverse of `Ranges.write`. Raises RisError for a file that is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        stages = {
            s: {n: TensorRange(**entry) for n, entry in values.items()}
            for s, values in data["stages"].items()
        }
        return Ranges(stages, int(data["samples"]), dict(data["sha256"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RisError(
            f"{path} is not a file that ris-calibrate ranges wrote ({type(error).__name__}:"
            f" {error})"
        ) from None


def add_range_output(source: Path, target: Path) -> list[tuple[str, TensorRange]]:
    """Writes `source` to `target` with one more output: float32 [2n], the largest and the smallest
    of n values each.

    Returns which values those are: names, and ranges that have no number yet. They are all that is
    floating-point.
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
            if kinds.get(name) not in _FLOATS:
                continue
            value = name
            if kinds[name] == TensorProto.FLOAT16:
                value = f"{name}/range_input"
                nodes.append(helper.make_node("Cast", [name], [value], to=TensorProto.FLOAT))
            for operator in ("ReduceMax", "ReduceMin"):
                row = f"{name}/{operator}"
                nodes.append(helper.make_node(operator, [value], [f"{row}/all"], keepdims=0))
                nodes.append(helper.make_node("Reshape", [f"{row}/all", f"{_OUTPUT}/one"], [row]))
                rows.append(row)
            about.append((name, TensorRange(node.name, node.op_type, 0.0)))
    graph.initializer.append(helper.make_tensor(f"{_OUTPUT}/one", TensorProto.INT64, [1], [1]))
    nodes.append(helper.make_node("Concat", rows, [_OUTPUT], axis=0))
    del graph.node[:]
    graph.node.extend(nodes)
    graph.output.append(helper.make_tensor_value_info(_OUTPUT, TensorProto.FLOAT, [len(rows)]))
    onnx.save_model(model, target)
    return about


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
    about = add_range_output(graph.path, folder / graph.path.name)
    copy_data(graph.path, folder)
    outputs = (*graph.outputs, TensorSpec(_OUTPUT, "float32", (2 * len(about),)))
    wider = dataclasses.replace(graph, path=folder / graph.path.name, outputs=outputs)
    # in order, so that a value is measured when it is there, and not kept until the end: gigabytes
    # at full size
    return _RangeSession(graph, engine.open_in_order(wider, wider.path), about)


class _RangeSession(Session):
    """A session that notes the ranges of each run and gives the rest of the outputs."""

    def __init__(self, graph: Graph, inner: Session, about: list[tuple[str, TensorRange]]) -> None:
        super().__init__(graph, inner.info)
        self._inner, self._about = inner, about
        self._largest = np.zeros(len(about))

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        outputs = self._inner.run(feeds)
        seen = np.abs(outputs.pop(_OUTPUT).astype(np.float64)).reshape(-1, 2).max(1)
        self._largest = np.maximum(self._largest, seen)  # nan stays nan
        return outputs

    def ranges(self) -> dict[str, TensorRange]:
        """What was seen so far, by the value's name."""
        return {
            name: dataclasses.replace(entry, largest=float(value))
            for (name, entry), value in zip(self._about, self._largest, strict=True)
        }

    def close(self) -> None:
        self._inner.close()


def measure_ranges(
    bundle: Bundle, samples: Iterable[CalibrationSample], *, threads: int | None = None
) -> Ranges:
    """Runs the bundle's graphs over all images and expressions with ONNX Runtime on the CPU.

    Raises BundleError where a graph's weights are missing, RisError without samples.
    """
    engine = OnnxRuntimeEngine(EngineOptions("cpu", threads))
    sessions: dict[str, _RangeSession] = {}
    done = 0
    with tempfile.TemporaryDirectory(prefix="ris-ranges-") as folder:
        try:
            for stage in STAGES:
                place = Path(folder) / stage
                place.mkdir()
                sessions[stage] = _open(engine, bundle.graph(stage), place)
            with Model(bundle, sessions, max_expressions=4) as model:
                for sample in samples:
                    categories = sample.categories if model.categories else None
                    model.encode_image(sample.rgb).segment_many(
                        sample.expressions, categories=categories
                    )
                    done += len(sample.expressions)
        finally:
            for session in sessions.values():
                session.close()
    if not done:
        raise RisError("there are no calibration samples")
    stages = {stage: session.ranges() for stage, session in sessions.items()}
    hashes = {stage: dict(bundle.manifest.graphs[stage].sha256) for stage in STAGES}
    return Ranges(stages, done, hashes)


def copy_data(graph: Path, folder: Path) -> None:
    """Copies the data file beside `graph`, if it has one, into `folder`.

    Links would do, but ONNX Runtime refuses symbolic ones and the onnx package hard ones, to the
    original too.
    """
    data = graph.with_name(graph.name + ".data")
    if not data.exists():
        return
    try:
        shutil.copyfile(data, folder / data.name)
    except OSError as error:
        raise BundleError(f"{data} cannot be copied to {folder}: {error.strerror}") from None
