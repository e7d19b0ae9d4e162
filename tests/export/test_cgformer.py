"""CGFormer through export, engines, INT8 and Triton, with the tiny preset."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from onnx import TensorProto

from ris.calibration.int8.options import Int8Options
from ris.calibration.int8.quantise import quantise_bundle
from ris.calibration.samples import scene_set
from ris.export.command import main
from ris.export.families import DESIGNS
from ris.export.families.cgformer.modules import GroupPlaces, MaskHead, Pyramid
from ris.export.families.worded_swin import CentredAttention, ImageStem, WordsInImage
from ris.reference.cgformer.config import PRESETS
from ris.reference.cgformer.deterministic import deterministic_model
from ris.runtime import load, open_bundle, tolerance
from ris.runtime.bundle import Bundle
from ris.runtime.commands.running import Running
from ris.runtime.loading import open_model
from ris.runtime.parity import check_model, load_golden
from ris.serving.triton.config import ServerOptions, graph_config
from ris.serving.triton.repository import write_repository

STAGES = ("image_stem", "text_encoder", "backbone", "pyramid", "grouping", "mask_head")
TINY = PRESETS["tiny-cgformer"]


@pytest.fixture(scope="module")
def model():
    return deterministic_model(TINY)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def words(*lengths: int) -> torch.Tensor:
    """A mask [N, 20] of expressions of so many tokens."""
    return (torch.arange(20) < torch.tensor(lengths)[:, None]).float()


def test_what_runs_when(cgformer_bundle):
    bundle = open_bundle(cgformer_bundle)
    manifest = bundle.manifest
    assert (manifest.family, bundle.stages) == ("cgformer", STAGES)
    assert bundle.wiring.image_stages == ("image_stem",)
    assert bundle.wiring.text_stages == ("text_encoder",)
    assert bundle.wiring.kept == ("stem", "stem_vis", "stem_query")
    rule = manifest.mask_rule
    assert (rule.of, rule.interpolation, rule.align_corners) == ("probabilities", "bicubic", True)
    assert rule.threshold == 0.5
    assert not manifest.no_target
    assert manifest.model["assignment"] == "expected"
    assert not manifest.host.drawn


def test_graphs_are_plain(cgformer_bundle):
    """No loop, no comparison, no batch norm; masks fit into FP16; each weight is read."""
    gone = {"Loop", "If", "Scan", "GatherND", "ScatterND", "NonZero", "Tile", "Attention"}
    gone |= {"ArgMax", "OneHot", "Greater", "BatchNormalization", "RandomUniform", "TopK"}
    for stage in STAGES:
        path = cgformer_bundle / f"graphs/{stage}.onnx"
        onnx.checker.check_model(str(path))
        graph = onnx.load(path).graph
        operators = Counter(node.op_type for node in graph.node)
        assert not operators.keys() & gone
        assert operators["Conv"] == {"image_stem": 1, "pyramid": 6, "mask_head": 2}.get(stage, 0)
        read = {name for node in graph.node for name in node.input}
        assert {tensor.name for tensor in graph.initializer} <= read
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                assert np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0) < 65504


def test_stages_share_no_part_of_the_backbone(model):
    """Together they have the weights of the whole once; nothing of the model was changed."""
    before = set(model.backbone.state_dict())
    parts = ImageStem(model.backbone), WordsInImage(model.backbone)
    ours = [{id(p) for p in part.parameters()} for part in parts]
    assert not ours[0] & ours[1]
    assert ours[0] | ours[1] == {id(p) for p in model.backbone.parameters()}
    assert set(model.backbone.state_dict()) == before


@torch.no_grad()
def test_centred_attention_has_the_references_heads(model):
    attention = model.backbone.stages()[1].words.image_lang_att
    assert attention.heads == 8
    query, text = drawn(2, 100, 64), drawn(2, 20, TINY.bert.width, seed=1)
    want = attention(query, text, words(3, 20))
    torch.testing.assert_close(
        CentredAttention(attention)(query, text, words(3, 20)), want, rtol=1e-4, atol=1e-4
    )


@torch.no_grad()
@pytest.mark.parametrize("has_noise", [False, True])
def test_kernels_are_the_references(model, has_noise):
    sizes = zip(TINY.swin.widths(), TINY.swin.grids(TINY.image_size), strict=True)
    maps = [drawn(2, width, side, side, seed=width) for width, side in sizes]
    want = model.decoder.fuse(maps)
    for got, fused in zip(Pyramid(model.decoder)(*maps), want, strict=True):
        torch.testing.assert_close(got, fused, rtol=1e-4, atol=1e-4)
    text, noise = drawn(2, 20, TINY.bert.width), drawn(2, sum(TINY.places()), seed=3)
    given = text, words(4, 20), noise if has_noise else None
    kernel = model.decoder.group(want, *given).kernel
    got = GroupPlaces(model.decoder)(*want, *given)
    torch.testing.assert_close(got, kernel, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_folded_masks_are_the_references(model):
    feature, kernel = drawn(2, TINY.width, 32, 32).relu(), drawn(2, TINY.width + 1, seed=1)
    want = model.decoder.masks(feature, kernel)
    torch.testing.assert_close(MaskHead(model.decoder)(feature, kernel), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_masks_are_the_references(
    precision, engine, cgformer_bundle, cgformer_half_bundle, cgformer_bf16_bundle
):
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    folders = {
        "fp32": cgformer_bundle,
        "fp16": cgformer_half_bundle,
        "bf16": cgformer_bf16_bundle,
    }
    with load(folders[precision], engine=engine) as runtime:
        report = check_model(runtime, load_golden(runtime.bundle))
        assert not report.failures
        assert report.no_target is None


def test_sampled_places_are_drawn_by_the_host(cgformer_sampled_bundle, cgformer_bundle, picture):
    bundle = open_bundle(cgformer_sampled_bundle)
    assert bundle.manifest.model["assignment"] == "sampled"
    places = sum(TINY.places())
    assert bundle.manifest.host.drawn["assignment_noise"].shape == (places,)
    assert bundle.wiring.drawn_stages == ("grouping",)
    assert bundle.wiring.mean_stages == ("mask_head",)
    with load(cgformer_sampled_bundle, engine="onnxruntime") as runtime:
        assert not check_model(runtime, load_golden(runtime.bundle)).failures
        scene = runtime.encode_image(picture)
        one, again, other = (scene.segment("left man", seed=s).logits for s in (0, None, 1))
        mean = scene.segment("left man", draws=40).logits
    np.testing.assert_array_equal(one, again)
    with load(cgformer_bundle, engine="onnxruntime") as runtime:
        expected = runtime.segment(picture, "left man").logits
    # many draws come to the expected value, of which one draw is farther
    apart = [np.square(logits - expected).mean() for logits in (mean, one, other)]
    assert 0 < apart[0] < 0.5 * min(apart[1:])


def test_draws_are_averaged_at_the_kernel(cgformer_sampled_bundle, picture):
    """The mask head is linear in it: this is the mean of the logits, for a fraction of the time."""
    bundle = open_bundle(cgformer_sampled_bundle)
    answer = replace(bundle.manifest.answer, mean_of=None)
    at_the_end = Bundle(bundle.path, replace(bundle.manifest, answer=answer))
    asked, how = ["left man", "the red ball"], {"seed": 5, "draws": 4}
    with (
        open_model(bundle, engine="onnxruntime") as early,
        open_model(at_the_end, engine="onnxruntime") as late,
    ):
        means = early.encode_image(picture).segment_many(asked, **how)
        want = late.encode_image(picture).segment_many(asked, **how)
        other = early.encode_image(picture).segment_many(asked, seed=5)
    for got, one, alone in zip(means, want, other, strict=True):
        np.testing.assert_allclose(got.logits, one.logits, atol=1e-5)
        assert np.abs(got.logits - alone.logits).max() > 1e-3


def test_an_answer_does_not_depend_on_its_neighbours(cgformer_bundle, picture):
    asked = ["man", "the red ball on the right", "a very long one " * 9]
    with load(cgformer_bundle, engine="onnxruntime") as runtime:
        scene = runtime.encode_image(picture)
        for expression, one in zip(asked, scene.segment_many(asked), strict=True):
            np.testing.assert_allclose(scene.segment(expression).logits, one.logits, atol=1e-5)


def test_what_stays_fp32_says_why(cgformer_half_bundle, cgformer_bf16_bundle):
    half = open_bundle(cgformer_half_bundle).manifest.graphs
    assert "sums over" in half["grouping"].fp32_islands["*"]
    assert "once an image" in half["image_stem"].fp32_islands["*"]
    for stage, word in (("backbone", "PWAM"), ("mask_head", "shifts all logits")):
        assert any(word in reason for reason in half[stage].fp32_islands.values())
    assert "more mask IoU" in half["text_encoder"].fp32_islands["*"]
    for stage in ("backbone", "pyramid", "mask_head"):
        assert half[stage].precision == "fp16"
    for entry in open_bundle(cgformer_bf16_bundle).manifest.stages:
        assert (entry.precision, entry.bfloat16) == ("fp32", False)


def test_a_graph_stays_fp32_where_it_is_asked_for(tmp_path, monkeypatch):
    """And a bundle that is not accepted says which graph is farthest off."""
    asked = ("--preset", "tiny-cgformer", "--precision", "fp16", "--out", str(tmp_path / "b"))
    monkeypatch.setattr(tolerance, "MADE_UP_FP16_IOU", 0.99999)
    refused = CliRunner().invoke(main, asked)
    assert refused.exit_code == 1
    assert "--fp32 backbone keeps FP32 the graph that is farthest off" in refused.stderr
    assert not (tmp_path / "b").exists()

    monkeypatch.undo()
    done = CliRunner().invoke(main, [*asked, "--fp32", "backbone"])
    assert done.exit_code == 0, done.output
    graphs = open_bundle(tmp_path / "b").manifest.graphs
    assert graphs["backbone"].fp32_islands == {"*": "FP32 was asked for"}
    assert [s for s, e in graphs.items() if e.precision == "fp16"] == ["pyramid", "mask_head"]


def test_int8(cgformer_bundle, tmp_path):
    options = Int8Options(calibrator="minmax", max_iou_drop=0.5, sensitivity=False)
    report = quantise_bundle(open_bundle(cgformer_bundle), scene_set(2), tmp_path / "int8", options)
    wanted = {s.name for s in DESIGNS["cgformer"].stages(TINY) if s.int8_by_default}
    assert set(report.quantised) == wanted
    assert all(report.quantised.values())
    assert report.mask_iou >= 0.92
    for engine in ("onnxruntime", "openvino"):
        with load(tmp_path / "int8", engine=engine) as runtime:
            assert not check_model(runtime, load_golden(runtime.bundle)).failures


def test_triton_gets_a_model_for_each_graph(cgformer_sampled_bundle, tmp_path):
    options = ServerOptions(Running("onnxruntime", "cpu", threads=1, compute=None), graphs="onnx")
    bundle = open_bundle(cgformer_sampled_bundle)
    names = write_repository(bundle, tmp_path / "models", options)
    assert names == ["ris", *(f"ris_{stage}" for stage in STAGES)]
    text = (tmp_path / "models" / "ris_grouping" / "config.pbtxt").read_text()
    assert text == graph_config(bundle, "grouping", options)
    assert 'name: "assignment_noise"' in text
    front = (tmp_path / "models" / "ris" / "config.pbtxt").read_text()
    assert 'name: "seed"' in front
    assert 'name: "no_target" ' not in front


def test_all_blocks_repeat(model):
    """Most of the weights are in what `torch.compile` compiles."""
    repeated = [
        p.numel() for part in DESIGNS["cgformer"].repeated(model) for p in part.parameters()
    ]
    whole = sum(p.numel() for p in model.parameters())
    assert 0.4 * whole < sum(repeated) < whole
