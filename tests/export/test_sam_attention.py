"""SAM's attention in two forms: in parts for CPUs, and as TensorRT computes it in one kernel."""

from __future__ import annotations

import dataclasses
import sys
from types import SimpleNamespace

import pytest
import torch
from segment_anything.modeling.image_encoder import ImageEncoderViT
from torch import nn

from ris.engines import Graph, create
from ris.export.families import sam_encoder
from ris.export.families.dfam.rules import ISLANDS
from ris.export.families.dfam.stages import stages
from ris.export.families.sam_encoder import SamImageEncoder
from ris.export.families.signatures import of_image, taken
from ris.export.fp16 import make_fp16
from ris.export.onnx_writer import write_onnx
from ris.reference.dfam.config import PRESETS

SIDE, PATCH, WIDTH, HEADS = 160, 16, 128, 2
"""Heads have the width of SAM's own, 64; a map of 10 x 10 tokens has windows with padding."""


@pytest.fixture(scope="module")
def model():
    """A window block and a global one, with positions that matter."""
    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=SIDE,
        patch_size=PATCH,
        embed_dim=WIDTH,
        depth=2,
        num_heads=HEADS,
        out_chans=32,
        use_rel_pos=True,
        window_size=7,
        global_attn_indexes=(1,),
    )
    for name, weights in encoder.named_parameters():
        if "rel_pos" in name or "pos_embed" in name:
            nn.init.normal_(weights, std=0.3)
    return encoder.eval()


def exported(encoder, for_tensorrt):
    return SamImageEncoder(encoder, SIDE // PATCH, for_tensorrt=for_tensorrt).eval()


@pytest.mark.parametrize("strip", [10, 40, 100])
def test_a_large_window_in_strips_of_queries_computes_what_sam_does(model, monkeypatch, strip):
    monkeypatch.setattr(sam_encoder, "_LARGE", 49)
    monkeypatch.setattr(sam_encoder, "_STRIP", strip)  # of 100: the last of 40 is a shorter one
    image = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        want = model(image)
        got = exported(model, for_tensorrt=False)(image)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize("for_tensorrt", [False, True])
def test_both_forms_compute_what_sam_does(model, for_tensorrt):
    image = torch.randn(2, 3, SIDE, SIDE)
    with torch.no_grad():
        want = model(image)
        got = exported(model, for_tensorrt)(image)
    assert (got - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize(("sampling", "for_tensorrt"), [("native", False), ("gather", True)])
def test_who_asks_for_gathers_gets_the_form_of_tensorrt(sampling, for_tensorrt, monkeypatch):
    [stage] = [s for s in stages(PRESETS["tiny"]) if s.name == "sam_image_encoder"]
    made = []
    # the package has a function of the module's name
    monkeypatch.setattr(
        sys.modules["ris.export.families.dfam.stages"],
        "SamImageEncoder",
        lambda *given, for_tensorrt: made.append(for_tensorrt) or nn.Identity(),
    )
    model = SimpleNamespace(sam=SimpleNamespace(image_encoder="SAM's"))
    stage.build(model, sampling)
    assert made == [for_tensorrt]


@pytest.mark.parametrize(("for_tensorrt", "fused"), [(False, 0), (True, 2)])
def test_tensorrt_rtx_computes_each_attention_in_one_layer(model, tmp_path, for_tensorrt, fused):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    [stage] = [s for s in stages(PRESETS["tiny"]) if s.name == "sam_image_encoder"]
    grid = SIDE // PATCH
    stage = dataclasses.replace(
        stage,
        inputs=(taken(of_image("image", 3, SIDE, SIDE), "sam_image"),),
        outputs=(of_image("image_embeddings", 32, grid, grid),),
    )
    module, image = exported(model, for_tensorrt), torch.randn(1, 3, SIDE, SIDE)
    with torch.no_grad():
        reference = {"sam_image": image.numpy(), "image_embeddings": module(image).numpy()}
    path = tmp_path / "sam_image_encoder.onnx"
    scopes = write_onnx(module, stage, path)
    graph = Graph(stage.name, path, stage.inputs, stage.outputs, cache=tmp_path / "engines")
    islands, _ = make_fp16(graph, scopes, ISLANDS, reference)
    graph = dataclasses.replace(graph, precision="fp16", fp32_islands=frozenset(islands))
    report = create("tensorrt-rtx").build(graph).report
    assert report["fused_attention"] == fused
    assert not report["unexpected"]
