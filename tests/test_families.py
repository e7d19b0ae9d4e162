"""Everything works over any family: a toy of two stages goes all the way, and no room knows one."""

from __future__ import annotations

import json
import re
import subprocess

import numpy as np
import pytest
import torch
import toy_family
from click.testing import CliRunner
from onnx import TensorProto
from onnx import load as load_onnx

from conftest import REPO
from ris.calibration.int8.options import Int8Options
from ris.calibration.int8.quantise import quantise_bundle
from ris.calibration.samples import scene_set
from ris.engines.errors import CheckpointError
from ris.evaluation.features import FeatureCache
from ris.export import sources
from ris.export.bundle_writer import ExportOptions, export_bundle
from ris.export.families import DESIGNS
from ris.export.live_reference import ReferenceSegmenter, live_reference, timed_reference
from ris.export.plan import lines, make_plan
from ris.reference.checkpoint import WeightFiles
from ris.reference.families import FAMILIES
from ris.runtime import load, open_bundle
from ris.runtime.commands.parity import main as parity
from ris.runtime.commands.running import Running
from ris.runtime.comparing import mask_iou
from ris.runtime.parity import check_model, load_golden
from ris.serving.triton.config import ServerOptions, graph_config
from ris.serving.triton.repository import write_repository

ASKED = ["left man", "the red ball", "second car from the right"]


