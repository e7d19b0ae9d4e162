"""EVF-SAM through export, engines, INT8 and Triton, with the tiny presets of both versions."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto

from golden import inputs
from ris.calibration.int8.options import Int8Options
from ris.calibration.int8.quantise import quantise_bundle
from ris.calibration.samples import scene_set
from ris.engines import EngineOptions, create
from ris.export.families import DESIGNS
from ris.export.families.evfsam.beit import Fusion, ImageTokens, WordEmbedding
from ris.export.families.evfsam.hiera_tokens import Sam2ImageEncoder, nested_places
from ris.export.families.evfsam.sam2_masks import Sam2Masks
from ris.export.families.evfsam.stages import END_ID, PAD_ID
from ris.export.families.sam_masks import SamMasks
from ris.reference.evfsam.config import PRESETS
from ris.reference.evfsam.deterministic import deterministic_model
from ris.reference.evfsam.preprocess import picture_logits
from ris.reference.evfsam.sam2_decoder import ImageMaps
from ris.reference.evfsam.values import ask, encode, prepare
from ris.reference.families import FAMILIES
from ris.reference.preprocess import token_ids
from ris.runtime import load, open_bundle
from ris.runtime.commands.running import Running
from ris.runtime.parity import check_model, load_golden
from ris.serving.triton.config import ServerOptions
from ris.serving.triton.repository import write_repository

STAGES = ("sam_image_encoder", "beit_image_encoder", "text_encoder", "fusion", "mask_decoder")
TOKENS = PRESETS["tiny-evfsam"].max_tokens
ASKED = ["left man", "the red ball on the right", "[semantic] sky", "a very long one " * 9]


@pytest.fixture(scope="module", params=["tiny-evfsam", "tiny-evfsam2"])
def model(request):
    return deterministic_model(PRESETS[request.param])


@pytest.fixture(scope="module")
def version_2():
    return deterministic_model(PRESETS["tiny-evfsam2"])


@pytest.fixture(params=["evfsam", "evfsam2"])
def bundle(request):
    return request.getfixturevalue(f"{request.param}_bundle")


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def words(*lengths: int) -> torch.Tensor:
    """A mask [N, T] of expressions of so many tokens."""
    return (torch.arange(TOKENS) < torch.tensor(lengths)[:, None]).float()


def test_what_runs_when(bundle):
    opened = open_bundle(bundle)
    manifest = opened.manifest
    assert (manifest.family, opened.stages) == ("evfsam", STAGES)
    assert opened.wiring.image_stages == ("sam_image_encoder", "beit_image_encoder")
    assert opened.wiring.text_stages == ("text_encoder",)
    finer = ("high_res_1", "high_res_0") if manifest.model["version"] == "2" else ()
    assert set(opened.wiring.kept) == {"image_embeddings", "image_tokens", *finer}
    assert not manifest.no_target
    assert (manifest.host.text.pad_id, manifest.host.text.end_id) == (1, 2)


def test_pictures_are_made_from_the_picture_itself(bundle):
    """SAM's is a letterbox and its mask is cut; SAM 2's and BEiT-3's are squares."""
    manifest = open_bundle(bundle).manifest
    images, is_first = manifest.host.images, manifest.model["version"] == "1"
    assert {one.of for one in images.values()} == {"picture"}
    assert images["sam_image"].fit == ("letterbox" if is_first else "square")
    assert images["sam_image"].antialias
    beit = images["beit_image"]
    assert (beit.fit, beit.filter, beit.antialias) == ("square", "bicubic", False)
    rule = manifest.mask_rule
    assert (rule.of, rule.interpolation, rule.threshold) == ("logits", "bilinear", 0.0)
    assert rule.letterbox == (images["sam_image"].size if is_first else None)


def test_graphs_are_plain(bundle):
    """No loop and no comparison; masks fit into FP16; each weight is read."""
    gone = {"Loop", "If", "Scan", "GatherND", "ScatterND", "NonZero", "Tile", "Attention", "TopK"}
    for stage in STAGES:
        path = bundle / f"graphs/{stage}.onnx"
        onnx.checker.check_model(str(path))
        graph = onnx.load(path).graph
        operators = Counter(node.op_type for node in graph.node)
        assert not operators.keys() & gone
        if stage != "mask_decoder":
            assert "ArgMax" not in operators
        read = {name for node in graph.node for name in node.input}
        assert {tensor.name for tensor in graph.initializer} <= read
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                assert np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0) < 65504


