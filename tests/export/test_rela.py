"""ReLA through export, engines, INT8 and Triton, with the tiny preset."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto
from torch import nn

from ris.calibration.int8.options import Int8Options
from ris.calibration.int8.quantise import quantise_bundle
from ris.calibration.samples import scene_set
from ris.engines import EngineOptions, Graph, TensorSpec, create
from ris.export.families import DESIGNS
from ris.export.families.design import StageDesign
from ris.export.families.rela.rules import STEP
from ris.export.families.signatures import plain, taken
from ris.export.families.worded_swin import CentredAttention, ImageStem, WordsInImage
from ris.export.onnx_writer import write_onnx
from ris.export.reference_pass import Asked, reference_pass
from ris.export.sample import EXPRESSIONS
from ris.reference.families import FAMILIES
from ris.reference.layers.swin import WindowAttention
from ris.reference.rela.config import PRESETS
from ris.reference.rela.deterministic import deterministic_model
from ris.reference.rela.values import MAPS
from ris.runtime import load, open_bundle
from ris.runtime.commands.running import Running
from ris.runtime.comparing import compare
from ris.runtime.parity import check_model, load_golden
from ris.runtime.tolerance import TOLERANCES, failed_rows
from ris.serving.triton.config import ServerOptions, graph_config
from ris.serving.triton.repository import write_repository

STAGES = ("image_stem", "text_encoder", "backbone", "segmenter")
TINY = PRESETS["tiny-rela"]


@pytest.fixture(scope="module")
def model():
    return deterministic_model(TINY)


def graph_of(folder, stage):
    return onnx.load(folder / f"graphs/{stage}.onnx", load_external_data=False)


def test_what_runs_when(rela_bundle):
    bundle = open_bundle(rela_bundle)
    assert bundle.manifest.family == "rela"
    assert bundle.stages == STAGES
    assert bundle.wiring.image_stages == ("image_stem",)
    assert bundle.wiring.text_stages == ("text_encoder",)
    assert bundle.wiring.kept == ("stem", "stem_vis", "stem_query")
    assert list(bundle.manifest.host.images) == ["image"]
    assert bundle.manifest.host.text.max_tokens == 20
    assert not bundle.manifest.host.resizes
    assert bundle.manifest.model["lang_weight"] == "zero"


def test_graphs_are_plain(rela_bundle):
    """Windows are cut by gathers alone; masks fit into FP16; each weight is read."""
    loops = {"Loop", "If", "Scan", "GatherND", "ScatterND", "NonZero", "Tile", "Attention"}
    for stage in STAGES:
        onnx.checker.check_model(str(rela_bundle / f"graphs/{stage}.onnx"))
        graph = graph_of(rela_bundle, stage).graph
        operators = Counter(node.op_type for node in graph.node)
        assert not operators.keys() & loops
        if stage in ("image_stem", "backbone"):
            assert not operators.keys() & {"Slice", "Concat"}
        read = {name for node in graph.node for name in node.input}
        assert {tensor.name for tensor in graph.initializer} <= read
        for tensor in onnx.load(rela_bundle / f"graphs/{stage}.onnx").graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                assert np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0) < 65504


def test_equal_masks_stand_once(tmp_path):
    """Also those that are larger than what torch's exporter shares by itself."""
    blocks = nn.Sequential(*(WindowAttention(8, 2, 16, 4, shift=2) for _ in range(2))).eval()
    tokens = "float32", ("images", 256, 8)
    inputs = (taken(TensorSpec("input", *tokens)),)
    stage = StageDesign("blocks", inputs, (TensorSpec("output", *tokens),), plain(nn.Identity))
    path = tmp_path / "blocks.onnx"
    write_onnx(blocks, stage, path)

    masks = [t for t in onnx.load(path).graph.initializer if list(t.dims) == [16, 1, 16, 16]]
    assert len(masks) == 1
    given = torch.randn(1, 256, 8, generator=torch.Generator().manual_seed(0))
    graph = Graph(stage.name, path, stage.inputs, stage.outputs)
    with create("onnxruntime", EngineOptions()).load(graph) as session:
        found = session.run({"input": given.numpy()})["output"]
    np.testing.assert_allclose(found, blocks(given).detach().numpy(), atol=1e-5)


