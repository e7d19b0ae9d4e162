"""What is in the exported graphs, and what is not (docs/reference/models/dfam.md)."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import TensorProto
from stages import STAGES

from ris.engines import create
from ris.export.families import DESIGNS
from ris.reference.dfam.config import PRESETS
from ris.reference.families import FAMILIES
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
        found = []
        for value in values:
            tensor = value.type.tensor_type
            shape = tuple(axis.dim_param or axis.dim_value for axis in tensor.shape.dim)
            found.append((value.name, kinds[tensor.elem_type], shape))
        return found

    entry = bundle.manifest.graphs[stage]
    assert described(model.input) == [(s.name, s.dtype, s.shape) for s in entry.inputs]
    assert described(model.output) == [(s.name, s.dtype, s.shape) for s in entry.outputs]


@pytest.mark.parametrize("stage", STAGES)
def test_nothing_of_the_machine_that_exported_it(bundle, stage):
    text = bundle.graph(stage).path.read_bytes()
    for trace in (b".py", b"site-packages", b"/home", b"stack_trace"):
        assert trace not in text


def test_traps_are_avoided(bundle):
    """No loops, conditions, data-dependent shapes or fused Attention; LayerNorm is one operator."""
    every = sum((operators(bundle, stage) for stage in STAGES), Counter())
    loops = {"Loop", "If", "Scan"}
    shapes = {"NonZero", "ScatterND", "ScatterElements", "Tile"}
    assert not every.keys() & (loops | shapes | {"Attention"})
    # SAM: two in each block, two in the neck; decoder: nine in the transformer, one upscaling
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
    """The category variant has no DFAM and no SAM pyramid (docs/reference/models/dfam.md 17)."""
    plain, category = open_bundle(tiny_bundle), open_bundle(tiny_category_bundle)

    def weights(bundle, stage):
        return {tensor.name for tensor in graph_of(bundle, stage).graph.initializer}

    for bundle in (plain, category):
        for stage in STAGES:
            nodes = graph_of(bundle, stage).graph.node
            assert weights(bundle, stage) <= {name for node in nodes for name in node.input}

    more, less = (
        sum(bundle.manifest.graphs[stage].parameters for stage in ("image_features", "fusion"))
        for bundle in (plain, category)
    )
    assert more - less > 300_000  # DFAM and SAM pyramid of the tiny preset, roughly

    def named(bundle, stage, *parts):
        return [n for n in weights(bundle, stage) if any(part in n for part in parts)]

    assert not named(category, "fusion", "dfam", "sam_pyramid")
    assert not named(plain, "fusion", "layers2.0", "layers2.1")
    assert not named(plain, "mask_decoder", "iou", "mlps.1")


@pytest.mark.parametrize(("images", "expressions"), [(1, 1), (1, 4), (3, 1), (2, 5)])
def test_any_batch(tiny_bundle, tiny_supplement_bundle, images, expressions):
    """Every expression of a batch comes out as if it were alone."""
    engine = create("onnxruntime")
    rng = np.random.default_rng(0)
    for bundle in (open_bundle(tiny_bundle), open_bundle(tiny_supplement_bundle)):
        for stage in STAGES:
            graph = bundle.graph(stage)
            feeds = any_feeds(graph, images, expressions, rng)
            with engine.open(graph, graph.path) as session:
                together = session.run(feeds)
                alone = session.run(last_alone(graph, feeds))
            for name, value in together.items():
                what = f"{stage}.{name}"
                np.testing.assert_allclose(value[-1:], alone[name], atol=2e-4, err_msg=what)


def any_feeds(graph, images, expressions, rng):
    """Random inputs of a graph for this many images and expressions."""
    sizes = {"images": images, "expressions": expressions}
    feeds = {}
    for spec in graph.inputs:
        shape = [sizes.get(axis, axis) for axis in spec.shape]
        if spec.name == "image_index":
            feeds[spec.name] = np.arange(expressions, dtype=np.int32) % images
        elif spec.dtype == "int32":
            feeds[spec.name] = rng.integers(1, 200, shape, dtype=np.int32)
        elif spec.name == "text_mask":
            feeds[spec.name] = np.ones(shape, np.float32)
        else:
            feeds[spec.name] = rng.standard_normal(shape, dtype=np.float32)
    return feeds


def last_alone(graph, feeds):
    """The part of the inputs that belongs to the last expression, or else to the last image."""
    last = {name: value[-1:] for name, value in feeds.items()}
    if "image_index" in feeds:
        image = int(feeds["image_index"][-1])
        for spec in graph.inputs:
            if spec.shape[0] == "images":
                last[spec.name] = feeds[spec.name][image : image + 1]
        last["image_index"] = np.zeros(1, np.int32)
    return last


@pytest.mark.parametrize("family", DESIGNS)
def test_what_lies_behind_a_threshold_is_given(family):
    """Parity would look for a value that is misspelt in vain."""
    for config in FAMILIES[family].presets.values():
        for stage in DESIGNS[family].stages(config):
            assert set(stage.thresholded) <= {out.name for out in stage.outputs}
