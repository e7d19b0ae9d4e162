"""`ris-calibrate int8`: the target holds, engines agree on the bundle, a killed run goes on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from PIL import Image
from stages import STAGES

from conftest import REPO
from ris.calibration.command import main
from ris.calibration.int8.quantise import Int8Options, _setup, quantise_bundle, work_folder
from ris.calibration.int8.work import Work
from ris.calibration.numerics.qdq import find_layers
from ris.calibration.samples import scene_set
from ris.engines import EngineOptions, create
from ris.engines.errors import BundleError, RisError
from ris.runtime import open_bundle
from ris.runtime.loading import open_model
from ris.runtime.parity import check_model, load_golden

SAM, CLIP = "sam_image_encoder", "clip_image_encoder"


# the whole


@pytest.fixture(scope="module")
def done(tiny_bundle, tmp_path_factory):
    """The command over four drawn scenes: its folder, where the bundle is int8, and its report."""
    folder = tmp_path_factory.mktemp("int8")
    ran = CliRunner().invoke(main, [*arguments(tiny_bundle, folder / "int8")])
    assert ran.exit_code == 0, ran.output
    return folder, json.loads((folder / "int8-report" / "report.json").read_text()), ran.output


LIMIT = 0.006


def arguments(bundle, out):
    options = f"--samples 8 --calibrator percentile --max-iou-drop {LIMIT} --threads 1"
    return ["int8", str(bundle), "--out", str(out), *options.split()]


def test_the_target_holds_and_the_worst_layers_pay(done):
    folder, report, output = done
    bundle = open_bundle(folder / "int8")
    assert 1 - report["score"]["iou"] <= LIMIT < 1 - report["calibrators"]["percentile"]["iou"]
    drops = [cost["drop"] for cost in report["layers"]]
    assert drops == sorted(drops, reverse=True)
    assert len(drops) == sum(report["quantised"].values()) + sum(map(len, report["kept"].values()))
    kept = {(stage, node) for stage, nodes in report["kept"].items() for node in nodes}
    assert kept == {(cost["stage"], cost["node"]) for cost in report["layers"][: len(kept)]}
    assert kept
    for stage in (SAM, CLIP):
        entry = bundle.manifest.graphs[stage]
        assert entry.fp32_islands == report["kept"][stage]
        assert all(f"the drop is above {LIMIT}" in reason for reason in entry.fp32_islands.values())
        model = onnx.load(folder / "int8" / entry.file)
        products = {n.name: n for n in model.graph.node if n.op_type in ("MatMul", "Conv")}
        quantised = {name for name, n in products.items() if n.input[1].endswith("/int8/back")}
        assert not quantised & entry.fp32_islands.keys()
        assert len(quantised) == entry.int8.layers == report["quantised"][stage]
    assert report["layers"][0]["name"] in output
    assert (folder / "int8-report" / "layers.png").stat().st_size > 10_000
    assert not work_folder(folder / "int8").exists()


def test_the_bundle_says_what_it_is(done):
    folder, report, _ = done
    manifest = open_bundle(folder / "int8").manifest
    schema = json.loads((REPO / "runtime" / "manifest.schema.json").read_text())
    jsonschema.validate(json.loads((folder / "int8" / "manifest.json").read_text()), schema)
    assert manifest.precision == "int8"
    assert manifest.mask_iou == report["mask_iou"]
    assert manifest.graphs["fusion"].int8 is None
    assert manifest.graphs["fusion"].fp32_islands == {"*": "was not asked for (--graph)"}
    assert manifest.graphs[SAM].shown == "int8 and fp32"
    int8 = manifest.graphs[SAM].int8
    assert (int8.calibrator, int8.samples) == ("percentile", 8)
    assert manifest.writer["ris-calibrate int8"]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_engines_agree_on_the_int8_bundle(done, engine):
    pytest.importorskip(engine)
    folder, report, _ = done
    with open_model(open_bundle(folder / "int8"), engine=engine) as model:
        checked = check_model(model, load_golden(model.bundle))
        ran = model.sessions[CLIP].nodes
    assert checked.failures == ()
    assert checked.mask_iou == pytest.approx(report["mask_iou"], abs=0.01)
    recorded = model.bundle.manifest.parity["end_to_end.mask_logits"].relative
    assert checked.rows["end_to_end.mask_logits"].relative == pytest.approx(recorded, rel=0.1)
    if engine == "openvino":  # it runs 8-bit products, where the CPU has some that are right
        from ris.engines.openvino import int8_overflows

        if int8_overflows():
            assert "CPU int8" not in ran
        else:
            assert ran["CPU int8"] >= report["quantised"][CLIP]


def test_an_int8_bundle_out_of_tolerance_is_seen(done, tmp_path):
    """The tolerance is what the calibration recorded: half of that error is out of it."""
    folder, _, _ = done
    bundle = open_bundle(folder / "int8")
    parity = {
        name: replace(row, relative=row.relative / 2)
        for name, row in bundle.manifest.parity.items()
    }
    strict = replace(bundle, manifest=replace(bundle.manifest, parity=parity))
    with open_model(strict, engine="onnxruntime") as model:
        failures = check_model(model, load_golden(bundle)).failures
    assert any(failure.startswith("end_to_end.mask_logits") for failure in failures)


def test_tensorrt_rtx_compiles_the_int8_graphs(done, tmp_path):
    pytest.importorskip("tensorrt_rtx")
    folder, report, _ = done
    bundle = open_bundle(folder / "int8")
    engine = create("tensorrt-rtx", EngineOptions())
    for stage in (SAM, CLIP):
        built = engine.build(replace(bundle.graph(stage), cache=tmp_path))
        assert built.built_now
        assert built.artifact.stat().st_size > 10_000
        layers = built.report["layers"]
        print(stage, layers)
        # an 8-bit product reads int8 and writes fp32; packed queries, keys and values go through
        # fp32 weights there
        assert layers.get("mixed", 0) + layers.get("int8", 0) >= report["quantised"][stage]


def test_killed_in_the_middle_it_goes_on(done, tiny_bundle, tmp_path):
    _, report, _ = done
    out = tmp_path / "int8"
    command = [Path(sys.executable).parent / "ris-calibrate", *arguments(tiny_bundle, out)]
    journal = work_folder(out) / "journal.jsonl"
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while not (journal.exists() and journal.read_text().count("\n") >= 8):
        assert running.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert not out.exists()
    before = journal.read_text()
    with journal.open("a") as file:
        file.write('["score/torn')  # as if it had been killed while it wrote

    def written():
        return {f: f.stat().st_mtime_ns for f in (work_folder(out) / "recorded").iterdir()}

    recorded = written()
    kept = Work(work_folder(out), json.loads((work_folder(out) / "setup.json").read_text()))
    assert len(kept) == before.count("\n")
    assert written() == recorded
    again = CliRunner().invoke(main, [str(a) for a in command[1:]])
    assert again.exit_code == 0, again.output
    assert "going on with what" in again.output
    assert "FP32 sam_image_encoder" not in again.output
    assert "Histograms" not in again.output
    assert json.loads((tmp_path / "int8-report" / "report.json").read_text()) == report


def test_other_options_begin_again(tmp_path):
    work = Work(tmp_path / "w", {"alpha": 0.5})
    work.put("key", [1, 2])
    work.save_arrays("a", {"x": np.arange(3)})
    same = Work(tmp_path / "w", {"alpha": 0.5})
    assert "key" in same
    assert not same.restarted
    np.testing.assert_array_equal(same.load_arrays("a")["x"], np.arange(3))
    other = Work(tmp_path / "w", {"alpha": 0.6})
    assert other.restarted
    assert "key" not in other
    assert other.load_arrays("a") == {}
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "thesis.txt").write_text("years of work")
    with pytest.raises(RisError, match="was not made by ris-calibrate"):
        Work(tmp_path / "foreign", {})
    assert (tmp_path / "foreign" / "thesis.txt").exists()


def test_another_host_begins_again(made_up_bundle, tmp_path):
    """What was found depends on all that the host does, on the answer and on the tokenizer."""
    bundle, options = open_bundle(made_up_bundle), Int8Options()
    manifest = bundle.manifest
    host = replace(manifest.host, text=replace(manifest.host.text, max_tokens=5))
    answer = replace(manifest.answer, threshold=0.25)
    setups = [
        _setup(replace(bundle, manifest=changed), scene_set(2), options)
        for changed in (
            manifest,
            replace(manifest, host=host),
            replace(manifest, answer=answer),
            replace(manifest, files=manifest.files | {"tokenizer.json": "0" * 64}),
        )
    ]
    assert not Work(tmp_path / "w", setups[0]).restarted
    assert not Work(tmp_path / "w", setups[0]).restarted
    for setup in setups[1:]:
        assert Work(tmp_path / "w", setup).restarted


def test_every_graph_and_attention(tiny_bundle, tmp_path):
    """All graphs, with attention's own products: it runs, and each graph has some."""
    options = Int8Options(
        graphs=STAGES, calibrator="minmax", attention=True, max_iou_drop=1.0, sensitivity=False
    )
    report = quantise_bundle(open_bundle(tiny_bundle), scene_set(2), tmp_path / "all", options)
    manifest = open_bundle(tmp_path / "all").manifest
    assert report.quantised == {stage: manifest.graphs[stage].int8.layers for stage in STAGES}
    assert set(report.graphs) == set(STAGES)
    assert report.layers == ()
    # more is quantised, and more is lost, than with the encoders' weights alone
    layers = find_layers(open_bundle(tiny_bundle).graph(CLIP).path, attention=True)
    assert "blocks.0.attn.node_matmul" in {layer.name for layer in layers}


