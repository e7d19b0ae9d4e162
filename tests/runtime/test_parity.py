"""`ris-parity`: against golden.npz and the live reference; exit code 1 past the tolerance."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import numpy_helper
from PIL import Image

from ris.runtime import BUILT_IN, load, open_bundle
from ris.runtime.bundle import sha256_of
from ris.runtime.commands.parity import main
from ris.runtime.comparing import compare, compare_mask, mask_iou
from ris.runtime.masks import PLAIN
from ris.runtime.parity import check_model, load_golden
from ris.runtime.segmentation import Segmentation
from ris.runtime.tolerance import (
    TOLERANCES,
    failed_rows,
    no_target_row,
    thresholded_rows,
    tolerance_of,
)

NO_TARGET = "fusion.no_target_logits"


def parity(*arguments):
    return CliRunner().invoke(main, [str(a) for a in arguments])


@pytest.mark.parametrize(
    "name", ["tiny_bundle", "tiny_fp16_bundle", "tiny_category_bundle", "tiny_supplement_bundle"]
)
def test_golden(name, request):
    done = parity(request.getfixturevalue(name))
    assert done.exit_code == 0, done.output
    rows = ("host.dense_embedding", "fusion.sparse_prompt", "end_to_end.mask_logits", "masks: IoU")
    for row in rows:
        assert row in done.output


def test_golden_where_graphs_take_one_expression_at_a_time(tiny_bundle):
    """As OpenVINO compiles full-size graphs; the reference has two."""
    pytest.importorskip("openvino")
    with load(tiny_bundle, engine="openvino", max_expressions=1) as model:
        report = check_model(model, load_golden(model.bundle))
    assert not report.failures
    assert report.rows["text_encoder.text_features"].relative < 1e-4


@pytest.mark.parametrize("name", ["tiny_bundle", "tiny_category_bundle"])
def test_the_live_reference(name, request):
    done = parity(request.getfixturevalue(name), "--reference", "--json")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["mask_iou"] >= 0.9999
    assert report["rows"]["host.sam_image"]["max_abs"] == 0
    if "category" in name:
        assert report["no_target"] is None
    else:
        assert (report["no_target"]["asked"], report["no_target"]["differ"]) == (2, 0)
        assert report["no_target"]["moved"] < 1e-5


def test_the_live_reference_on_another_image(tiny_bundle, tmp_path):
    rgb = np.random.default_rng(5).integers(0, 256, (77, 123, 3), dtype=np.uint8)
    Image.fromarray(rgb).save(tmp_path / "a.png")
    options = ["--image", tmp_path / "a.png", "-e", "the red ball", "-e", "tree"]
    done = parity(tiny_bundle, "--reference", "--json", *options)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"]["end_to_end.mask_logits"]["relative"] < 1e-3
    assert "need --image" in parity(tiny_bundle, "-e", "tree").output
    assert "--image needs --reference" in parity(tiny_bundle, *options).output


def test_wrong_weight_files_are_found_before_the_bundle_is_opened(tiny_bundle, monkeypatch):
    monkeypatch.setattr("ris.runtime.commands.running.load", lambda *a, **k: pytest.fail("opened"))
    done = parity(tiny_bundle, "--reference", "--checkpoint", tiny_bundle / "manifest.json")
    assert done.exit_code == 2
    assert "made-up weights; leave --checkpoint and the others out" in done.output
    done = parity(tiny_bundle, "--reference", "--image", tiny_bundle / "no.jpg", "-e", "tree")
    assert (done.exit_code, "no.jpg" in done.output) == (2, True), done.output


def test_a_wrong_weight_is_found(bundle_copy):
    """Parity sees what hashes cannot: one changed bias, with the hashes changed too."""
    path = bundle_copy / "graphs" / "mask_decoder.onnx"
    model = onnx.load(path)
    bias = next(t for t in model.graph.initializer if "hypernetwork.layers.2.bias" in t.name)
    bias.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(bias) + np.float32(0.3), bias.name))
    onnx.save_model(model, path)  # weights inside
    manifest = json.loads((bundle_copy / "manifest.json").read_text())
    decoder = next(stage for stage in manifest["stages"] if stage["name"] == "mask_decoder")
    decoder["sha256"] = {"graphs/mask_decoder.onnx": sha256_of(path)}
    (bundle_copy / "manifest.json").write_text(json.dumps(manifest))
    done = parity(bundle_copy)
    assert done.exit_code == 1
    assert "Error: out of tolerance: mask_decoder.mask_logits" in done.output
    assert "mask IoU" in done.output


def test_a_square_is_renamed_for_format_1_alone(tmp_path, format_1_bundle):
    """Calibration copies its golden.npz beside a manifest of this format."""
    bundle = shutil.copytree(format_1_bundle, tmp_path / "bundle")
    (bundle / "manifest.json").unlink()
    (bundle / "manifest.json").write_text(open_bundle(format_1_bundle).manifest.to_json())
    opened = open_bundle(bundle)
    golden = load_golden(opened)
    assert golden["sam_image"].shape == (1, 3, 256, 256)
    assert "square" not in golden

    manifest = opened.manifest  # of a family whose image has that name
    images = {"square": manifest.host.images["sam_image"]}
    other = replace(manifest, host=replace(manifest.host, images=images))
    golden = load_golden(replace(opened, manifest=other))
    assert golden["square"].shape == (1, 3, 256, 256)
    assert "sam_image" not in golden


def test_one_flipped_pixel_of_a_small_mask_is_no_failure(tiny_bundle):
    """IoU says little about a mask of a few pixels; then the share of flipped pixels decides."""
    tolerance = replace(TOLERANCES["fp32"], stage=1, mask_logits=1)
    with load(tiny_bundle) as model:
        golden = load_golden(model.bundle)
        scene = model.encode_image(golden["rgb"])
        found = [r.logits for r in scene.segment_many([str(e) for e in golden["expressions"]])]
        assert not check_model(model, golden).failures
        far = golden | {"mask_logits": np.stack(found)[:, None] - 0.05}
        assert any("mask IoU" in f for f in check_model(model, far, tolerance).failures)
        assert not check_model(model, far, replace(tolerance, flipped=1)).failures


@pytest.fixture(scope="module")
def other_decisions(tiny_bundle):
    """The tiny model's parity with a reference that decides otherwise, so far from 0.5."""
    with load(tiny_bundle) as model:
        golden = load_golden(model.bundle)
        own = model.segment(golden["rgb"], str(golden["expressions"][0])).no_target
        side = -1 if own > 0.5 else 1

        def check(far):
            want = 0.5 + side * far
            logits = np.array([[0, np.log(want / (1 - want))]], np.float32)
            reference = golden | golden_of_one(golden, logits)
            return check_model(model, reference, replace(TOLERANCES["bf16"], no_target_margin=0.1))

        yield check


