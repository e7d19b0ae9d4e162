"""What is in the exported graphs, and what must not be (docs/reference/design.md, The five
graphs).
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from ris.engines import create
from ris.export.graphs import STAGES, signature
from ris.reference.config import PRESETS
from ris.runtime import open_bundle

BUNDLES = ["tiny_bundle", "tiny_fp16_bundle", "tiny_category_bundle", "tiny_supplement_bundle"]


@pytest.fixture(params=BUNDLES)
def bundle(request):
    return open_bundle(request.getfixturevalue(request.param))


def graph_of(bundle, stage, data=False):
    return onnx.load(bundle.graph(stage).path, load_external_data=data)


def operators(bundle, stage):
    return Counter(node.op_type for node in graph_of(bundle, stage).graph.node)


@pytest.mark.parametrize("stage", STAGES)
def test_the_graph_is_valid_opset_20(bundle, stage):
    onnx.checker.check_model(str(bundle.graph(stage).path))
    model = graph_of(bundle, stage)
    assert [(o.domain, o.version) for o in model.opset_import] == [("", 20)]
    assert not model.functions


@pytest.mark.parametrize("stage", STAGES)
def test_inputs_and_outputs_are_the_manifests(bundle, stage):
    model = graph_of(bundle, stage).graph
    kinds = {TensorProto.FLOAT: "float32", TensorProto.INT32: "int32"}

    def described(values):
        return [
            (
                v.name,
                kinds[v.type.tensor_type.elem_type],
                tuple(d.dim_param or d.dim_value for d in v.type.tensor_type.shape.dim),
            )
            for v in values
        ]

    entry = bundle.manifest.graphs[stage]
    assert described(model.input) == [(s.name, s.dtype, s.shape) for s in entry.inputs]
    assert described(model.output) == [(s.name, s.dtype, s.shape) for s in entry.outputs]


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_of_the_machine_that_exported_it(bundle, stage):
    text = bundle.graph(stage).path.read_bytes()
    for trace in (b".py", b"site-packages", b"/home", b"stack_trace"):
        assert trace not in text


def test_traps_are_avoided(bundle):
    """No loops, conditions or data-dependent shapes; no fused Attention; channel LayerNorm stays
    one operator.
    """
    every = sum((operators(bundle, stage) for stage in STAGES), Counter())
    for trap in (
        "Loop",
        "If",
        "Scan",
        "NonZero",
        "Attention",
        "ScatterND",
        "ScatterElements",
        "Where_finfo",
        "Tile",
    ):
        assert not every[trap], trap
    # blocks, two in the neck; text: embeddings and two a layer; decoder: nine in the transformer,
    # one upscaling
    assert operators(bundle, "sam_image_encoder")["LayerNormalization"] == 2 * 3 + 2
    assert operators(bundle, "mask_decoder")["LayerNormalization"] == 9 + 1


def test_sampling_is_native_or_gathers(bundle):
    ops, sampling = operators(bundle, "fusion"), bundle.manifest.graphs["fusion"].sampling
    assert (ops["GridSample"] > 0) == (sampling == "native")
    if sampling == "gather":
        assert ops["Gather"] >= 4 * 3 * PRESETS["tiny"].deformable_layers


def test_masks_fit_into_fp16(bundle):
    """No constant beyond FP16's range: attention masks are -1e4, not finfo.min."""
    for stage in STAGES:
        for tensor in graph_of(bundle, stage, data=True).graph.initializer:
            if tensor.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16):
                assert np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0) < 65504


def test_no_dead_weights(tiny_bundle, tiny_category_bundle):
    """docs/reference/models/dfam.md 17: the category variant has no DFAM and no SAM pyramid,
    neither has the unused CLIP path.
    """

    def weights(bundle, stage):
        return [t.name for t in graph_of(open_bundle(bundle), stage).graph.initializer]

    def used(bundle, stage):
        return {
            name for node in graph_of(open_bundle(bundle), stage).graph.node for name in node.input
        }

    for bundle in (tiny_bundle, tiny_category_bundle):
        for stage in STAGES:
            assert not [n for n in weights(bundle, stage) if n not in used(bundle, stage)]
    count = {
        b: open_bundle(b).manifest.graphs["fusion"].parameters
        for b in (tiny_bundle, tiny_category_bundle)
    }
    model_dfam = 300_000  # DFAM and SAM pyramid of the tiny preset, roughly
    assert count[tiny_bundle] - count[tiny_category_bundle] > model_dfam
    assert not [
        n for n in weights(tiny_category_bundle, "fusion") if "dfam" in n or "sam_pyramid" in n
    ]
    assert not [n for n in weights(tiny_bundle, "fusion") if "layers2.0" in n or "layers2.1" in n]
    assert not [n for n in weights(tiny_bundle, "mask_decoder") if "iou" in n or "mlps.1" in n]


@pytest.mark.parametrize(("images", "expressions"), [(1, 1), (1, 4), (3, 1), (2, 5)])
def test_any_batch(tiny_bundle, tiny_supplement_bundle, images, expressions):
    """Every expression of a batch comes out as if it were alone."""
    engine = create("onnxruntime")
    rng = np.random.default_rng(0)
    for path in (tiny_bundle, tiny_supplement_bundle):
        bundle = open_bundle(path)
        for stage in (
            "sam_image_encoder",
            "clip_image_encoder",
            "text_encoder",
            "fusion",
            "mask_decoder",
        ):
            graph = bundle.graph(stage)
            sizes = {"images": images, "expressions": expressions}
            feeds = {}
            for spec in graph.inputs:
                shape = [sizes.get(d, d) for d in spec.shape]
                if spec.name == "image_index":
                    feeds[spec.name] = np.arange(expressions, dtype=np.int32) % images
                elif spec.dtype == "int32":
                    feeds[spec.name] = rng.integers(1, 200, shape, dtype=np.int32)
                elif spec.name == "text_mask":
                    feeds[spec.name] = np.ones(shape, np.float32)
                else:
                    feeds[spec.name] = rng.standard_normal(shape, dtype=np.float32)
            with engine.open(graph, graph.path) as session:
                together = session.run(feeds)
                last = {k: v[-1:] for k, v in feeds.items()}
                if "image_index" in feeds:
                    of_image = int(feeds["image_index"][-1])
                    for spec in graph.inputs:
                        if spec.shape[0] == "images":
                            last[spec.name] = feeds[spec.name][of_image : of_image + 1]
                    last["image_index"] = np.zeros(1, np.int32)
                alone = session.run(last)
            for name, value in together.items():
                np.testing.assert_allclose(
                    value[-1:], alone[name], atol=2e-4, err_msg=f"{stage}.{name}"
                )


def test_an_unknown_stage():
    with pytest.raises(ValueError, match="no stage called 'decoder'; there are sam_image_encoder"):
        signature("decoder", PRESETS["tiny"])
