"""Operations are those that torch counts, and bfloat16 bundles hold what they say."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from stages import BF16_STAGES, STAGES
from torch.utils.flop_counter import FlopCounterMode

from ris.engines import create
from ris.export.bf16 import MULTIPLY, convert_to_bf16
from ris.export.families import DESIGNS
from ris.export.onnx_writer import trace_inputs
from ris.export.operations import count_operations
from ris.reference.dfam.config import PRESETS
from ris.reference.dfam.deterministic import deterministic_model
from ris.runtime import open_bundle
from ris.runtime.comparing import compare
from ris.runtime.manifest import Operations
from ris.runtime.parity import graph_feeds, load_golden


@pytest.fixture(scope="module")
def reference():
    return deterministic_model(PRESETS["tiny"])


@pytest.mark.parametrize("stage", STAGES)
def test_the_count_is_torchs(tiny_bundle, reference, stage):
    [design] = [one for one in DESIGNS["dfam"].stages(reference.config) if one.name == stage]
    inputs = trace_inputs(design)  # two images, three expressions
    module = design.build(reference, "native")
    with FlopCounterMode(display=False) as counted, torch.no_grad():
        module(**inputs)
    operations = open_bundle(tiny_bundle).manifest.graphs[stage].operations
    assert operations.of(2, 3) == counted.get_total_flops()
    assert operations.fixed == 0


def tensor(array, name):
    return numpy_helper.from_array(array.astype(np.float32), name)


def initializers(graph):
    return {tensor.name: tensor for tensor in onnx.load(graph.path).graph.initializer}


def test_each_operator(tmp_path):
    def value(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    weights = {"conv": (8, 3, 3, 3), "up": (8, 4, 2, 2), "gemm": (5, 6)}
    nodes = [
        helper.make_node("Conv", ["x", "conv"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["a", "up"], ["b"], strides=[2, 2]),
        helper.make_node("Gemm", ["g", "gemm"], ["c"], transA=1),
        helper.make_node("MatMul", ["c", "m"], ["d"]),
    ]
    graph = helper.make_graph(
        nodes,
        "all",
        [value("x", "images", 3, 10, 10), value("g", 5, 7), value("m", 6, 9)],
        [value("b", "images", 4, 20, 20), value("d", 7, 9)],
        [tensor(np.zeros(shape), name) for name, shape in weights.items()],
        value_info=[value("a", "images", 8, 10, 10), value("c", 7, 6)],
    )
    path = tmp_path / "all.onnx"
    onnx.save(helper.make_model(graph), path)
    fixed = 2 * (7 * 6 * 5 + 7 * 9 * 6)
    image = 2 * (8 * 10 * 10 * 3 * 9 + 8 * 10 * 10 * 4 * 4)
    assert count_operations(path) == Operations(fixed, image, 0)

    del graph.value_info[:]
    onnx.save(helper.make_model(graph), path)
    with pytest.raises(ValueError, match="the shape of 'a', at Conv"):
        count_operations(path)


def test_an_axis_of_tokens_is_counted_at_the_length_that_is_asked_for(tmp_path):
    """What was kept is joined with a question's own: a sum of an axis and a number."""

    def value(name, *shape):
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    nodes = [
        helper.make_node("MatMul", ["x", "kept"], ["before"]),
        helper.make_node("Concat", ["before", "own"], ["both"], axis=2),
        helper.make_node("MatMul", ["both", "v"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "question",
        [
            value("x", "expressions", "tokens", 6),
            value("kept", 6, 50),
            value("own", "expressions", "tokens", "tokens"),
            value("v", "expressions", "tokens + 50", 3),
        ],
        [value("y", "expressions", "tokens", 3)],
        value_info=[
            value("before", "expressions", "tokens", 50),
            value("both", "expressions", "tokens", "tokens + 50"),
        ],
    )
    path = tmp_path / "question.onnx"
    onnx.save(helper.make_model(graph), path)
    for tokens in (24, 64):
        expression = 2 * (tokens * 50 * 6 + tokens * 3 * (tokens + 50))
        assert count_operations(path, tokens) == Operations(0, 0, expression)

    graph.value_info[1].type.tensor_type.shape.dim[2].dim_param = "tokens + expressions"
    onnx.save(helper.make_model(graph), path)
    with pytest.raises(ValueError, match=r"the axis 'tokens \+ expressions' is not made of one of"):
        count_operations(path)


def test_bfloat16_weights(tiny_bundle, tiny_bf16_bundle):
    full = open_bundle(tiny_bundle).graph("sam_image_encoder")
    narrow = open_bundle(tiny_bf16_bundle).graph("sam_image_encoder")
    assert narrow.precision == "bf16"
    before_size, after_size = (
        sum(file.stat().st_size for file in graph.path.parent.glob("sam_image_encoder*"))
        for graph in (full, narrow)
    )
    assert after_size < 0.7 * before_size

    before, after = initializers(full), initializers(narrow)
    changed = {name.removesuffix(".bf16") for name in after if name.endswith(".bf16")}
    assert changed
    for name in changed:
        want = numpy_helper.to_array(before[name])
        got = numpy_helper.to_array(after[f"{name}.bf16"])
        np.testing.assert_array_equal(got, want.astype(ml_dtypes.bfloat16))
    assert all(before[name] == after[name] for name in before.keys() - changed)
    onnx.checker.check_model(str(narrow.path))


def test_a_bfloat16_bundle(tiny_bundle, tiny_bf16_bundle):
    manifest = open_bundle(tiny_bf16_bundle).manifest
    assert manifest.precision == "bf16"
    precisions = {stage: entry.precision for stage, entry in manifest.graphs.items()}
    assert precisions == dict.fromkeys(STAGES, "fp32") | dict.fromkeys(BF16_STAGES, "bf16")
    assert list(manifest.graphs["mask_decoder"].fp32_islands) == ["*"]
    assert 0.99 < manifest.mask_iou <= 1

    # in the fusion it begins behind PWAM; the sparse branch does not depend on that
    kept = manifest.graphs["fusion"].fp32_islands
    path = open_bundle(tiny_bf16_bundle).graph("fusion").path
    nodes = onnx.load(path, load_external_data=False).graph.node
    assert set(kept) <= {node.name for node in nodes if node.op_type in MULTIPLY}
    assert len(kept) >= 8
    cast = [node.input[0] for node in nodes if node.op_type == "Cast"]
    narrow = {name for name in cast if name.endswith(".bf16")}
    assert not any(name.startswith(("pwam.", "sparse.")) for name in narrow)
    assert sum(name.startswith("pyramid.") for name in narrow) == 7

    # ONNX Runtime folds the casts: as many nodes run as of the FP32 graph
    engine = create("onnxruntime")
    counts = []
    for bundle in (tiny_bundle, tiny_bf16_bundle):
        graph = open_bundle(bundle).graph("sam_image_encoder")
        with engine.open(graph, graph.path) as session:
            assert session.info.precision == "fp32"
            assert list(session.info.nodes) == ["CPUExecutionProvider"]
            counts.append(session.info.nodes["CPUExecutionProvider"])
    assert counts[1] == pytest.approx(counts[0], abs=2)
    assert counts[0] > 100


def test_one_weight_used_twice_is_widened_once(tmp_path):
    weight = tensor(np.full((4, 4), 1.001), "w")
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, (4, 4)) for name in "xy"]
    graph = helper.make_graph(nodes, "a", values[:1], values[1:], [weight])
    path = tmp_path / "a.onnx"
    onnx.save(helper.make_model(graph), path)
    convert_to_bf16(path)
    assert [n.op_type for n in onnx.load(path).graph.node] == ["Cast", "MatMul", "MatMul"]


def test_it_runs_in_bfloat16_on_openvino(tiny_bf16_bundle, tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    bundle = open_bundle(tiny_bf16_bundle)
    graph = replace(bundle.graph("clip_image_encoder"), cache=None)
    engine = create("openvino")
    with engine.open(graph, engine.compile(graph)) as session:
        there = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        assert session.info.precision == ("bf16" if there else "fp32")
        golden = load_golden(bundle)
        got = session.run(graph_feeds(graph, golden))["clip_tokens"]
    assert compare(got, golden["clip_tokens"]).relative < 2e-2