def test_the_bundle_says_which_graphs(made_up_bundle, tmp_path):
    """Those are quantised where none is named; the chain runs whatever stages there are."""
    bundle = open_bundle(made_up_bundle)
    options = Int8Options(calibrator="minmax", max_iou_drop=1.0)
    if made_up_bundle.name == "whole":
        with pytest.raises(RisError, match=r"does not say which graphs .* --graph: everything"):
            quantise_bundle(bundle, scene_set(2), tmp_path / "int8", options)
        options = replace(options, graphs=("everything",))
    report = quantise_bundle(bundle, scene_set(2), tmp_path / "int8", options)
    stage = "everything" if made_up_bundle.name == "whole" else "look"
    assert report.quantised == {stage: 1}
    assert report.options.graphs == (stage,)
    written = open_bundle(tmp_path / "int8").manifest
    assert [entry.name for entry in written.stages if entry.int8] == [stage]
    assert report.score.iou > 0.9


def test_a_graph_that_is_not_there(tiny_bundle, tmp_path):
    for names in (["--graph", "decoder"], ["--graph", SAM, "--graph", "decoder"]):
        out = tmp_path / "int8"
        ran = CliRunner().invoke(main, ["int8", str(tiny_bundle), "--out", str(out), *names])
        assert ran.exit_code == 2
        assert f"{tiny_bundle} has no graph decoder; there are {SAM}, {CLIP}, " in ran.output
        assert not list(tmp_path.iterdir())