@pytest.fixture(scope="module", autouse=True)
def toy():
    """The family, in the tables."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        toy_family.register(monkeypatch)
        yield


@pytest.fixture(scope="module")
def bundles(toy_bundle, tmp_path_factory):
    folder = tmp_path_factory.mktemp("narrow")
    narrow = {name: toy_family.export(folder / name, name) for name in ("fp16", "bf16")}
    return {"fp32": toy_bundle} | narrow


def test_the_manifest_says_what_the_family_says(toy_bundle):
    bundle = open_bundle(toy_bundle)
    manifest = bundle.manifest
    assert (manifest.format_version, manifest.family) == (2, "toy")
    assert bundle.stages == ("look", "point")
    assert bundle.wiring.image_stages == ("look",)
    assert bundle.wiring.question_stages == ("point",)
    assert bundle.wiring.kept == ("wide_features",)
    look, point = manifest.stages
    assert (look.bfloat16, look.int8_by_default) == (True, True)
    assert (point.bfloat16, point.int8_by_default) == (False, False)
    assert [spec.value for spec in point.inputs] == ["wide_features", "tokens", "image_number"]
    assert sorted(manifest.files) == ["golden.npz", "words.json"]
    golden = np.load(toy_bundle / "golden.npz")
    assert set(golden) == {
        *("rgb", "expressions", "view", "tokens", "features", "wide_features", "logits"),
    }
    assert golden["view"].dtype == np.uint8
    assert toy_family.PAD in golden["tokens"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_masks_are_the_references(bundles, precision, engine):
    pytest.importorskip(engine, reason=f"{engine} is not installed")
    with load(bundles[precision], engine=engine) as model:
        golden = load_golden(model.bundle)
        report = check_model(model, golden)
        assert not report.failures
        assert report.no_target is None
        assert set(report.rows) == {
            *("host.view", "host.wide_features"),
            *("look.features", "point.logits", "end_to_end.mask_logits"),
        }
        for answer in model.encode_image(golden["rgb"]).segment_many(ASKED):
            assert 0.2 < answer.mask.mean() < 0.8
            assert answer.no_target is None
            assert not answer.is_no_target


def test_precisions_are_in_the_graphs(bundles):
    for precision, kind in (("fp16", TensorProto.FLOAT16), ("bf16", TensorProto.BFLOAT16)):
        look, point = open_bundle(bundles[precision]).manifest.stages
        graph = load_onnx(bundles[precision] / look.file, load_external_data=False).graph
        weights = [tensor for tensor in graph.initializer if len(tensor.dims) == 4]
        assert [tensor.data_type for tensor in weights] == [kind] * 2
        assert look.precision == precision
        assert look.fp32_islands == {}
    assert point.fp32_islands == {"*": "a product of one token"}  # of the bfloat16 bundle
    kept = open_bundle(bundles["fp16"]).manifest.graphs["point"].fp32_islands
    assert "a product of one token" in kept.values()


def test_an_image_is_looked_at_once(toy_bundle, picture):
    with load(toy_bundle, engine="onnxruntime") as model:
        scene = model.encode_image(picture)
        assert set(scene.values) == {"wide_features"}
        assert {"image.look", "image.wide_features"} <= set(scene.timings)
        together = scene.segment_many(ASKED)
        sessions = model._graphs.sessions
        look = sessions.pop("look")  # a question does without it
        for expression, one in zip(ASKED, together, strict=True):
            alone = scene.segment(expression)
            np.testing.assert_allclose(alone.logits, one.logits, atol=1e-5)
        sessions["look"] = look


def test_words_are_padded_with_the_familys_id(toy_bundle, picture):
    """What fills a row is not read: an expression means the same in any row."""
    with load(toy_bundle, engine="onnxruntime") as model:
        tokens = model._graphs.host.tokenize(["red ball"])
        assert list(tokens.ids[0, -2:]) == [toy_family.PAD] * 2
        scene = model.encode_image(picture)
        noted = scene.segment("red [PAD]").notes
        assert noted == ("[PAD] is padding to the model: it does not read it",)


def test_pytorch_beside_it(toy_bundle, picture):
    """The reference on another image and other words, timed, and behind `ris-parity`."""
    bundle = open_bundle(toy_bundle)
    mirrored = np.ascontiguousarray(picture[:, ::-1])
    with load(toy_bundle, engine="onnxruntime") as model:
        report = check_model(model, live_reference(bundle, mirrored, ["red car", "ball"], None))
        assert not report.failures
    first, following = timed_reference(bundle, picture, ("left man", "ball"), 1)()
    assert min(first, following) > 0
    done = CliRunner().invoke(parity, [str(toy_bundle), "--reference", "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["mask_iou"] == pytest.approx(1, abs=1e-4)


def test_its_checkpoint_is_told_and_exported(toy_bundle, tmp_path, picture):
    config = toy_family.ToyConfig()
    model = toy_family.Toy().made_up_model(config, 0)
    torch.save(model.state_dict(), tmp_path / "toy.pth")
    files = WeightFiles(checkpoint=tmp_path / "toy.pth")
    source = sources.from_files(files)
    assert source.family == "toy"
    plan = make_plan(source, "fp16", tmp_path / "out", None, check_target=lambda: None)
    said = "\n".join(lines(source, plan))
    assert "Model: a toy" in said
    assert "Would work" in said
    assert [graph.precision for graph in plan.graphs] == ["fp16", "fp16"]
    with pytest.raises(CheckpointError, match="of the family toy, which has no variants"):
        sources.from_files(files, variant="category")

    reference = ReferenceSegmenter({"checkpoint": tmp_path / "toy.pth"}, threads=1, device="cpu")
    assert (reference.square, reference.rule.threshold) == (32, 4.5)
    answers = reference.answer(picture, ASKED, [None] * len(ASKED))
    with load(toy_bundle, engine="onnxruntime") as runtime:
        results = runtime.encode_image(picture).segment_many(ASKED)
    for answer, result in zip(answers, results, strict=True):
        np.testing.assert_allclose(answer.logits, result.logits, atol=1e-4)


def test_a_choice_goes_all_the_way(toy_bundle, tmp_path):
    """From the option to the weights and the manifest, and from there to the reference."""
    torch.save(
        toy_family.Toy().made_up_model(toy_family.ToyConfig(), 0).state_dict(), tmp_path / "toy.pth"
    )
    files = WeightFiles(checkpoint=tmp_path / "toy.pth")
    source = sources.from_files(files, chosen={"bias": "dropped"})
    model = source.make()
    assert not model.project.bias.any()
    assert source.inspection.notes == ("project.bias: dropped",)
    out = tmp_path / "bundle"
    export_bundle(
        lambda: model,
        source.config,
        out,
        family="toy",
        source=source.describe(),
        options=ExportOptions(precision="fp32"),
    )
    bundle = open_bundle(out)
    assert bundle.manifest.model["bias"] == "dropped"
    assert not sources.rebuild_model(bundle, files).project.bias.any()

    assert open_bundle(toy_bundle).manifest.model["bias"] == "kept"
    assert sources.from_files(files).make().project.bias.any()
    made_up = sources.made_up("toy", 0, chosen={"bias": "dropped"})
    assert made_up.config.bias == "dropped"
    with pytest.raises(CheckpointError) as caught:
        sources.demo(chosen={"bias": "dropped"})
    assert str(caught.value) == "--bias is of no use to the family dfam; leave it out"


@pytest.mark.parametrize("asked", [None, ("look", "point")])
def test_int8(toy_bundle, tmp_path, asked):
    """The graphs that were asked for, or the family's own; the masks stay about what they were."""
    options = Int8Options(asked, calibrator="minmax", max_iou_drop=0.1, sensitivity=False)
    report = quantise_bundle(open_bundle(toy_bundle), scene_set(4), tmp_path / "int8", options)
    bundle = open_bundle(tmp_path / "int8")
    written = {stage.name for stage in bundle.manifest.stages if stage.int8 is not None}
    assert written == set(report.quantised) == set(asked or ("look",))
    assert all(report.quantised.values())

    golden = load_golden(bundle)
    answers = []
    for folder in (toy_bundle, tmp_path / "int8"):
        with load(folder, engine="onnxruntime") as model:
            answers.append(model.encode_image(golden["rgb"]).segment_many(ASKED))
            assert not check_model(model, golden).failures
    for want, got in zip(*answers, strict=True):
        assert mask_iou(want.mask, got.mask) > 0.9
        assert not np.array_equal(want.logits, got.logits)


