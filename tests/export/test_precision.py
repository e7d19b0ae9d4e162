"""FP16 is in the graph: weights and arithmetic are half, inputs, outputs and named islands are not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from ris.calibration.numerics.half import value_types
from ris.export.graphs import STAGES
from ris.export.precision import FP32_GRAPHS, RESIDUAL
from ris.reference.config import PRESETS
from ris.runtime import load, open_bundle
from ris.runtime.parity import load_golden, mask_iou


@pytest.fixture(scope="module")
def half(tiny_fp16_bundle):
    return open_bundle(tiny_fp16_bundle)


def types(model):
    found = value_types(model) | {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    return found | {t.name: t.data_type for t in model.graph.initializer}


HALF = [stage for stage in STAGES if stage not in FP32_GRAPHS]


def test_small_sensitive_graphs_stay_fp32_and_say_why(half):
    graphs = half.manifest.graphs
    assert graphs["mask_decoder"].precision == graphs["text_encoder"].precision == "fp32"
    assert "4.6 M weights" in graphs["mask_decoder"].fp32_islands["*"]
    assert "more mask IoU" in graphs["text_encoder"].fp32_islands["*"]
    assert [graphs[s].precision for s in HALF] == ["fp16"] * 3


@pytest.mark.parametrize("stage", HALF)
def test_weights_and_matrix_products_are_half(half, stage):
    model = onnx.load(half.graph(stage).path)
    graph, kinds = model.graph, types(model)
    islands = half.manifest.graphs[stage].fp32_islands
    heavy = [n for n in graph.node if n.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")]
    assert [n for n in heavy if n.name not in islands]
    for node in heavy:
        wrong = TensorProto.FLOAT16 if node.name in islands else TensorProto.FLOAT
        assert wrong not in [kinds[i] for i in node.input if i in kinds], node.name
    read_by_islands = {i for n in graph.node if n.name in islands for i in n.input}
    for tensor in graph.initializer:
        if np.prod(tensor.dims) > 1024 and tensor.name not in read_by_islands:
            assert tensor.data_type != TensorProto.FLOAT, tensor.name


def test_islands_are_named_with_their_reason(half):
    entries = half.manifest.graphs
    assert any("instance norm" in reason for reason in entries["fusion"].fp32_islands.values())
    assert any("group norm" in reason for reason in entries["fusion"].fp32_islands.values())
    # two residual sums a block
    for stage, blocks in (("sam_image_encoder", PRESETS["tiny"].sam.depth), ("clip_image_encoder", 3)):
        assert sum(reason == RESIDUAL for reason in entries[stage].fp32_islands.values()) == 2 * blocks
    for stage in HALF:
        model = onnx.load(half.graph(stage).path, load_external_data=False)
        names = {node.name: node for node in model.graph.node}
        kinds = types(model)
        assert set(entries[stage].fp32_islands) <= set(names)
        for name in entries[stage].fp32_islands:
            node = names[name]
            assert TensorProto.FLOAT16 not in [kinds.get(i) for i in node.input], f"{stage}: {name} is not FP32"


def test_an_island_reads_what_was_never_rounded(half):
    """No value goes to FP16 and straight back to FP32."""
    for stage in HALF:
        graph = onnx.load(half.graph(stage).path, load_external_data=False).graph
        made = {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type == "Cast" and node.attribute[0].i == TensorProto.FLOAT and node.input[0] in made:
                before = made[node.input[0]]
                assert not (before.op_type == "Cast" and before.attribute[0].i == TensorProto.FLOAT16), node.name


def test_half_the_size(half, tiny_bundle):
    def weights(bundle):
        return sum((bundle.path / f"graphs/{s}.onnx.data").stat().st_size for s in HALF)

    assert weights(half) < 0.55 * weights(open_bundle(tiny_bundle))


def test_masks_agree_with_fp32(tiny_fp16_bundle, tiny_bundle):
    golden = load_golden(open_bundle(tiny_bundle))
    expressions = [str(e) for e in golden["expressions"]]
    with load(tiny_fp16_bundle, engine="onnxruntime") as a, load(tiny_bundle, engine="onnxruntime") as b:
        for got, want in zip(
            a.encode_image(golden["rgb"]).segment_many(expressions),
            b.encode_image(golden["rgb"]).segment_many(expressions),
            strict=True,
        ):
            assert mask_iou(got.mask, want.mask) >= 0.998
