"""Edges of graphs that become FP16, and the casts behind and in front of them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from ris.calibration.numerics.half import emulate_half
from ris.calibration.numerics.ranges import Ranges, TensorRange
from ris.engines import TensorSpec
from ris.engines.onnx_widen import widened
from ris.export.families import DESIGNS
from ris.export.families.design import StageDesign, keep_fp32
from ris.export.families.signatures import taken
from ris.export.narrow_values import full_edges, halve_edges, halve_kept
from ris.reference.lisa.config import PRESETS

HALF, FULL = TensorProto.FLOAT16, TensorProto.FLOAT
KEPT = TensorSpec("kept", "float16", ("images", 2, 3, 4))
RNG = np.random.default_rng(0)


def design(inputs=(), outputs=()):
    return StageDesign(
        "stage", tuple(map(taken, inputs)), tuple(outputs), build=lambda *given: None
    )


def write(path, nodes, inputs, outputs, weights):
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value(name, FULL, shape) for name, shape in inputs.items()],
        [value(name, FULL, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    onnx.save_model(model, path)
    return path


def run(graph, **feeds):
    given = graph if isinstance(graph, bytes) else str(graph)
    return onnxruntime.InferenceSession(given, providers=["CPUExecutionProvider"]).run(None, feeds)


def casts(path):
    """What is cast, and to what."""
    nodes = onnx.load(path).graph.node
    return {(node.input[0], node.attribute[0].i) for node in nodes if node.op_type == "Cast"}


def reader(path, kind=FULL):
    """Two layers that take their own part of `kept` [B, 2, 3, 4]; computed in FP16 or FP32."""
    given = "kept" if kind == FULL else "kept_half"
    nodes = [
        helper.make_node("Gather", [given, "0"], ["first"], "a", axis=1),
        helper.make_node("Gather", [given, "1"], ["second"], "b", axis=1),
        helper.make_node("Transpose", ["second"], ["turned"], "c", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["first", "turned"], ["product"], "d"),
    ]
    if kind == HALF:
        nodes.insert(0, helper.make_node("Cast", ["kept"], ["kept_half"], "in", to=HALF))
    end = "Identity" if kind == FULL else "Cast"
    how = {} if kind == FULL else {"to": FULL}
    nodes.append(helper.make_node(end, ["product"], ["y"], "out", **how))
    weights = {"0": np.array(0), "1": np.array(1)}
    return write(path, nodes, {"kept": ["images", 2, 3, 4]}, {"y": ["images", 3, 3]}, weights)


def writer(path, kind=FULL):
    """A constant, and two layers' parts behind it, joined to `kept` [B, 2, 3, 4]."""
    kept = "kept" if kind == FULL else "kept_half"
    shape = {"shape": np.array([1, 2, 1, 4]), "axis": np.array([1])}
    number = np.float32 if kind == FULL else np.float16
    nodes = [
        helper.make_node(
            "Mul", [source := "x" if kind == FULL else "x_half", source], ["own"], "a"
        ),
        helper.make_node("Add", ["own", source], ["other"], "b"),
        helper.make_node("Unsqueeze", ["own", "axis"], ["own_1"], "c"),
        helper.make_node("Unsqueeze", ["other", "axis"], ["other_1"], "d"),
        helper.make_node("Concat", ["own_1", "other_1"], ["both"], "e", axis=1),
        helper.make_node("Expand", ["constant", "shape"], ["before"], "f"),
        helper.make_node("Concat", ["before", "both"], [kept], "g", axis=2),
        helper.make_node("Add", ["other", "own"], ["sum"], "h"),
        helper.make_node("Cast", ["sum"], ["y"], "i", to=FULL),
    ]
    if kind == HALF:
        nodes.insert(0, helper.make_node("Cast", ["x"], ["x_half"], "in", to=HALF))
        nodes.append(helper.make_node("Cast", ["kept_half"], ["kept"], "out", to=FULL))
    weights = shape | {"constant": RNG.normal(size=(1, 2, 1, 4)).astype(number)}
    outputs = {"kept": [1, 2, 3, 4], "y": [1, 2, 4]}
    return write(path, nodes, {"x": [1, 2, 4]}, outputs, weights)


def test_each_layer_casts_its_own_part_of_an_input(tmp_path):
    path = reader(tmp_path / "a.onnx")
    kept = RNG.normal(size=(1, 2, 3, 4)).astype(np.float16)
    [want] = run(path, kept=kept.astype(np.float32))
    halve_edges(path, design(inputs=[KEPT]))
    onnx.checker.check_model(str(path), full_check=True)
    # in front of the transposition, which belongs to its product
    assert casts(path) == {("first", FULL), ("second", FULL)}
    np.testing.assert_array_equal(run(path, kept=kept)[0], want)