def test_true_masks_are_another_measure(tiny_bundle, tmp_path):
    options = Int8Options(
        calibrator="minmax", against="truth", max_iou_drop=0.5, sensitivity=False, graphs=(CLIP,)
    )
    report = quantise_bundle(open_bundle(tiny_bundle), scene_set(8), tmp_path / "t", options)
    assert report.score.truth is not None
    assert report.score.drop("truth") == report.score.reference_truth - report.score.truth
    assert abs(report.score.drop("truth")) < report.score.drop("fp32") + 0.05


def test_a_category_bundle_and_ones_own_pictures(tiny_category_bundle, tmp_path, picture):
    Image.fromarray(picture).save(tmp_path / "photo.png")
    options = f"--graph {CLIP} --calibrator minmax --quick --max-iou-drop 0.5 --json".split()
    asked = ["-e", "left man", "-e", "the dog", "--category", "person", "--category", "auto"]
    places = [str(tiny_category_bundle), str(tmp_path), "--out", str(tmp_path / "int8")]
    ran = CliRunner().invoke(main, ["int8", *places, *asked, *options])
    assert ran.exit_code == 0, ran.output
    report = json.loads(ran.stdout)
    assert report["samples"] == 2
    assert report["score"]["truth"] is None
    with open_model(open_bundle(tmp_path / "int8")) as model:
        assert model.segment(picture, "left man", category="person").mask.shape == picture.shape[:2]


def test_what_cannot_be_done_is_said_in_a_line(
    tiny_bundle, tiny_fp16_bundle, tmp_path, done, picture
):
    new = ["--out", tmp_path / "x"]

    def fails(*arguments):
        ran = CliRunner().invoke(main, ["int8", *map(str, arguments)])
        assert ran.exit_code == 2
        assert ran.output.count("Error: ") == 1
        return ran.output

    assert "is fp16; INT8 is made from an FP32 bundle" in fails(tiny_fp16_bundle, *new)
    assert "is int8; INT8 is made from an FP32 bundle" in fails(done[0] / "int8", *new)
    assert "exists; use --force" in fails(tiny_bundle, "--out", tiny_bundle)
    assert "--expression is asked of IMAGES" in fails(tiny_bundle, "-e", "dog", *new)
    Image.fromarray(picture).save(tmp_path / "photo.png")
    photo = [tiny_bundle, tmp_path / "photo.png", "-e", "dog", *new]
    assert "which only the drawn scenes have" in fails(*photo, "--against", "truth")
    bundle = open_bundle(tiny_bundle)
    options = Int8Options(calibrator="minmax", max_iou_drop=0.0, graphs=(CLIP,))
    with pytest.raises(RisError, match="the best layer alone in INT8 costs"):
        quantise_bundle(bundle, scene_set(2), tmp_path / "none", options)
    assert not (tmp_path / "none").exists()
    assert work_folder(tmp_path / "none").exists()  # with a wider target it goes on from here
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("")
    with pytest.raises(BundleError, match="is not a bundle, so it is not overwritten"):
        quantise_bundle(bundle, scene_set(2), tmp_path / "full", options, overwrite=True)
