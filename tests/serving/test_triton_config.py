"""Triton's configuration of bundles of other families, whose graphs the onnx package writes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ris.engines.errors import BundleError
from ris.runtime import open_bundle
from ris.runtime.bundle import Bundle
from ris.runtime.commands.running import Running
from ris.runtime.manifest_text import Form
from ris.runtime.manifest_weights import StoredWeights
from ris.serving.triton.config import ServerOptions, front_config, graph_config

OPTIONS = ServerOptions(
    Running(engine="onnxruntime", device="cpu", threads=None, compute=None), graphs="onnx"
)

FORMS = {"phrase": Form("what is ", " here?", True), "sentence": Form("", "", False)}


def test_batches_of_other_families(made_up_bundle):
    """Triton's batches are for graphs all of whose tensors have the one axis."""
    bundle = open_bundle(made_up_bundle)
    texts = {stage: graph_config(bundle, stage, OPTIONS) for stage in bundle.stages}
    batched = [stage for stage, text in texts.items() if "max_batch_size: 8" in text]
    whole = made_up_bundle.name == "whole"
    assert batched == ([] if whole else ["look", "pool", "read"])
    assert 'name: "no_target" ' not in front_config(bundle, OPTIONS)


def test_a_numbered_gpu_is_tritons_to_give(made_up_bundle):
    """Triton shows an instance its own GPU alone, which then is the first one there."""
    bundle = open_bundle(made_up_bundle)
    stage = bundle.stages[0]
    for device, kind in (
        ("cpu", "KIND_CPU"),
        ("cuda", "KIND_GPU"),
        ("cuda:1", "KIND_GPU gpus: [ 1 ]"),
    ):
        running = Running(engine="onnxruntime", device=device, threads=None, compute=None)
        front = front_config(bundle, ServerOptions(running))
        assert f"instance_group [ {{ count: 1 kind: {kind} }} ]" in front
        assert "cuda:1" not in front
        graph = graph_config(bundle, stage, ServerOptions(running, graphs="onnx"))
        assert f"kind: {kind} }} ]" in graph


def test_narrow_weights_are_not_left_to_tritons_own_onnx_runtime(made_up_bundle):
    bundle = open_bundle(made_up_bundle)
    stage = bundle.stages[0]
    narrow = StoredWeights("int4", 128, 1, 128, "nearest", 0.1)
    stages = tuple(
        replace(entry, weights=narrow) if entry.name == stage else entry
        for entry in bundle.manifest.stages
    )
    narrowed = Bundle(bundle.path, replace(bundle.manifest, stages=stages))
    with pytest.raises(BundleError, match="leave --graphs onnx out"):
        graph_config(narrowed, stage, OPTIONS)
    front_config(narrowed, ServerOptions(OPTIONS.running))


def test_a_form_is_an_input_of_models_that_have_some(made_up_bundle):
    bundle = open_bundle(made_up_bundle)
    assert 'name: "form' not in front_config(bundle, ServerOptions(OPTIONS.running))

    text = replace(bundle.manifest.host.text, forms=FORMS, form="phrase")
    host = replace(bundle.manifest.host, text=text)
    formed = Bundle(bundle.path, replace(bundle.manifest, host=host))
    front = front_config(formed, ServerOptions(OPTIONS.running, form="sentence"))
    assert '{ name: "form" data_type: TYPE_STRING dims: [ 1 ] optional: true }' in front
    assert '{ name: "form_asked" data_type: TYPE_STRING dims: [ -1 ] }' in front
    assert r"\"form\": \"sentence\"" in front