@pytest.mark.full
def test_sampling_may_be_gathers(rela_bundle, rela_gather_bundle):
    for folder, sampling, found in ((rela_bundle, "native", 6), (rela_gather_bundle, "gather", 0)):
        bundle = open_bundle(folder)
        assert bundle.manifest.graphs["segmenter"].sampling == sampling
        nodes = graph_of(folder, "segmenter").graph.node
        assert sum(node.op_type == "GridSample" for node in nodes) == found
        with load(folder, engine="onnxruntime") as runtime:
            assert not check_model(runtime, load_golden(bundle)).failures


def test_stages_share_no_part_of_the_backbone(model):
    """Together they have the weights of the whole once; nothing of the model was changed."""
    before = set(model.backbone.state_dict())
    stem, rest = ImageStem(model.backbone), WordsInImage(model.backbone)
    ours = [{id(p) for p in part.parameters()} for part in (stem, rest)]
    assert not ours[0] & ours[1]
    assert ours[0] | ours[1] == {id(p) for p in model.backbone.parameters()}
    assert set(model.backbone.state_dict()) == before


@torch.no_grad()
def test_centred_attention_is_the_references(model):
    """Also where the mean over the places is far larger than what varies, and better there."""
    attention = model.backbone.stages()[1].fusion.image_lang_att
    generator = torch.Generator().manual_seed(0)
    query = 0.003 * torch.randn(2, 100, 64, generator=generator)  # so that all places read alike
    text = torch.randn(2, 20, TINY.bert.width, generator=generator)
    mask = (torch.arange(20) < torch.tensor([[3], [20]])).float()
    want = attention.double()(query.double(), text.double(), mask.double())
    plain = attention.float()(query, text, mask)
    got = CentredAttention(attention)(query, text, mask)
    error, usual = (compare(x.numpy(), want.float().numpy()).relative for x in (got, plain))
    assert error < 4e-5
    assert usual > 2 * error


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_masks_are_the_references(
    precision, engine, rela_bundle, rela_half_bundle, rela_bf16_bundle
):
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    folders = {"fp32": rela_bundle, "fp16": rela_half_bundle, "bf16": rela_bf16_bundle}
    with load(folders[precision], engine=engine) as runtime:
        golden = load_golden(runtime.bundle)
        report = check_model(runtime, golden)
        assert not report.failures
        assert report.no_target is not None
        assert len(golden["input_ids"][0]) == 20


def test_a_step_flips_only_what_it_reaches(rela_bundle):
    """Masks behind a threshold may differ where the step that is accepted of the logits reaches."""
    tolerance = replace(TOLERANCES["fp32"], stage=1, mask_iou=1, flipped=0)
    with load(rela_bundle, engine="onnxruntime") as runtime:
        golden = load_golden(runtime.bundle)
        found = [runtime.segment(golden["rgb"], str(e)).logits for e in golden["expressions"]]
        own = golden | {"mask_logits": np.stack(found)[:, None]}
        level = np.sqrt(np.square(own["mask_logits"]).mean((1, 2, 3), keepdims=True))

        def moved(by):
            other = own | {"mask_logits": own["mask_logits"] + np.float32(by) * level}
            return check_model(runtime, other, tolerance)

        near = moved(0.1 * STEP)
        assert near.flipped > 0
        assert not near.failures
        assert any("from 0.995" in failure for failure in moved(0.9 * STEP).failures)
        assert any("from 1" in failure for failure in moved(3 * STEP).failures)
        manifest = runtime.bundle.manifest
        stages = tuple(replace(stage, thresholded={}) for stage in manifest.stages)
        runtime.bundle = replace(runtime.bundle, manifest=replace(manifest, stages=stages))
        assert any("from 1" in failure for failure in moved(0.1 * STEP).failures)


