"""Graphs that share a file of weights: what both have is there once, and nothing else changes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ris.calibration.numerics.weights import content_of, load_whole
from ris.engines import EngineOptions, Graph, TensorSpec, create
from ris.export.precision import save_with_data
from ris.export.sharing import share_weights
from ris.runtime.bundle import hash_files, open_bundle
from ris.runtime.manifest import GraphEntry
from ris.runtime.manifest_kinds import Taken
from ris.runtime.onnx_weights import data_files

X = TensorSpec("x", "float32", ("expressions", 32))
BASE = GraphEntry("", "", {}, "fp32", {}, (Taken("x", "float32", X.shape, "x"),), (), 0, None)


def drawn(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def write(folder, name: str, *matrices: np.ndarray) -> GraphEntry:
    """A graph that multiplies by each matrix in turn, with its weights in a file beside it."""
    nodes, values = [], ["x", *(f"v{i}" for i in range(len(matrices) - 1)), "y"]
    for i in range(len(matrices)):
        nodes.append(helper.make_node("MatMul", [values[i], f"w{i}"], [values[i + 1]]))
    weights = [numpy_helper.from_array(m, f"w{i}") for i, m in enumerate(matrices)]
    ends = [
        helper.make_tensor_value_info(end, TensorProto.FLOAT, ["n", size])
        for end, size in (("x", 32), ("y", matrices[-1].shape[1]))
    ]
    graph = helper.make_graph(nodes, name, ends[:1], ends[1:], weights)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    (folder / "graphs").mkdir(exist_ok=True)
    file = f"graphs/{name}.onnx"
    save_with_data(model, folder / file)
    return replace(
        BASE,
        name=name,
        file=file,
        sha256=hash_files(folder, [file, f"{file}.data"]),
        outputs=(TensorSpec("y", "float32", ("expressions", matrices[-1].shape[1])),),
    )


def run(folder, entry: GraphEntry) -> np.ndarray:
    graph = Graph(entry.name, folder / entry.file, entry.inputs, entry.outputs)
    with create("onnxruntime", EngineOptions()).load(graph) as session:
        return session.run({"x": drawn(9, 3, 32)})["y"]


def test_what_both_have_is_there_once(tmp_path):
    common = drawn(0, 32, 32)
    entries = [
        write(tmp_path, "first", common, drawn(1, 32, 48)),
        write(tmp_path, "second", drawn(2, 32, 32), common, common),
        write(tmp_path, "other", common),
    ]
    before = [run(tmp_path, entry) for entry in entries]
    contents = [content_of(tmp_path / entry.file) for entry in entries]
    weights = [load_whole(tmp_path / entry.file) for entry in entries]
    found = share_weights(tmp_path, entries, {"first": "both.data", "second": "both.data"})

    assert found[2] is entries[2]
    shared = tmp_path / "graphs" / "both.data"
    own = {file.name for file in (tmp_path / "graphs").iterdir()}
    graphs = {f"{entry.name}.onnx" for entry in entries}
    assert own == graphs | {"both.data", "other.onnx.data"}
    # three tensors, each from a page's beginning on
    assert shared.stat().st_size == 4096 + 8192 + common.nbytes
    for entry, want, content, whole in zip(found, before, contents, weights, strict=True):
        np.testing.assert_array_equal(run(tmp_path, entry), want)
        assert content_of(tmp_path / entry.file) == content
        assert entry.sha256 == hash_files(tmp_path, list(entry.sha256))
        assert load_whole(tmp_path / entry.file) == whole
    for entry in found[:2]:
        assert data_files(tmp_path / entry.file) == ["both.data"]
        assert set(entry.sha256) == {entry.file, "graphs/both.data"}


def test_a_graph_alone_keeps_its_file(tmp_path):
    entry = write(tmp_path, "first", drawn(0, 32, 32))
    assert share_weights(tmp_path, [entry], {"first": "both.data"}) == (entry,)
    assert data_files(tmp_path / entry.file) == ["first.onnx.data"]


def test_another_weight_is_another_graph(tmp_path):
    one = write(tmp_path, "first", drawn(0, 32, 32))
    two = write(tmp_path, "second", drawn(1, 32, 32))
    assert content_of(tmp_path / one.file) != content_of(tmp_path / two.file)


@pytest.mark.parametrize("precision", ["", "half_", "bf16_"])
def test_the_language_models_two_graphs_share_their_file(precision, request):
    bundle = open_bundle(request.getfixturevalue(f"lisa_{precision}bundle"))
    sizes = 0
    for stage in ("language_prefix", "language_question"):
        entry = bundle.manifest.graphs[stage]
        path = bundle.file(entry.file)
        assert set(entry.sha256) == {entry.file, "graphs/language.data"}
        assert data_files(path) == ["language.data"]
        tensors = onnx.load(path, load_external_data=False).graph.initializer
        lengths = [
            int(e.value) for tensor in tensors for e in tensor.external_data if e.key == "length"
        ]
        sizes += sum(lengths)
    shared = bundle.file("graphs/language.data").stat().st_size
    assert shared < 0.75 * sizes
