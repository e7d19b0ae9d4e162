"""Weights in 8 and 4 bits: what an engine rounds besides is decided here, and said."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from narrow_weights import activations, matrix, write_products

from ris.calibration.weights.graph import quantise_file
from ris.calibration.weights.groups import FORMATS, round_in_groups
from ris.engines import EngineOptions, create
from ris.engines import onnxruntime as onnxruntime_engine
from ris.engines.errors import EngineError
from ris.engines.processor import has_vnni

ENGINES = ("onnxruntime", "openvino")
EXACT = 1e-5  # relative; products in FP32
ROUNDED = 1e-3  # activations in INT8 are at least so far off


@pytest.fixture(scope="module")
def weights():
    return matrix(512, 384)


@pytest.fixture(scope="module", params=FORMATS)
def narrow(request, tmp_path_factory, weights):
    folder = tmp_path_factory.mktemp(request.param)
    graph = write_products(folder / "g.onnx", weights)
    quantise_file(graph.path, graph.path, request.param)
    return dataclasses.replace(graph, weights=request.param, cache=folder / "engines")


def error(engine, graph, weights, **options):
    """How far the engine's product is from that with the same rounded weights, and what it says."""
    pytest.importorskip(engine)
    x = activations(7, len(weights))
    rounded = round_in_groups(weights, graph.weights, 128).values().astype(np.float64)
    with create(engine, EngineOptions("cpu", max_batch=8, **options)).load(graph) as session:
        got, want = session.run({"x": x})["y"], x @ rounded
        difference = np.sqrt(np.square(got - want).mean() / np.square(want).mean())
        print(f"{engine}, {session.info.computes}: {difference:.1e}")
        return difference, session.info


@pytest.mark.parametrize("engine", ENGINES)
def test_activations_are_kept_as_they_are(engine, narrow, weights):
    found, info = error(engine, narrow, weights)
    assert found < EXACT
    assert (info.weights, info.activations) == (narrow.weights, None)
    assert info.computes == f"fp32, {narrow.weights} weights"


@pytest.mark.parametrize("engine", ENGINES)
def test_activations_are_rounded_where_that_is_asked_for_and_the_session_says_so(
    engine, narrow, weights
):
    """OpenVINO does it with VNNI alone, and says so where it does not."""
    found, info = error(engine, narrow, weights, int8_activations=True)
    rounded = engine == "onnxruntime" or has_vnni()
    assert found > ROUNDED if rounded else found < EXACT
    words = ", int8 activations" if rounded else ""
    assert info.computes == f"fp32, {narrow.weights} weights{words}"


def test_many_weights_in_8_bits_are_widened_in_each_run(narrow, weights, monkeypatch):
    """And not when the session is opened, where they would take four times the memory."""
    if narrow.weights != "int8":
        pytest.skip("only 8 bits are widened")
    engine = create("onnxruntime", EngineOptions("cpu"))
    monkeypatch.setattr(onnxruntime_engine, "MOST_WIDENED", 4 * weights.size)
    assert engine._weight_entries(narrow) == onnxruntime_engine._WIDENED_ONCE
    monkeypatch.setattr(onnxruntime_engine, "MOST_WIDENED", 4 * weights.size - 1)
    assert engine._weight_entries(narrow) == onnxruntime_engine._IN_EACH_RUN
    assert error("onnxruntime", narrow, weights)[0] < EXACT


@pytest.mark.parametrize("vnni", [False, True])
@pytest.mark.parametrize("way", ["once", "in each run", "int8 activations", "in order"])
def test_weights_are_the_same_on_a_cpu_without_vnni(narrow, weights, monkeypatch, vnni, way):
    """ONNX Runtime's care for INT8 products there breaks the groups of weights in 8 bits."""
    monkeypatch.setattr(onnxruntime_engine, "has_vnni", lambda: vnni)
    if way == "in each run":
        monkeypatch.setattr(onnxruntime_engine, "MOST_WIDENED", 0)
    if way == "in order":  # as `ris-calibrate ranges` opens graphs
        opened = onnxruntime_engine.OnnxRuntimeEngine.open_in_order
        monkeypatch.setattr(onnxruntime_engine.OnnxRuntimeEngine, "open", opened)
    rounded = way == "int8 activations"
    found, _ = error("onnxruntime", narrow, weights, int8_activations=rounded)
    assert found < (5e-2 if rounded else EXACT)


def test_openvino_compiles_both_ways_apart(narrow):
    pytest.importorskip("openvino")
    made = [
        create("openvino", EngineOptions("cpu", int8_activations=rounded)).build(narrow).artifact
        for rounded in (False, True)
    ]
    assert made[0] != made[1]


def test_a_graph_without_such_weights_says_nothing_of_them(tmp_path):
    graph = write_products(tmp_path / "g.onnx", matrix(64, 32))
    with create("onnxruntime", EngineOptions("cpu")).load(graph) as session:
        assert (session.info.weights, session.info.activations) == (None, None)
        assert session.info.computes == "fp32"


def test_an_engine_for_gpus_refuses_to_round_activations():
    pytest.importorskip("tensorrt_rtx")
    with pytest.raises(EngineError, match="has no option int8_activations"):
        create("tensorrt-rtx", EngineOptions(int8_activations=True))