@torch.no_grad()
def test_a_step_is_no_fault(picture):
    """A key within rounding of the threshold may move PyTorch so far from its own float64."""
    config = replace(TINY, lang_weight="stored")
    family, exact = FAMILIES["rela"], deterministic_model(config)
    mirrored = np.ascontiguousarray(picture[:, ::-1])
    asked = Asked([picture, mirrored], EXPRESSIONS, (), [0, 1, 0])
    host = DESIGNS["rela"].host(config)
    values = reference_pass(family, exact, family.tokenizer(None, config), host, asked).arrays
    exact = exact.double()
    maps = [torch.tensor(values[name]).double() for name in MAPS]
    text = torch.tensor(values["text_features"]).double()
    want = exact.region_decoder(*exact.pixel_decoder(maps), text).mask_logits
    error = compare(values["mask_logits"], want.float().numpy())
    rows = {"segmenter.mask_logits": error}
    assert not failed_rows(rows, TOLERANCES["fp32"], None, dict.fromkeys(rows, STEP))


def test_an_answer_does_not_depend_on_its_neighbours(rela_bundle, picture):
    """Words in rows that are padded to their full length, alone and among others."""
    asked = ["man", "the red ball on the right", "a very long one " * 9]
    with load(rela_bundle, engine="onnxruntime") as runtime:
        scene = runtime.encode_image(picture)
        together = scene.segment_many(asked)
        for expression, one in zip(asked, together, strict=True):
            alone = scene.segment(expression)
            np.testing.assert_allclose(alone.logits, one.logits, atol=1e-5)
            assert alone.no_target == pytest.approx(one.no_target, abs=1e-5)
        assert "reads 20 tokens" in " ".join(together[2].notes)


def test_what_stays_fp32_says_why(rela_half_bundle):
    graphs = open_bundle(rela_half_bundle).manifest.graphs
    assert "more mask IoU" in graphs["text_encoder"].fp32_islands["*"]
    for stage, word in (("backbone", "PWAM"), ("image_stem", "PWAM"), ("segmenter", "compared")):
        assert graphs[stage].precision == "fp16"
        assert any(word in reason for reason in graphs[stage].fp32_islands.values())


def test_no_graph_is_bfloat16(rela_bf16_bundle):
    """It is not precise enough for one of them, and the bundle says so."""
    for entry in open_bundle(rela_bf16_bundle).manifest.stages:
        assert (entry.precision, entry.bfloat16) == ("fp32", False)
        assert "bfloat16" in entry.fp32_islands["*"]


def test_int8(rela_bundle, tmp_path):
    options = Int8Options(calibrator="minmax", max_iou_drop=0.5, sensitivity=False)
    report = quantise_bundle(open_bundle(rela_bundle), scene_set(2), tmp_path / "int8", options)
    wanted = {s.name for s in DESIGNS["rela"].stages(TINY) if s.int8_by_default}
    assert set(report.quantised) == wanted == {"image_stem", "backbone"}
    assert all(report.quantised.values())
    with load(tmp_path / "int8", engine="onnxruntime") as runtime:
        assert not check_model(runtime, load_golden(runtime.bundle)).failures


def test_triton_gets_a_model_for_each_graph(rela_bundle, tmp_path):
    options = ServerOptions(Running("onnxruntime", "cpu", threads=1, compute=None), graphs="onnx")
    bundle = open_bundle(rela_bundle)
    names = write_repository(bundle, tmp_path / "models", options)
    assert names == ["ris", *(f"ris_{stage}" for stage in STAGES)]
    for stage in STAGES:
        text = (tmp_path / "models" / f"ris_{stage}" / "config.pbtxt").read_text()
        assert text == graph_config(bundle, stage, options)
        for spec in bundle.manifest.graphs[stage].outputs:
            assert f'name: "{spec.name}"' in text
    front = (tmp_path / "models" / "ris" / "config.pbtxt").read_text()
    assert 'name: "no_target" ' in front
    assert 'name: "category"' not in front


def test_all_blocks_repeat(model):
    """Three quarters of the weights are in what `torch.compile` compiles."""
    repeated = [p.numel() for part in DESIGNS["rela"].repeated(model) for p in part.parameters()]
    whole = sum(p.numel() for p in model.parameters())
    assert 0.75 * whole < sum(repeated) < 0.8 * whole
