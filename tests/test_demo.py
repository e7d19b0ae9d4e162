"""The built-in demo: its weights, the bundle in the package, what they know, and the examples."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from conftest import REPO
from ris.data.samples import scene_images
from ris.data.scenes import make_scene
from ris.evaluation.run import BundleSegmenter, evaluate
from ris.export import sources
from ris.export.command import main as export
from ris.export.sample import sample_scene
from ris.runtime import BUILT_IN, load, open_bundle
from ris.runtime.bundle import sha256_of
from ris.runtime.parity import load_golden

EXAMPLES = REPO / "examples"
SAMPLES = 300


@pytest.fixture(scope="module")
def model():
    with load(BUILT_IN) as opened:
        yield opened


def test_the_bundle_in_the_package_is_of_the_weights_in_the_package():
    manifest = open_bundle(BUILT_IN).manifest
    assert manifest.source.trained
    assert manifest.source.checkpoint_sha256 == sha256_of(sources.DEMO_WEIGHTS)
    assert manifest.precision == "fp16"
    assert manifest.model["preset"] == "demo"
    assert manifest.no_target
    assert sources.DEMO_WEIGHTS.stat().st_size < 16e6


def test_without_weights_the_demo_is_exported(tmp_path):
    done = CliRunner().invoke(export, ["--out", str(tmp_path / "bundle"), "--dry-run"])
    assert done.exit_code == 0, done.output
    assert "exporting the built-in demo" in done.output
    assert str(sources.DEMO_WEIGHTS) in done.output
    done = CliRunner().invoke(export, ["--out", str(tmp_path / "bundle"), "--variant", "category"])
    assert done.exit_code == 2
    assert "is the cls variant" in done.output
    assert not list(tmp_path.iterdir())


def test_it_is_what_ris_infer_uses_where_nothing_else_is_given(tmp_path):
    """In an empty folder, in a process of its own; nothing is written into the package."""
    before = sorted(BUILT_IN.rglob("*"))
    asked = ["left man", "right man", "the tree", "zzz"]
    command = [Path(sys.executable).parent / "ris-infer", EXAMPLES / "park.jpg", *asked]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "using the built-in demo" in done.stderr
    assert "words the model does not know: zzz" in done.stderr
    things = make_scene(21240, "heldout", 512).objects
    men = [thing for thing in things if thing.kind == "man"]
    left, right = sorted(men, key=lambda man: man.centre[0])
    [tree] = [thing for thing in things if thing.kind == "tree"]
    expected = {"left-man": left.mask, "right-man": right.mask, "the-tree": tree.mask}
    for name, truth in expected.items():
        mask = np.asarray(Image.open(tmp_path / f"ris-output/park.{name}.mask.png")) > 0
        assert (mask & truth).sum() > 0.6 * (mask | truth).sum(), name
    assert sorted(BUILT_IN.rglob("*")) == before


def test_the_examples_are_the_drawn_scenes(model):
    """As examples/make_examples.py draws them; every expression of theirs has an answer."""
    for line in (EXAMPLES / "expressions.jsonl").read_text().splitlines():
        request = json.loads(line)
        scene = model.encode_image(EXAMPLES / request["image"])
        assert (scene.height, scene.width) == (512, 512)
        for answer in scene.segment_many(request["expression"]):
            assert not answer.notes
            assert answer.is_no_target or answer.mask.any()


@pytest.fixture(scope="module")
def found(model):
    return evaluate(BundleSegmenter(model), scene_images("heldout", SAMPLES))


def test_it_finds_held_out_things_where_the_words_say(found):
    """A floor below docs/measurements/demo.md's figures, on few samples."""
    scores, sides = found.kinds["all"], found.mirrored
    assert scores["miou"] > 0.77
    assert scores["t_acc"] > 0.9
    assert scores["n_acc"] > 0.62
    assert sides is not None
    assert sides.pairs > 30
    assert sides.right > 0.8
    assert sides.moved > 0.85


def test_the_exported_model_is_as_good_as_the_reference(found):
    """The FP16 bundle costs at most 0.1 point of mean IoU, with bfloat16 at most 0.2."""
    from ris.export.live_reference import ReferenceSegmenter

    images = scene_images("heldout", SAMPLES)
    reference = evaluate(ReferenceSegmenter({"checkpoint": sources.DEMO_WEIGHTS}), images)
    with load(BUILT_IN, engine="onnxruntime") as opened:
        bundle = evaluate(BundleSegmenter(opened), scene_images("heldout", SAMPLES))
    wanted, exported, auto = (result.kinds["all"]["miou"] for result in (reference, bundle, found))
    print(f"mean IoU: {wanted:.5f}, on ONNX Runtime {exported:.5f}, on auto {auto:.5f}")
    assert exported == pytest.approx(wanted, abs=0.001)
    assert auto == pytest.approx(wanted, abs=0.002)


def test_it_is_checked_on_a_scene_that_it_was_not_trained_on(model):
    golden = load_golden(model.bundle)
    image, asked = sample_scene()
    assert image.shape == (480, 640, 3)
    assert np.array_equal(golden["rgb"], image)
    assert set(map(str, golden["expressions"])) <= set(asked)
    assert len(asked) == 3
    masks = golden["mask_logits"][:, 0] > 0
    assert all(50 < mask.sum() < mask.size / 2 for mask in masks)  # things, not stray pixels