def test_triton_gets_a_model_for_each_graph(toy_bundle, tmp_path):
    running = Running("onnxruntime", "cpu", threads=1, compute=None)
    options = ServerOptions(running, graphs="onnx")
    bundle = open_bundle(toy_bundle)
    names = write_repository(bundle, tmp_path / "models", options)
    assert names == ["ris", "ris_look", "ris_point"]
    for stage, batch in (("look", 8), ("point", 0)):
        text = (tmp_path / "models" / f"ris_{stage}" / "config.pbtxt").read_text()
        assert text == graph_config(bundle, stage, options)
        assert f"max_batch_size: {batch}" in text
        graph = bundle.manifest.graphs[stage]
        for spec in (*graph.inputs, *graph.outputs):
            assert f'name: "{spec.name}"' in text
    front = (tmp_path / "models" / "ris" / "config.pbtxt").read_text()
    assert 'name: "no_target" ' not in front
    assert 'name: "category"' not in front


def test_the_feature_store_keeps_what_questions_take(toy_bundle, tmp_path, picture):
    cache = FeatureCache(tmp_path / "features", 10**6)
    with load(toy_bundle, engine="onnxruntime") as model:
        want = cache.encode(model, picture).segment_many(ASKED)
        got = cache.encode(model, picture).segment_many(ASKED)
    assert (cache.misses, cache.hits) == (1, 1)
    [entry] = (tmp_path / "features").glob("*.npz")
    assert list(np.load(entry)) == ["wide_features"]
    for one, other in zip(want, got, strict=True):
        np.testing.assert_array_equal(one.logits, other.logits)


ROOMS = (
    *("calibration", "cpp", "data", "engines", "evaluation", "export", "package", "reference"),
    *("runtime", "serving", "training"),
)
MODELS = {*FAMILIES, *(path.parent.name for path in (REPO / "reference").glob("*/family.py"))}
"""The families, and those that have a model but no graphs yet."""

OF_THE_FAMILY = re.compile(
    rf"(^|/)({'|'.join(MODELS)})/"
    r"|^cpp/tests/|^runtime/demo-bundle/|^reference/data/|^data/scenes/data/"
)
OWN_KEYS = re.compile(r"\b(clip_mlpl|txt2txt|nt_weight)\b")
"""Of `dfam`'s checkpoints. The training, which is for `dfam` alone, names them, too."""

ALSO_WORDS = ("segmenter", "pyramid", "backbone", "grouping", "assignment", "template")
"""Stages and choices that are words of something else, too: these are looked for in quotes."""


def test_no_stage_is_named_outside_of_its_family():
    """Nor a choice or a key; not in code, comments, schema or help texts, as documents may."""
    families = [family for name, family in FAMILIES.items() if name != toy_family.NAME]
    stages = {
        stage.name
        for family in families
        for config in family.presets.values()
        for stage in DESIGNS[family.name].stages(config)
    }
    fields = {choice.field for family in families for choice in family.choices}
    assert {"fusion", "image_stem", "segmenter", "lang_weight"} <= stages | fields
    plain = "|".join((stages | fields).difference(ALSO_WORDS)).replace("_", "[_-]")
    # segment-anything calls a part of its model as `dfam` calls a stage
    names = re.compile(rf"(?<!sam\.)\b({plain})\b|[\"'`]({'|'.join(ALSO_WORDS)})[\"'`.]")
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *ROOMS],
        cwd=REPO,
        capture_output=True,
        text=True,
        check=True,
    )
    found = []
    for name in listed.stdout.splitlines():
        path = REPO / name
        if OF_THE_FAMILY.search(name) or path.suffix == ".md" or not path.is_file():
            continue
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            has_key = not name.startswith("training/") and OWN_KEYS.search(line)
            if names.search(line) or has_key:
                found.append(f"{name}:{number}: {line.strip()}")
    assert not found, "\n".join(found)
