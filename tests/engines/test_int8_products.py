"""INT8 products keep their sums, although CPUs without VNNI would add pairs of them in 16 bits."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from ris.engines import EngineOptions, Graph, TensorSpec, create

ROWS, LENGTH, COLUMNS = 16, 64, 32


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def product(folder, weights):
    """y = x W as `ris-calibrate int8` writes it, all scales 1: x is rounded to int8, W is int8."""
    values = {
        "one": np.float32(1),
        "zero": np.int8(0),
        "w": weights,
        "w_scales": np.ones(COLUMNS, np.float32),
        "w_zeros": np.zeros(COLUMNS, np.int8),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["x_int8"]),
        helper.make_node("DequantizeLinear", ["x_int8", "one", "zero"], ["x_back"]),
        helper.make_node("DequantizeLinear", ["w", "w_scales", "w_zeros"], ["w_back"], axis=1),
        helper.make_node("MatMul", ["x_back", "w_back"], ["y"]),
    ]
    shapes = {"x": (ROWS, LENGTH), "y": (ROWS, COLUMNS)}
    inputs, outputs = (
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shapes[name])] for name in "xy"
    )
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "product", inputs, outputs, stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "product.onnx")
    specs = [(TensorSpec(name, "float32", shapes[name]),) for name in "xy"]
    return Graph("product", folder / "product.onnx", *specs, int8=True)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("values", ["largest", "random"])
def test_sums_do_not_overflow(tmp_path, engine, values):
    pytest.importorskip(engine)
    says = "int8"
    if engine == "openvino":
        from ris.engines.openvino_layers import int8_overflows

        says = "fp32" if int8_overflows() else "int8"
    rng = np.random.default_rng(0)
    x = np.full((ROWS, LENGTH), 127, np.float32)
    weights = np.full((LENGTH, COLUMNS), 127, np.int8)
    if values == "random":
        x = rng.integers(-127, 128, x.shape).astype(np.float32)
        weights = rng.integers(-127, 128, weights.shape).astype(np.int8)
    graph = product(tmp_path, weights)
    runner = create(engine, EngineOptions())
    with runner.open(graph, runner.compile(graph)) as session:
        np.testing.assert_array_equal(session.run({"x": x})["y"], x @ weights.astype(np.float32))
        assert session.info.precision == says


def convolution_of_joined_values(folder, between):
    """A 3x3 convolution in INT8 of two maps that a Concat joins; all scales 1.

    between: an operator behind the Concat.
    """
    rng = np.random.default_rng(1)
    values = {
        "one": np.float32(1),
        "zero": np.int8(0),
        "w": rng.integers(-127, 128, (8, 16, 3, 3)).astype(np.int8),
        "w_scales": np.ones(8, np.float32),
        "w_zeros": np.zeros(8, np.int8),
    }
    nodes = [
        helper.make_node("Concat", ["a", "b"], ["joined"], axis=1),
        helper.make_node(between, ["joined"], ["x"]),
        helper.make_node("QuantizeLinear", ["x", "one", "zero"], ["x_int8"]),
        helper.make_node("DequantizeLinear", ["x_int8", "one", "zero"], ["x_back"]),
        helper.make_node("DequantizeLinear", ["w", "w_scales", "w_zeros"], ["w_back"], axis=0),
        helper.make_node("Conv", ["x_back", "w_back"], ["y"], pads=[1, 1, 1, 1]),
    ]
    shapes = {"a": (1, 8, 12, 12), "b": (1, 8, 12, 12), "y": (1, 8, 12, 12)}
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, s) for name, s in shapes.items()]
    stored = [numpy_helper.from_array(np.asarray(value), name) for name, value in values.items()]
    graph = helper.make_graph(nodes, "joined", made[:2], made[2:], stored)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.save(model, folder / "joined.onnx")
    specs = [TensorSpec(name, "float32", shape) for name, shape in shapes.items()]
    return Graph("joined", folder / "joined.onnx", tuple(specs[:2]), (specs[2],), int8=True)


@pytest.mark.parametrize("between", ["Identity", "Relu"])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_convolution_of_joined_values_is_right(tmp_path, engine, between):
    """OpenVINO by itself quantises what is joined, and gets it wrong by a third."""
    pytest.importorskip(engine)
    graph = convolution_of_joined_values(tmp_path, between)
    rng = np.random.default_rng(0)
    maps = {name: rng.integers(-127, 128, (1, 8, 12, 12)).astype(np.float32) for name in "ab"}
    weights = numpy_helper.to_array(onnx.load(graph.path).graph.initializer[2])
    joined = torch.from_numpy(np.concatenate([maps["a"], maps["b"]], 1))
    joined = joined.relu() if between == "Relu" else joined
    want = torch.nn.functional.conv2d(
        joined, torch.from_numpy(weights.astype(np.float32)), padding=1
    )
    runner = create(engine, EngineOptions())
    with runner.open(graph, runner.compile(graph)) as session:
        np.testing.assert_array_equal(session.run(maps)["y"], want.numpy())


def test_openvino_compiles_int8_graphs_for_what_the_cpu_can(tmp_path, monkeypatch):
    """With and without VNNI, told apart in the cache; graphs without INT8 products are the same."""
    openvino = pytest.importorskip("openvino")
    from ris.engines import openvino as module

    asked = []
    compiles = openvino.Core.compile_model

    def compile_model(core, model, device, settings):
        asked.append(settings)
        return compiles(core, model, device, settings)

    monkeypatch.setattr(openvino.Core, "compile_model", compile_model)
    graph = product(tmp_path, np.full((LENGTH, COLUMNS), 3, np.int8))
    plain = Graph("plain", graph.path, graph.inputs, graph.outputs)
    built = []
    for overflows in (True, False):
        monkeypatch.setattr(module, "int8_overflows", lambda overflows=overflows: overflows)
        for one in (graph, plain):
            engine = create("openvino")
            made = engine.build(one)
            built.append(made.artifact)
            with engine.open(one, made.artifact) as session:
                widened = overflows and one is graph
                assert ("CPU int8" in session.info.nodes) != widened
                assert session.info.precision == ("fp32" if widened else "int8")
    assert ["LP_TRANSFORMS_MODE" in settings for settings in asked] == [True, False, False]
    assert len(set(built)) == 3