def golden_of_one(golden, logits):
    """The arrays of the first expression, with other no-target logits."""
    one = {name: a[:1] for name, a in golden.items() if len(a) == len(golden["expressions"])}
    return one | {"no_target_logits": logits}


def test_narrow_arithmetic_may_decide_otherwise_near_a_half(other_decisions):
    """Its logits have no bound; a decision that the reference is sure of is the same."""
    near = other_decisions(0.09)
    assert near.failures == ()
    assert (near.no_target.asked, near.no_target.differ) == (1, 1)
    assert near.no_target.moved > 0.09
    assert near.rows[NO_TARGET].relative > 6e-2

    far = other_decisions(0.11)
    [failure] = far.failures
    assert "no-target probability" in failure
    assert "within 0.1 of 0.5" in failure
    assert far.no_target.differ == 1


def test_no_target_logits_are_finite_and_in_fp32_exact():
    off = compare(np.array([[1.0, 2.0]]), np.array([[1.1, 2.0]]))
    assert failed_rows({NO_TARGET: off}, TOLERANCES["bf16"], NO_TARGET) == []
    [failure] = failed_rows({NO_TARGET: off}, TOLERANCES["fp32"], NO_TARGET)
    assert "accepted 1e-04" in failure
    nan = compare(np.full(2, np.nan), np.ones(2))
    [failure] = failed_rows({NO_TARGET: nan}, TOLERANCES["bf16"], NO_TARGET)
    assert failure == f"{NO_TARGET}: values that are not finite"


def test_more_is_accepted_of_what_lies_behind_a_threshold():
    """One blocked key more or less is a step in it, in FP32 too; a wrong value is not accepted."""
    manifest = open_bundle(BUILT_IN).manifest
    rows = thresholded_rows(manifest, TOLERANCES["fp32"])
    behind = ("image_features.object_queries", "image_features.object_masks", NO_TARGET)
    assert rows == dict.fromkeys(behind, 1e-3)
    values = np.random.default_rng(0).normal(size=(100, 64))
    step, wrong = values.copy(), values.copy()
    step[7] *= 1 + 5e-3
    wrong[:10] = 0
    errors = {"object_queries": compare(step, values), "object_masks": compare(wrong, values)}
    found = {f"image_features.{name}": error for name, error in errors.items()}
    [failure] = failed_rows(found, TOLERANCES["fp32"], NO_TARGET, rows)
    assert failure.startswith("image_features.object_masks")
    assert len(failed_rows(found, TOLERANCES["fp32"], NO_TARGET)) == 2


