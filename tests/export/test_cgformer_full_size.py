"""CGFormer at full size, from a file with exactly the official keys to the golden mask."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner

from conftest import GOLDEN, REPO
from golden import inputs
from golden.cgformer.inputs import EXPRESSIONS
from ris.calibration.numerics import emulated
from ris.export.command import main
from ris.runtime import open_bundle
from ris.runtime.commands.compile import main as compile_main
from ris.runtime.comparing import compare, mask_iou
from ris.runtime.loading import open_model

pytestmark = pytest.mark.timeout(2400)

SIZE = (480, 640)


def exported(folder, *arguments):
    """What `ris-export` writes with these arguments."""
    done = CliRunner().invoke(main, [*map(str, arguments), "--out", str(folder / "b"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["parity"]["end_to_end.mask_logits"]["relative"] < 2e-2
    return open_bundle(folder / "b")


def golden_answers(bundle):
    """For each golden expression the mask's pixels that differ, its IoU, the logits' error."""
    golden = np.load(GOLDEN / "cgformer" / "e2e_seed0.npz")
    found = []
    with open_model(bundle, engine="onnxruntime", max_expressions=1) as model:
        scene = model.encode_image(inputs.image(0))
        for name, (expression, _) in EXPRESSIONS.items():
            answer = scene.segment(expression)
            bits = golden[f"{name}_expected_mask_bits"]
            want = np.unpackbits(bits, count=SIZE[0] * SIZE[1]).reshape(SIZE).astype(bool)
            kept = answer.logits.ravel()[:: int(golden[f"{name}_expected_mask_logits.stride"])]
            sample = golden[f"{name}_expected_mask_logits.sub"]
            error = compare(kept[: len(sample)], sample).relative
            differ, iou = int((answer.mask != want).sum()), mask_iou(answer.mask, want)
            print(f"{expression}: {differ} pixels, IoU {iou:.6f}, logits {error:.1e}")
            found.append((differ, iou, error))
    return found


@pytest.mark.full
def test_fp32_gives_the_golden_masks(tmp_path):
    path = tmp_path / "best_model.pth"  # another process writes it, whose memory does not count
    make = [sys.executable, str(REPO / "tests" / "cgformer_helper.py"), str(path)]
    subprocess.run(make, check=True, timeout=600)
    bundle = exported(tmp_path, "--checkpoint", path)
    path.unlink()
    manifest = bundle.manifest
    assert (manifest.model["preset"], manifest.model["assignment"]) == ("cgformer", "expected")
    assert manifest.source.trained
    for differ, _, error in golden_answers(bundle):
        assert differ <= 50
        assert error < 1e-3


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """The FP16 bundle of the golden weights, as made-up ones: their masks are all boundary."""
    folder, made_up = (
        tmp_path_factory.mktemp("half"),
        ("--preset", "cgformer", "--random-weights", 0),
    )
    yield exported(folder, *made_up, "--precision", "fp16")
    shutil.rmtree(folder)


@pytest.mark.full
def test_true_fp16_keeps_the_golden_masks(half):
    with emulated(half) as bundle:
        for _, iou, error in golden_answers(bundle):
            assert iou >= 0.995
            assert error < 2e-2


@pytest.mark.full
def test_tensorrt_rtx_compiles_all_six(half):
    """Without a GPU."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    done = CliRunner().invoke(compile_main, [str(half.path), "--engine", "tensorrt-rtx", "--json"])
    assert done.exit_code == 0, done.output
    plans = json.loads(done.stdout)["graphs"]
    assert plans.keys() == set(half.stages)
    for stage, plan in plans.items():
        cost = f"{plan['bytes'] / 1e6:.0f} MB {plan['seconds']:.1f} s"
        print(stage, plan["asked"], plan["layers"], cost)
        layers = plan["layers"]
        narrow = layers.get("fp16", 0) + layers.get("mixed", 0)
        assert narrow >= layers.get("fp32", 0) if plan["asked"] == "fp16" else narrow == 0
