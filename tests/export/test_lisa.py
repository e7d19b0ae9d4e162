"""LISA through export, engines and INT8, with the tiny preset."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from click.testing import CliRunner
from lisa_helper import released_state, write_clip, write_folder
from onnx import TensorProto

from conftest import GOLDEN
from golden import inputs
from ris.engines import EngineOptions, Graph, create
from ris.engines.errors import ExpressionError, ImageError
from ris.export.command import main
from ris.export.families import DESIGNS
from ris.export.families.lisa.language import ClipTokens, LanguagePrefix, LanguageQuestion
from ris.export.families.sam_masks import SamMasks
from ris.export.onnx_writer import write_onnx
from ris.reference.families import FAMILIES
from ris.reference.layers.letterbox import letterbox_logits
from ris.reference.lisa.config import PRESETS
from ris.reference.lisa.deterministic import deterministic_model
from ris.reference.lisa.templates import question_text
from ris.reference.lisa.values import ask, encode, prepare
from ris.reference.preprocess import token_ids
from ris.runtime import load, open_bundle
from ris.runtime.commands.running import Running
from ris.runtime.comparing import mask_iou
from ris.runtime.parity import check_model, check_stage, load_golden
from ris.serving.triton.config import ServerOptions
from ris.serving.triton.repository import write_repository

STAGES = (
    "sam_image_encoder",
    "clip_image_encoder",
    "language_prefix",
    "language_question",
    "mask_decoder",
)
TINY = PRESETS["tiny-lisa"]
ASKED = ["left man", "The Red Ball, on the right.", " a dog "]


@pytest.fixture(scope="module")
def model():
    return deterministic_model(TINY)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def questions(texts, form="phrase", config=TINY):
    """The reference's ids and mask of expressions."""
    tokenizer = FAMILIES["lisa"].tokenizer(None, config)
    asked = [question_text(text, form, config.template) for text in texts]
    ids = token_ids(tokenizer, asked, config.max_tokens, 0)
    return {"input_ids": ids, "text_mask": (ids != 0).float()}


def test_what_runs_when(lisa_bundle):
    opened = open_bundle(lisa_bundle)
    manifest = opened.manifest
    assert (manifest.family, opened.stages) == ("lisa", STAGES)
    assert opened.wiring.image_stages == STAGES[:3]
    assert opened.wiring.text_stages == ()
    assert set(opened.wiring.kept) == {"image_embeddings", "prefix_keys", "prefix_values"}
    assert not manifest.no_target
    assert manifest.host.image_index is None


def test_pictures_are_made_from_the_picture_itself(lisa_bundle):
    """SAM's is a letterbox and its mask is cut; CLIP's is the middle."""
    manifest = open_bundle(lisa_bundle).manifest
    images = manifest.host.images
    assert {one.of for one in images.values()} == {"picture"}
    assert images["sam_image"].fit == "letterbox"
    clip = images["clip_image"]
    assert (clip.fit, clip.filter, clip.antialias, clip.levels) == ("crop", "bicubic", True, 1)
    rule = manifest.mask_rule
    assert (rule.of, rule.interpolation, rule.threshold) == ("logits", "bilinear", 0.0)
    assert rule.letterbox == images["sam_image"].size


def test_graphs_are_plain(lisa_bundle):
    """No loop, no choice of rows; constants fit into FP16; each weight is read."""
    gone = {"Loop", "If", "Scan", "GatherND", "GatherElements", "ScatterND", "NonZero", "Tile"}
    gone |= {"Attention", "Where", "Range", "Trilu", "Cos", "Sin"}
    for stage in STAGES:
        path = lisa_bundle / f"graphs/{stage}.onnx"
        onnx.checker.check_model(str(path))
        graph = onnx.load(path).graph
        operators = Counter(node.op_type for node in graph.node)
        assert not operators.keys() & gone
        read = {name for node in graph.node for name in node.input}
        assert {tensor.name for tensor in graph.initializer} <= read
        for tensor in graph.initializer:
            if tensor.data_type == TensorProto.FLOAT:
                assert np.abs(onnx.numpy_helper.to_array(tensor)).max(initial=0) < 65504


def test_the_last_layer_computes_what_is_read_alone(lisa_bundle):
    """Of the picture its keys and values, of a question its last token behind those."""
    found = {}
    for stage in ("language_prefix", "language_question"):
        graph = onnx.load(lisa_bundle / f"graphs/{stage}.onnx", load_external_data=False).graph
        weights = {t.name for t in graph.initializer if len(t.dims) == 2}
        products = [n for n in graph.node if n.op_type == "MatMul" and n.input[1] in weights]
        found[stage] = len(products)
    layers = TINY.llama.layers
    assert found["language_prefix"] == 7 * (layers - 1) + 2
    assert found["language_question"] == 7 * layers + 2  # the prompt


