"""FP16 is in the graph: weights and arithmetic are half; inputs, outputs and islands are not."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from stages import BF16_STAGES

from ris.calibration.numerics.half import value_types
from ris.export.precision import BETWEEN, ISLAND_OPERATORS, RESIDUAL, SIGMOID
from ris.reference.dfam.config import PRESETS
from ris.runtime import load, open_bundle
from ris.runtime.comparing import mask_iou
from ris.runtime.parity import load_golden


@pytest.fixture(scope="module")
def half(tiny_fp16_bundle):
    return open_bundle(tiny_fp16_bundle)


def types(model):
    found = value_types(model) | {v.name: v.type.tensor_type.elem_type for v in model.graph.input}
    return found | {t.name: t.data_type for t in model.graph.initializer}


HALF = (*BF16_STAGES, "image_features")  # precise enough in FP16


def test_small_sensitive_graphs_stay_fp32_and_say_why(half):
    graphs = half.manifest.graphs
    assert graphs["mask_decoder"].precision == graphs["text_encoder"].precision == "fp32"
    assert "4.6 M weights" in graphs["mask_decoder"].fp32_islands["*"]
    assert "more mask IoU" in graphs["text_encoder"].fp32_islands["*"]
    assert [graphs[s].precision for s in HALF] == ["fp16"] * 4


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
    for reason in (SIGMOID, *ISLAND_OPERATORS.values()):  # they are in the graphs of any family
        assert not [word for word in ("CLIP", "SAM", "BERT", "pixel decoder") if word in reason]
    counts = {stage: Counter(entries[stage].fp32_islands.values()) for stage in HALF}
    # two residual sums a block, three operators of a QuickGELU
    assert counts["sam_image_encoder"][RESIDUAL] == 2 * PRESETS["tiny"].sam.depth
    assert counts["clip_image_encoder"][RESIDUAL] == 2 * 3
    assert counts["clip_image_encoder"][SIGMOID] == 3 * 3


def test_islands_are_not_half(half):
    for stage in HALF:
        islands = half.manifest.graphs[stage].fp32_islands
        model = onnx.load(half.graph(stage).path, load_external_data=False)
        names = {node.name: node for node in model.graph.node}
        kinds = types(model)
        assert set(islands) <= set(names)
        for name in islands:
            read = [kinds.get(value) for value in names[name].input]
            assert TensorProto.FLOAT16 not in read, f"{stage}: {name} is not FP32"


def test_what_lies_at_the_graphs_ends_is_never_half(half):
    """Pixels to the first block, the neck, PWAM and the sparse prompt: no value of them is FP16."""
    for ends in (
        ("sam_image_encoder", "image", "blocks.0.norm1.weight"),
        ("sam_image_encoder", "neck.0.weight", "image_embeddings"),
        ("clip_image_encoder", "image", "ln_pre.weight"),
        ("image_features", "clip_tokens", "pixel_values"),
        ("image_features", "clip_tokens", "pixel_queries"),
        ("fusion", "pixel_values", "pwam.project_mm.0.bias"),
        ("fusion", "sparse.ca.norm.weight", "sparse_prompt"),
    ):
        stage, first, last = ends
        model = onnx.load(half.graph(stage).path, load_external_data=False)
        kinds = types(model)
        names = _on_the_way(model.graph, first, last)
        assert len(names) > 2, ends
        assert not [name for name in names if kinds.get(name) == TensorProto.FLOAT16], ends
    # PWAM's product with the attended words, which no module's path names
    assert BETWEEN in half.manifest.graphs["fusion"].fp32_islands.values()


def _on_the_way(graph, first, last):
    """The values made from `first` that `last` is made from.

    A weight stands for the values that are made from it (first), or made where it is used (last).
    """
    after, before = {first}, {last}
    for node in graph.node:
        if not after.isdisjoint(node.input):
            after.update(node.output)
        if last in node.input:
            before.update(node.output)
    for node in reversed(graph.node):
        if node.op_type != "Shape" and not before.isdisjoint(node.output):
            before.update(node.input)
    return after & before


def test_no_cast_is_left_that_nothing_reads(half):
    for stage in HALF:
        graph = onnx.load(half.graph(stage).path, load_external_data=False).graph
        read = {name for node in graph.node for name in node.input}
        read |= {value.name for value in graph.output}
        assert not [n.name for n in graph.node if n.op_type == "Cast" and n.output[0] not in read]


def test_an_island_reads_what_was_never_rounded(half):
    """No value goes to FP16 and straight back to FP32."""
    for stage in HALF:
        graph = onnx.load(half.graph(stage).path, load_external_data=False).graph
        casts = [node for node in graph.node if node.op_type == "Cast"]
        to_half = {c.output[0] for c in casts if c.attribute[0].i == TensorProto.FLOAT16}
        for cast in casts:
            if cast.attribute[0].i == TensorProto.FLOAT:
                assert cast.input[0] not in to_half, cast.name


def test_little_more_than_half_the_size(half, tiny_bundle):
    """Islands have FP32 weights; how many at full size is in test_full_size.py."""

    def weights(bundle):
        return sum((bundle.path / f"graphs/{s}.onnx.data").stat().st_size for s in HALF)

    assert weights(half) < 0.6 * weights(open_bundle(tiny_bundle))


def test_masks_agree_with_fp32(tiny_fp16_bundle, tiny_bundle):
    golden = load_golden(open_bundle(tiny_bundle))
    expressions = [str(e) for e in golden["expressions"]]

    def answers(bundle):
        with load(bundle, engine="onnxruntime") as model:
            return model.encode_image(golden["rgb"]).segment_many(expressions)

    for got, want in zip(answers(tiny_fp16_bundle), answers(tiny_bundle), strict=True):
        assert mask_iou(got.mask, want.mask) >= 0.998
