"""FP16 is in the graph: weights and arithmetic are half, inputs, outputs and named islands are not."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from ris.export.graphs import STAGES
from ris.runtime import load, open_bundle
from ris.runtime.parity import load_golden, mask_iou


@pytest.fixture(scope="module")
def half(tiny_fp16_bundle):
    return open_bundle(tiny_fp16_bundle)


def types(graph):
    found = {v.name: v.type.tensor_type.elem_type for v in (*graph.value_info, *graph.input, *graph.output)}
    return found | {t.name: t.data_type for t in graph.initializer}


@pytest.mark.parametrize("stage", STAGES)
def test_weights_and_matrix_products_are_half(half, stage):
    graph = onnx.load(half.graph(stage).path).graph
    kinds = types(graph)
    entry = half.manifest.graphs[stage]
    heavy = [n for n in graph.node if n.op_type in ("MatMul", "Gemm", "Conv", "ConvTranspose")]
    assert heavy
    for node in heavy:
        assert node.name not in entry.fp32_islands
        weights = [kinds[i] for i in node.input if i in kinds]
        assert TensorProto.FLOAT not in weights, node.name
    large = [t for t in graph.initializer if np.prod(t.dims) > 1024 and t.data_type == TensorProto.FLOAT]
    assert not large


def test_islands_are_named_with_their_reason(half):
    entries = half.manifest.graphs
    assert any("instance norm" in reason for reason in entries["fusion"].fp32_islands.values())
    for stage in STAGES:
        graph = onnx.load(half.graph(stage).path, load_external_data=False).graph
        names = {node.name: node for node in graph.node}
        kinds = types(graph)
        assert set(entries[stage].fp32_islands) <= set(names)
        for name in entries[stage].fp32_islands:
            node = names[name]
            assert TensorProto.FLOAT16 not in [kinds.get(i) for i in node.input], f"{stage}: {name} is not FP32"


def test_half_the_size(half, tiny_bundle):
    def weights(bundle):
        return sum((bundle.path / f"graphs/{s}.onnx.data").stat().st_size for s in STAGES)

    assert weights(half) < 0.55 * weights(open_bundle(tiny_bundle))


def test_masks_agree_with_fp32(tiny_fp16_bundle, tiny_bundle):
    golden = load_golden(open_bundle(tiny_bundle))
    expressions = [str(e) for e in golden["expressions"]]
    with load(tiny_fp16_bundle) as a, load(tiny_bundle) as b:
        for got, want in zip(
            a.encode_image(golden["rgb"]).segment_many(expressions),
            b.encode_image(golden["rgb"]).segment_many(expressions),
            strict=True,
        ):
            assert mask_iou(got.mask, want.mask) >= 0.998