@torch.no_grad()
def test_the_language_model_in_two_graphs_is_the_reference(model):
    """Prefix and question apart are one pass over both, for several questions at once."""
    image = drawn(2, 3, TINY.clip.image_size, TINY.clip.image_size)
    tokens = ClipTokens(model)(image)
    torch.testing.assert_close(tokens, model.project(model.encode_clip(image)))
    keys, values = LanguagePrefix(model)(tokens)
    want = model.read_picture(tokens)
    torch.testing.assert_close(keys, want.keys, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(values, want.values, rtol=1e-5, atol=1e-5)

    texts = questions(ASKED)
    ids, mask = texts["input_ids"], texts["text_mask"]
    got = LanguageQuestion(model)(ids.int(), mask, keys[:1], values[:1])
    constant = torch.tensor([TINY.constant_ids])
    end = torch.tensor([[TINY.tokens.im_end]])
    for row, count, prompt in zip(ids, mask.sum(1).long(), got, strict=True):
        parts = [constant, None, end, row[None, :count]]
        rows = [tokens[:1] if part is None else model.embed_tokens(part) for part in parts]
        whole = model.norm(model.run(torch.cat(rows, 1)))[:, -1]
        torch.testing.assert_close(prompt, model.sparse_prompt(whole)[0], rtol=1e-5, atol=1e-5)


def test_rows_are_as_long_as_the_longest_question_of_a_call(lisa_bundle, picture):
    """One graph takes every length; what is longer than a call's questions is not computed."""
    manifest = open_bundle(lisa_bundle).manifest
    assert manifest.host.text.lengths == (24, 32, 40, 64)
    inputs_of = {one.name: one.inputs for one in manifest.stages}
    shapes = {spec.name: spec.shape for spec in inputs_of["language_question"]}
    assert shapes["input_ids"] == shapes["text_mask"] == ("expressions", "tokens")
    count = manifest.graphs["language_question"].operations
    assert (count.fixed, count.image) == (0, 0)

    tokenizer = FAMILIES["lisa"].tokenizer(None, TINY)
    texts = ["man", "man " * 20, "man " * 30, "man " * 50]
    with load(lisa_bundle, engine="onnxruntime") as runtime:
        scene = runtime.encode_image(picture)
        session, seen = runtime.open_sessions["language_question"], []
        run = session.run_and_keep
        session.run_and_keep = lambda feeds, *steps: seen.append(feeds) or run(feeds, *steps)
        for asked in ([text] for text in texts):
            scene.segment_many(asked, form="sentence")
        scene.segment_many(texts[:2], form="sentence")
    used = [
        len(tokenizer.encode(question_text(one, "sentence", TINY.template)).ids) for one in texts
    ]
    lengths = manifest.host.text.lengths
    want = [next(length for length in lengths if length >= one) for one in [*used, max(used[:2])]]
    assert set(want) == set(lengths)
    assert [feeds["input_ids"].shape[1] for feeds in seen] == want
    assert [feeds["text_mask"].shape[1] for feeds in seen] == want


@pytest.mark.parametrize("most", [1, 8])
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_question_has_the_same_prompt_at_every_length(lisa_bundle, engine, most):
    """Alone, where the first axis is fixed, and with others that are shorter."""
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    bundle = open_bundle(lisa_bundle)
    golden = load_golden(bundle)
    kept = {name: golden[name] for name in ("prefix_keys", "prefix_values")}
    texts = {name: value.numpy() for name, value in questions(["it", "dog"][:most]).items()}
    ids, mask = texts["input_ids"].astype(np.int32), texts["text_mask"]
    longest = int(mask.sum(1).max())
    with create(engine, EngineOptions("cpu", max_expressions=most)).load(
        bundle.graph("language_question")
    ) as session:

        def prompt(length):
            rows = {"input_ids": ids[:, :length], "text_mask": mask[:, :length]}
            feeds = {name: np.ascontiguousarray(value) for name, value in rows.items()}
            return session.run({**feeds, **kept})["sparse_prompt"]

        want = prompt(TINY.max_tokens)
        lengths = [one for one in (longest, *bundle.manifest.host.text.lengths) if one >= longest]
        for length in (*lengths, lengths[0]):  # and again, behind longer ones
            found = prompt(length)
            assert np.abs(found - want).max() <= 1e-6 * np.abs(want).max(), length


def test_as_many_tokens_as_heads(tmp_path):
    """OpenVINO computes such an attention wrongly where it knows every shape: here it does not."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    config = replace(TINY, llama=replace(TINY.llama, width=256, layers=2, heads=32))
    small = deterministic_model(config)
    stage = next(one for one in DESIGNS["lisa"].stages(config) if one.name == "language_question")
    module, path = stage.build(small, "native"), tmp_path / "question.onnx"
    write_onnx(module, stage, path, one_image=True)
    graph = Graph(
        *(stage.name, path, stage.inputs, stage.outputs),
        cache=tmp_path / "engines",
        lengths=stage.lengths,
    )
    sizes = {"images": 1, "expressions": 1, "tokens": 32}
    feeds = {
        spec.name: drawn(*(sizes[n] if isinstance(n, str) else n for n in spec.shape))
        for spec in stage.inputs
    }
    feeds["input_ids"] = (feeds["input_ids"].abs() * 100).int()
    feeds["text_mask"] = (torch.arange(32)[None] < 27).float()
    with torch.no_grad():
        want = module(**feeds).numpy()
    assert 32 in stage.lengths
    with create("openvino", EngineOptions("cpu", max_expressions=1)).load(graph) as session:
        got = session.run({name: value.numpy() for name, value in feeds.items()})["sparse_prompt"]
    assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


@torch.no_grad()
def test_masks_of_prompts_are_the_references(model):
    side = TINY.sam.grid
    embeddings = drawn(1, TINY.prompt_width, side, side)
    prompts = 4 * drawn(5, 1, TINY.prompt_width, seed=3)
    got = SamMasks(model.sam)(embeddings, prompts)
    torch.testing.assert_close(got, model.decode_masks(embeddings, prompts), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["", "half_", "bf16_", "narrow_"])
def test_masks_are_the_references(precision, engine, request):
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    with load(request.getfixturevalue(f"lisa_{precision}bundle"), engine=engine) as runtime:
        report = check_model(runtime, load_golden(runtime.bundle))
        assert report.no_target is None
        assert not report.failures


@pytest.mark.parametrize("size", [(480, 640), (613, 427), (97, 200), (256, 256)])
@torch.no_grad()
def test_pictures_of_any_shape_get_the_references_masks(lisa_bundle, model, size):
    """Expressions of different lengths at once, in either form."""
    picture = inputs.image(1, *size)
    values = encode(model, prepare(model, picture))
    with load(lisa_bundle, engine="onnxruntime") as runtime:
        scene = runtime.encode_image(picture)
        for form in (None, "phrase", "sentence"):
            answers = scene.segment_many(ASKED, form=form)
            for expression, answer in zip(ASKED, answers, strict=True):
                texts = questions([expression], form or "phrase")
                logits = ask(model, values | texts)["mask_logits"]
                np.testing.assert_allclose(answer.logits, logits[0, 0].numpy(), atol=2e-3)
                want = letterbox_logits(logits, *size, TINY.sam.image_size)[0, 0] > 0
                assert (want.numpy() != answer.mask).mean() <= 1e-4
                assert (answer.no_target, answer.is_no_target) == (None, False)


def test_an_answer_does_not_depend_on_its_neighbours(lisa_bundle, picture):
    with load(lisa_bundle, engine="onnxruntime") as runtime:
        scene = runtime.encode_image(picture)
        for expression, one in zip(ASKED, scene.segment_many(ASKED), strict=True):
            np.testing.assert_allclose(scene.segment(expression).logits, one.logits, atol=1e-4)


def test_several_expressions_share_what_is_kept(lisa_bundle, picture):
    """The arrays of the scene go into the graph as the other one gave them."""
    with load(lisa_bundle, engine="onnxruntime") as runtime:
        scene = runtime.encode_image(picture)
        assert scene.values["prefix_keys"].shape[0] == 1
        session, seen = runtime.open_sessions["language_question"], []
        run = session.run_and_keep
        session.run_and_keep = lambda feeds, *steps: seen.append(feeds) or run(feeds, *steps)
        scene.segment_many(ASKED)
        (feeds,) = seen
        assert feeds["prefix_keys"] is scene.values["prefix_keys"]
        assert feeds["prefix_values"] is scene.values["prefix_values"]
        assert len(feeds["input_ids"]) == len(ASKED)


@pytest.mark.parametrize("precision", ["half_", "bf16_", "narrow_"])
def test_a_scene_keeps_half_the_bytes(precision, lisa_bundle, request, picture):
    """In FP16 where the graphs are narrow; the FP32 bundle's are FP32 to the last bit."""
    sizes, kinds = [], []
    for bundle in (lisa_bundle, request.getfixturevalue(f"lisa_{precision}bundle")):
        specs = [
            spec
            for stage in open_bundle(bundle).manifest.stages
            for spec in (*stage.inputs, *stage.outputs)
            if spec.name.startswith("prefix_")
        ]
        assert len(specs) == 4
        kinds += {spec.dtype for spec in specs}
        with load(bundle, engine="onnxruntime") as runtime:
            values = runtime.encode_image(picture).values
            kept = [values[name] for name in ("prefix_keys", "prefix_values")]
        assert {str(value.dtype) for value in kept} == {specs[0].dtype}
        sizes.append(sum(value.nbytes for value in kept))
    assert kinds == ["float32", "float16"]
    assert sizes[0] == 2 * sizes[1]


@pytest.mark.parametrize("precision", ["half_", "bf16_", "narrow_"])
def test_no_graph_casts_all_that_is_kept(precision, request):
    """Each layer casts its own part."""
    bundle = request.getfixturevalue(f"lisa_{precision}bundle")
    for stage in ("language_prefix", "language_question"):
        model = onnx.load(bundle / f"graphs/{stage}.onnx", load_external_data=False)
        onnx.checker.check_model(str(bundle / f"graphs/{stage}.onnx"), full_check=True)
        values = onnx.shape_inference.infer_shapes(model).graph
        whole = {
            value.name
            for value in (*values.value_info, *values.input, *values.output)
            if len(shape := value.type.tensor_type.shape.dim) == 5
            and shape[3].dim_value == TINY.prefix_length
        }
        assert {"prefix_keys", "prefix_values"} <= whole
        casts = [node for node in model.graph.node if node.op_type == "Cast"]
        assert len(casts) >= 2 * TINY.llama.layers
        assert whole.isdisjoint(name for node in casts for name in (*node.input, *node.output))


def test_openvino_multiplies_no_whole_keys(lisa_bundle):
    """It would move a factor of the logits to all keys of all layers, in each layer."""
    openvino = pytest.importorskip("openvino", reason="OpenVINO is not installed")
    model = openvino.Core().read_model(str(lisa_bundle / "graphs/language_question.onnx"))
    settings = {"INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(model, "CPU", settings)
    whole = [
        node.get_friendly_name()
        for node in compiled.get_runtime_model().get_ordered_ops()
        if node.get_output_size() and len(node.get_output_partial_shape(0)) == 5
    ]
    assert sorted(whole) == ["prefix_keys", "prefix_values"]


def test_what_cannot_be_asked_is_refused(lisa_bundle, picture):
    """Nothing is cut: a question's end is what the model answers."""
    with load(lisa_bundle, engine="onnxruntime") as runtime:
        scene = runtime.encode_image(picture)
        with pytest.raises(ExpressionError) as caught:
            scene.segment("a very long one " * 9)
        assert "is too long: its question has" in str(caught.value)
        assert str(caught.value).endswith("the model reads 64; say it in fewer words")
        for text in ("the [SEG] thing", "<im_start>", "a</s>", "<unk>"):
            with pytest.raises(ExpressionError, match="a token of the model's own; leave it out"):
                scene.segment(text)
        with pytest.raises(ExpressionError) as caught:
            scene.segment("left man", form="question")
        expected = "there is no form 'question'; the model has phrase and sentence"
        assert str(caught.value) == expected
        with pytest.raises(ImageError, match="more than 100 times as long as it is wide"):
            runtime.encode_image(np.zeros((4, 401, 3), np.uint8))


def test_other_models_have_no_forms(tiny_bundle, picture):
    with load(tiny_bundle, engine="onnxruntime") as runtime:
        with pytest.raises(ExpressionError) as caught:
            runtime.segment(picture, "left man", form="phrase")
        expected = "the model asks every expression as it is; leave the form 'phrase' out"
        assert str(caught.value) == expected


def test_what_stays_fp32_says_why(lisa_half_bundle):
    graphs = open_bundle(lisa_half_bundle).manifest.graphs
    for stage in ("language_prefix", "language_question"):
        assert graphs[stage].precision == "fp16"
        assert any("RMS norm" in reason for reason in graphs[stage].fp32_islands.values())
    assert graphs["mask_decoder"].precision == "fp32"
    assert graphs["mask_decoder"].fp32_islands["*"]


def test_a_released_folder_gives_the_references_masks(tmp_path, picture):
    """From files with exactly the official keys, cut short, to masks, by the command."""
    state = released_state(TINY)
    folder = write_folder(tmp_path / "LISA-7B-v1", TINY, state)
    shutil.copy(GOLDEN / "lisa" / "tokenizer_small.model", folder / "tokenizer.model")
    clip = write_clip(tmp_path / "clip.safetensors", TINY)
    given = ["--checkpoint", folder, "--clip-checkpoint", clip, "--template", "llava_llama_2"]
    out = tmp_path / "bundle"
    done = CliRunner().invoke(main, [*map(str, given), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    manifest = open_bundle(out).manifest
    assert manifest.model["template"] == "llava_llama_2"
    assert manifest.host.text.forms["phrase"].behind.endswith("mask. [/INST]")

    config = replace(TINY, template="llava_llama_2")
    reference = FAMILIES["lisa"].empty_model(config)
    rounded = deterministic_model(config, 3).state_dict()
    rounded |= {key: state[f"model.{key}"].float() for key in rounded if f"model.{key}" in state}
    reference.load_state_dict(rounded, assign=True)
    with torch.no_grad(), load(out, engine="onnxruntime") as runtime:
        values = encode(reference, prepare(reference, picture))
        scene = runtime.encode_image(picture)
        for expression in ASKED:
            texts = questions([expression], config=config)
            logits = ask(reference, values | texts)["mask_logits"]
            want = letterbox_logits(logits, *picture.shape[:2], TINY.sam.image_size)[0, 0] > 0
            assert mask_iou(scene.segment(expression).mask, want.numpy()) >= 0.9999
    assert manifest.mask_iou >= 0.9999


def test_tensorrt_rtx_compiles_rows_of_every_length(lisa_bundle, tmp_path):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    graph = replace(open_bundle(lisa_bundle).graph("language_question"), cache=tmp_path)
    built = create("tensorrt-rtx", EngineOptions()).build(graph)
    assert built.artifact.stat().st_size > 0
    assert set(built.report["layers"]) <= {"fp32", "integer"}


@pytest.mark.parametrize("stage", ["language_prefix", "language_question"])
def test_tensorrt_rtx_compiles_fp16_edges(lisa_half_bundle, tmp_path, stage):
    """FP16 graphs, whose edges are FP16 too."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    graph = replace(open_bundle(lisa_half_bundle).graph(stage), cache=tmp_path)
    assert "float16" in {spec.dtype for spec in (*graph.inputs, *graph.outputs)}
    built = create("tensorrt-rtx", EngineOptions()).build(graph)
    assert built.artifact.stat().st_size > 0
    assert built.report["layers"].get("fp16")


def test_parity_looks_at_shorter_rows_too(lisa_bundle):
    """An engine that is right at the longest rows alone does not agree."""
    bundle = open_bundle(lisa_bundle)
    seen = []
    with create("onnxruntime", EngineOptions()).load(bundle.graph("language_question")) as session:

        class WrongAtShortRows:
            graph = session.graph

            def run(self, feeds):
                seen.append(feeds["input_ids"].shape[1])
                found = session.run(feeds)
                return found if seen[-1] == 64 else {name: -one for name, one in found.items()}

        [right] = check_stage("language_question", session, load_golden(bundle)).values()
        [wrong] = check_stage("language_question", WrongAtShortRows(), load_golden(bundle)).values()
    assert right.relative < 1e-4 < 1 < wrong.relative
    assert set(seen) > {64}
    assert set(seen) < set(bundle.manifest.host.text.lengths)


def test_triton_gets_the_shared_weights_beside_each_graph(lisa_bf16_bundle, tmp_path):
    options = ServerOptions(Running("onnxruntime", "cpu", threads=1, compute=None), graphs="onnx")
    names = write_repository(open_bundle(lisa_bf16_bundle), tmp_path / "models", options)
    assert names == ["ris", *(f"ris_{stage}" for stage in STAGES)]
    for stage in ("language_prefix", "language_question"):
        version = tmp_path / "models" / f"ris_{stage}" / "1"
        assert {file.name for file in version.iterdir()} == {"model.onnx", "language.data"}
        onnx.checker.check_model(str(version / "model.onnx"))
    config = (tmp_path / "models" / "ris_language_question" / "config.pbtxt").read_text()
    assert 'name: "prefix_keys" data_type: TYPE_FP16' in config
    assert 'name: "input_ids" data_type: TYPE_INT32 dims: [ -1, -1 ]' in config
    assert 'key: "input_ids" value { data_type: TYPE_INT32 dims: [ 1, 24 ]' in config


def test_all_blocks_repeat(model):
    """Most of the weights are in what `torch.compile` compiles."""
    repeated = [p.numel() for part in DESIGNS["lisa"].repeated(model) for p in part.parameters()]
    whole = sum(p.numel() for p in model.parameters())
    assert 0.4 * whole < sum(repeated) < whole
