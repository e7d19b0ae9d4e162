"""Triton's configuration of bundles of other families, whose graphs the onnx package writes."""

from __future__ import annotations

from ris.runtime import open_bundle
from ris.runtime.commands.running import Running
from ris.serving.triton.config import ServerOptions, front_config, graph_config

OPTIONS = ServerOptions(
    Running(engine="onnxruntime", device="cpu", threads=None, compute=None), graphs="onnx"
)


def test_batches_of_other_families(made_up_bundle):
    """Triton's batches are for graphs all of whose tensors have the one axis."""
    bundle = open_bundle(made_up_bundle)
    texts = {stage: graph_config(bundle, stage, OPTIONS) for stage in bundle.stages}
    batched = [stage for stage, text in texts.items() if "max_batch_size: 8" in text]
    whole = made_up_bundle.name == "whole"
    assert batched == ([] if whole else ["look", "pool", "read"])
    assert 'name: "no_target" ' not in front_config(bundle, OPTIONS)