def test_the_best_of_three_is_chosen_in_the_graph(evfsam2_bundle, evfsam_bundle):
    def operators(folder):
        graph = onnx.load(folder / "graphs/mask_decoder.onnx", load_external_data=False).graph
        return Counter(node.op_type for node in graph.node)

    assert operators(evfsam2_bundle)["ArgMax"] == 1
    assert operators(evfsam_bundle)["ArgMax"] == 0


def test_hieras_windows_are_not_moved(evfsam2_bundle):
    """Places are gathered once on the way in, and once for each output."""
    graph = onnx.load(evfsam2_bundle / "graphs/sam_image_encoder.onnx").graph
    weights = {tensor.name: tensor for tensor in graph.initializer}
    gathers = [node for node in graph.node if node.op_type == "Gather"]
    places = [node for node in gathers if len(weights[node.input[1]].dims) == 1]
    assert len(places) == 5  # two for the first output, which sums two maps
    transposes = sum(node.op_type == "Transpose" for node in graph.node)
    # the patches and the outputs, and in each of nine blocks the heads of three, and back
    assert transposes == 4 + 4 * 9


@pytest.mark.parametrize("side", [1, 2, 8, 12])
def test_nested_places_have_each_quarter_together(side):
    places = nested_places(side)
    assert sorted(places) == list(range(side * side))
    if side % 2 == 0:
        rows, columns = np.divmod(places.reshape(-1, 4), side)
        assert (rows // 2 == rows[:, :1] // 2).all()
        assert (columns // 2 == columns[:, :1] // 2).all()
        # what becomes one place stands where that place stands on the map of half the side
        halved = rows[:, 0] // 2 * (side // 2) + columns[:, 0] // 2
        np.testing.assert_array_equal(halved, nested_places(side // 2))


@torch.no_grad()
def test_hiera_in_tokens_is_the_references(version_2):
    image = drawn(2, 3, 256, 256)
    want = version_2.encode_sam(image)
    found = Sam2ImageEncoder(version_2.sam2)(image)
    for got, name in zip(found, ("image_embeddings", "high_res_1", "high_res_0"), strict=True):
        torch.testing.assert_close(got, want[name], rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_words_and_squares_are_the_references(model):
    beit3 = model.beit3
    square, mask = drawn(2, 3, 64, 64), words(4, TOKENS, 2)
    ids = (torch.arange(3 * TOKENS).reshape(3, TOKENS) % 70).int()
    image, text = ImageTokens(beit3)(square), WordEmbedding(beit3, TOKENS)(ids, mask)
    torch.testing.assert_close(image, beit3.embed_image(square))
    torch.testing.assert_close(text, beit3.embed_text(ids.long(), mask))

    index = torch.tensor([1, 0, 1], dtype=torch.int32)
    want = model.prompt(image[index.long()], text, mask)
    got = Fusion(beit3, model.projector)(image, text, mask, index)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_masks_of_prompts_are_the_references(model):
    config, side = model.config, model.config.grid
    encoded = {"image_embeddings": drawn(2, config.prompt_width, side, side)}
    if config.version == "2":
        encoded["high_res_1"] = drawn(2, config.prompt_width // 4, 2 * side, 2 * side, seed=1)
        encoded["high_res_0"] = drawn(2, config.prompt_width // 8, 4 * side, 4 * side, seed=2)
    prompts, index = 4 * drawn(12, 1, config.prompt_width, seed=3), torch.arange(12) % 5 % 2
    graph = SamMasks(model.sam) if config.version == "1" else Sam2Masks(model.sam2)
    got = graph(**encoded, sparse_prompt=prompts, image_index=index.int())
    rows = {name: value[index] for name, value in encoded.items()}
    torch.testing.assert_close(got, model.decode_masks(rows, prompts), rtol=1e-4, atol=1e-4)
    if config.version == "2":  # a wrong choice would show
        assert len(set(model.sam2.decode(ImageMaps(**rows), prompts).best.tolist())) > 1


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["", "half_", "bf16_"])
@pytest.mark.parametrize("version", ["evfsam", "evfsam2"])
def test_masks_are_the_references(version, precision, engine, request):
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    folder = request.getfixturevalue(f"{version}_{precision}bundle")
    narrow = (precision, engine) == ("bf16_", "openvino")
    computes = create("openvino", EngineOptions()).computes() if narrow else ()
    with load(folder, engine=engine, compute="bf16" if "bf16" in computes else None) as runtime:
        report = check_model(runtime, load_golden(runtime.bundle))
    assert report.no_target is None
    failures = report.failures
    if "bf16" in computes and version == "evfsam2":
        # PyTorch's own bfloat16 is 2.3e-2 off in nine blocks of made-up weights; 2e-2 are accepted
        encoded = "sam_image_encoder.image_embeddings"
        assert report.rows[encoded].relative < 3e-2
        failures = tuple(one for one in failures if not one.startswith(encoded))
    assert not failures


@pytest.mark.parametrize("size", [(480, 640), (613, 427), (97, 200), (256, 256)])
@torch.no_grad()
def test_pictures_of_any_shape_get_the_references_masks(bundle, size):
    """Several expressions of different lengths at once, and what an answer says beside the mask."""
    picture = inputs.image(1, *size)
    config = PRESETS[open_bundle(bundle).manifest.model["preset"]]
    reference = deterministic_model(config)
    tokenizer = FAMILIES["evfsam"].tokenizer(None, config)
    values = encode(reference, prepare(reference, picture))
    with load(bundle, engine="onnxruntime") as runtime:
        answers = runtime.encode_image(picture).segment_many(ASKED)
    for expression, answer in zip(ASKED, answers, strict=True):
        ids = token_ids(tokenizer, [expression], config.max_tokens, PAD_ID, END_ID)
        texts = {"input_ids": ids, "text_mask": (ids != PAD_ID).float()}
        logits = ask(reference, values | texts)["mask_logits"]
        np.testing.assert_allclose(answer.logits, logits[0, 0].numpy(), atol=2e-3)
        want = (picture_logits(logits, config, *size)[0, 0] > 0).numpy()
        assert (want != answer.mask).mean() <= 1e-4
        assert (answer.no_target, answer.is_no_target, answer.category) == (None, False, None)


def test_an_answer_does_not_depend_on_its_neighbours(bundle, picture):
    with load(bundle, engine="onnxruntime") as runtime:
        scene = runtime.encode_image(picture)
        for expression, one in zip(ASKED, scene.segment_many(ASKED), strict=True):
            np.testing.assert_allclose(scene.segment(expression).logits, one.logits, atol=1e-4)


@pytest.mark.parametrize("version", ["evfsam", "evfsam2"])
def test_what_stays_fp32_says_why(version, request):
    half = open_bundle(request.getfixturevalue(f"{version}_half_bundle")).manifest.graphs
    for stage, word in (("sam_image_encoder", "neck"), ("fusion", "softmax"), ("fusion", "GELU")):
        assert half[stage].precision == "fp16"
        assert any(word in reason for reason in half[stage].fp32_islands.values())
    narrow = open_bundle(request.getfixturevalue(f"{version}_bf16_bundle")).manifest.graphs
    for graphs in (half, narrow):
        for stage in ("beit_image_encoder", "text_encoder", "mask_decoder"):
            assert graphs[stage].precision == "fp32"
            assert graphs[stage].fp32_islands["*"]
    assert "one vector" in narrow["fusion"].fp32_islands["*"]


def test_int8(bundle, tmp_path):
    options = Int8Options(calibrator="minmax", max_iou_drop=0.5, sensitivity=False)
    report = quantise_bundle(open_bundle(bundle), scene_set(2), tmp_path / "int8", options)
    config = PRESETS[open_bundle(bundle).manifest.model["preset"]]
    wanted = {s.name for s in DESIGNS["evfsam"].stages(config) if s.int8_by_default}
    assert set(report.quantised) == wanted
    assert all(report.quantised.values())
    assert report.mask_iou >= 0.85
    for engine in ("onnxruntime", "openvino"):
        with load(tmp_path / "int8", engine=engine) as runtime:
            assert not check_model(runtime, load_golden(runtime.bundle)).failures


def test_triton_carries_the_finer_maps(evfsam2_bundle, tmp_path):
    options = ServerOptions(Running("onnxruntime", "cpu", threads=1, compute=None), graphs="onnx")
    names = write_repository(open_bundle(evfsam2_bundle), tmp_path / "models", options)
    assert names == ["ris", *(f"ris_{stage}" for stage in STAGES)]
    for stage in ("sam_image_encoder", "mask_decoder"):
        text = (tmp_path / "models" / f"ris_{stage}" / "config.pbtxt").read_text()
        assert 'name: "high_res_0"' in text
    front = (tmp_path / "models" / "ris" / "config.pbtxt").read_text()
    assert 'name: "no_target" ' not in front


def test_all_blocks_repeat(model):
    """Most of the weights are in what `torch.compile` compiles."""
    repeated = [p.numel() for part in DESIGNS["evfsam"].repeated(model) for p in part.parameters()]
    whole = sum(p.numel() for p in model.parameters())
    assert 0.4 * whole < sum(repeated) < whole