@pytest.mark.parametrize("precision", ["fp16", "bf16"])
def test_narrow_arithmetic_may_take_more_steps_but_for_the_answer(precision):
    tolerance = TOLERANCES[precision]
    rows = thresholded_rows(open_bundle(BUILT_IN).manifest, tolerance)
    inner = ("image_features.object_queries", "image_features.object_masks")
    assert rows == {**dict.fromkeys(inner, 5e-2), NO_TARGET: 1e-3}
    values = np.random.default_rng(0).normal(size=(100, 64))
    steps, wrong = values.copy(), values.copy()
    steps[7] *= 1.3
    wrong[:10] = 0
    assert tolerance.stage < compare(steps, values).relative
    found = {inner[0]: compare(steps, values), inner[1]: compare(wrong, values)}
    [failure] = failed_rows(found, tolerance, NO_TARGET, rows)
    assert failure.startswith(inner[1])


@pytest.mark.parametrize(("moved", "accepted"), [(0.5, True), (2.0, False)])
def test_a_mask_is_judged_by_its_own_logits(moved, accepted):
    """However quiet they are: a step is relative to them."""
    rng = np.random.default_rng(0)
    want = (rng.normal(size=(64, 64)) * 1e-3 + 1e-2 * np.sign(np.linspace(-1, 1, 64))).astype("f4")
    level = np.sqrt(np.square(want).mean())
    want[:3], want[3:6] = 0.002 * level, 0.015 * level
    logits = want - np.float32(moved * 0.01 * level)
    result = Segmentation("", logits > 0, logits, 0.0, None, False, None, {})
    found = compare_mask(result, want, PLAIN, 0.01)
    assert found.flipped > 0.01
    assert (found.beyond == 0) == accepted
    errors = [text for text in found.failures(0.9999, 0.0, 0.01) if "logits of an" in text]
    assert (not errors) == accepted


def test_a_bundle_is_judged_by_what_its_graphs_are_written_in(tiny_bundle):
    """A bundle for bfloat16 of which every graph stayed FP32 is FP32."""
    with load(tiny_bundle, engine="onnxruntime") as model:
        assert tolerance_of(model) == TOLERANCES["fp32"]
        narrow = replace(model.bundle.manifest, precision="bf16")
        model.bundle = replace(model.bundle, manifest=narrow)
        assert tolerance_of(model) == TOLERANCES["fp32"]
        stages = tuple(replace(stage, precision="bf16") for stage in narrow.stages)
        model.bundle = replace(model.bundle, manifest=replace(narrow, stages=stages))
        assert tolerance_of(model) == TOLERANCES["bf16"]


def test_the_head_says_nothing_about_what_int8_costs_elsewhere(tiny_bundle):
    """Its logits' error has no bound, so it is not among those that a stage may have again."""
    with load(tiny_bundle) as model:
        manifest = model.bundle.manifest
        assert no_target_row(manifest) == NO_TARGET
        parity = {name: replace(row, relative=0.01) for name, row in manifest.parity.items()}
        parity[NO_TARGET] = replace(parity[NO_TARGET], relative=1.3)
        model.bundle = replace(
            model.bundle, manifest=replace(manifest, precision="int8", parity=parity)
        )
        assert tolerance_of(model).stage == pytest.approx(0.015)


def test_the_command_says_how_the_head_decided(tiny_bundle, tiny_category_bundle):
    assert "no target: 0 of 2 decided differently" in parity(tiny_bundle).output
    assert "no target:" not in parity(tiny_category_bundle).output


def test_compare():
    want = np.array([3.0, 4.0], np.float32)
    row = compare(np.array([3.0, 4.5], np.float32), want)
    assert row.max_abs == 0.5
    assert row.mean_abs == 0.25
    assert row.relative == pytest.approx(np.sqrt(0.125) / np.sqrt(12.5))
    assert row.cosine == pytest.approx((9 + 18) / (5 * np.hypot(3, 4.5)))
    assert compare(want, want).cosine == pytest.approx(1)
    assert compare(np.array([np.nan, 4.0]), want).relative == np.inf
    assert compare(np.zeros(3), np.zeros(2)).relative == np.inf
    assert compare(np.zeros(2), np.zeros(2)).relative == 0
    assert compare(np.ones(2), np.zeros(2)).relative == np.inf


def test_mask_iou():
    a = np.array([True, True, False])
    assert mask_iou(a, np.array([True, False, True])) == pytest.approx(1 / 3)
    assert mask_iou(a & False, a & False) == 1


def test_the_command_says_what_is_accepted_behind_a_threshold(tiny_bundle, tiny_category_bundle):
    assert "end to end, 1e-03 behind a threshold" in parity(tiny_bundle).output
    assert "behind a threshold" not in parity(tiny_category_bundle).output