def test_parts_of_an_output_are_cast_before_they_are_joined(tmp_path):
    path = writer(tmp_path / "a.onnx")
    x = RNG.normal(size=(1, 2, 4)).astype(np.float32)
    kept, y = run(path, x=x)
    halve_edges(path, design(outputs=[KEPT]))
    onnx.checker.check_model(str(path), full_check=True)
    assert casts(path) - {("sum", FULL)} == {("constant", HALF), ("own", HALF), ("other", HALF)}
    got = run(path, x=x)
    assert got[0].dtype == np.float16
    np.testing.assert_array_equal(got[0], kept.astype(np.float16))
    np.testing.assert_array_equal(got[1], y)


@pytest.mark.parametrize(
    ("make", "about", "feeds"),
    [
        (reader, {"inputs": [KEPT]}, ("kept", (1, 2, 3, 4))),
        (writer, {"outputs": [KEPT]}, ("x", (1, 2, 4))),
    ],
)
def test_fp16_graphs_are_widened_up_to_their_edges(tmp_path, make, about, feeds):
    """On a CPU they compute in FP32; what goes in and comes out stays FP16."""
    path = make(tmp_path / "half.onnx", HALF)
    before = onnx.load(path).graph
    name, shape = feeds
    value = RNG.normal(size=shape).astype(np.float16)
    want = run(path, **{name: value.astype(np.float32)})
    halve_edges(path, design(**about))
    after = onnx.load(path).graph
    # not one more than says how far the edges reach, and none of the whole value
    assert ("kept", HALF) not in casts(path)
    assert ("kept_half", FULL) not in casts(path)
    assert len(after.node) <= len(before.node) + 2
    given = value if "inputs" in about else value.astype(np.float32)
    emulate_half(path, tmp_path / "rounded.onnx")
    for graph in (path, widened(path), tmp_path / "rounded.onnx"):
        for got, one in zip(run(graph, **{name: given}), want, strict=True):
            assert (got.dtype == np.float16) == (got.shape == (1, 2, 3, 4))
            np.testing.assert_allclose(got.astype(np.float32), one, rtol=4e-3, atol=4e-3)
    wide = onnx.load_from_string(widened(path)).graph
    kinds = {v.name: v.type.tensor_type.elem_type for v in (*wide.input, *wide.output)}
    assert kinds.pop("kept") == HALF
    assert set(kinds.values()) == {FULL}


def test_an_output_that_a_node_computes_is_cast_behind_it(tmp_path):
    """Also where another node reads it."""
    nodes = [
        helper.make_node("Mul", ["x", "x"], ["kept"], "a"),
        helper.make_node("Add", ["kept", "x"], ["y"], "b"),
    ]
    shape = ["images", 2, 3, 4]
    path = write(tmp_path / "a.onnx", nodes, {"x": shape}, {"kept": shape, "y": shape}, {})
    x = RNG.normal(size=(2, 2, 3, 4)).astype(np.float32)
    halve_edges(path, design(outputs=[KEPT]))
    kept, y = run(path, x=x)
    np.testing.assert_array_equal(kept, (x * x).astype(np.float16))
    np.testing.assert_array_equal(y, x * x + x)


def test_a_graph_without_such_edges_is_not_touched(tmp_path):
    path = reader(tmp_path / "a.onnx")
    before = path.read_bytes()
    halve_edges(path, design(inputs=[replace(KEPT, dtype="float32")]))
    assert path.read_bytes() == before


LISA = DESIGNS["lisa"].stages(PRESETS["tiny-lisa"])


def halved(stages):
    return {
        spec.name
        for stage in stages
        for spec in (*stage.inputs, *stage.outputs)
        if spec.dtype == "float16"
    }


@pytest.mark.parametrize(
    ("precision", "narrow", "fp32", "kept"),
    [
        ("fp32", (), (), False),
        ("fp16", (), (), True),
        ("bf16", (), (), True),
        ("fp32", ("language_prefix", "language_question"), (), True),
        # one of the two graphs is FP32 as a whole
        ("fp32", ("language_question",), (), False),
        ("fp16", (), ("language_prefix",), False),
        ("bf16", (), ("language_question",), False),
        # asked for in FP32, whatever its matrices are stored in
        ("bf16", ("language_question",), ("language_question",), False),
        ("fp32", ("language_prefix", "language_question"), ("language_prefix",), False),
        ("bf16", ("language_question",), (), True),
    ],
)
def test_what_a_scene_keeps_is_fp16_where_both_graphs_are_narrow(precision, narrow, fp32, kept):
    stages = halve_kept(keep_fp32(LISA, fp32, precision), precision, narrow)
    assert halved(stages) == ({"prefix_keys", "prefix_values"} if kept else set())
    assert not halved(map(full_edges, stages))


@pytest.mark.parametrize("largest", [40_000.0, np.inf, np.nan])
def test_what_comes_near_the_end_of_fp16_is_kept_in_fp32(largest):
    def seen(value):
        return TensorRange("node", "Concat", value)

    measured = {"prefix_keys": seen(largest), "prefix_values": seen(30_000.0)}
    ranges = Ranges({"language_prefix": measured}, 1, {})
    assert halved(halve_kept(LISA, "fp16", (), ranges)) == {"prefix_values"}
