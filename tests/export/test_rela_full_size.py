"""ReLA at full size, from a file with the official keys or from its seed to the golden mask."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
from click.testing import CliRunner
from rela_helper import PRESET

from conftest import GOLDEN, REPO
from golden import inputs
from ris.calibration.numerics import emulated
from ris.export.command import main
from ris.runtime import open_bundle
from ris.runtime.commands.compile import main as compile_main
from ris.runtime.comparing import compare, mask_iou
from ris.runtime.loading import open_model
from ris.runtime.masks import mask_from_logits

pytestmark = pytest.mark.timeout(1500)


def exported(folder, *arguments):
    """The bundle that `ris-export` writes with these arguments."""
    out = folder / "bundle"
    arguments = [*arguments, "--lang-weight", "stored", "--out", str(out), "--json"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["parity"]["end_to_end.mask_logits"]["relative"] < 2e-2
    return open_bundle(out)


def golden_answer(bundle, size):
    """The IoU with the golden mask, the error of the logits, and that of the probability."""
    golden = np.load(GOLDEN / "rela" / f"e2e_swin_{size}_seed0.npz")
    with open_model(bundle, engine="onnxruntime") as model:
        scene = model.encode_image(inputs.image(0))
        found = scene.segment(inputs.EXPRESSIONS[0][0], no_target_threshold=None)
    want = np.unpackbits(golden["mask_bits"]).reshape(480, 480).astype(bool)
    kept = found.logits.ravel()[:: int(golden["difference.stride"])]
    sample = golden["difference.sub"]
    error = compare(kept[: len(sample)], sample).relative
    target, none = golden["no_target_logits"][0]
    moved = abs(found.no_target - 1 / (1 + np.exp(target - none)))
    iou = mask_iou(mask_from_logits(found.logits, 480, 480), want)
    print(f"{bundle.manifest.model['preset']}: mask IoU {iou:.6f}, logits {error:.1e}, {moved:.1e}")
    return iou, error, moved


@pytest.mark.parametrize("size", ["tiny", pytest.param("base", marks=pytest.mark.full)])
def test_fp32_gives_the_golden_mask(size, tmp_path):
    """From a file with the official keys, which another process writes."""
    path = tmp_path / f"gres_swin_{size}.pth"
    make = [sys.executable, str(REPO / "tests" / "rela_helper.py"), str(path), size]
    subprocess.run(make, check=True, timeout=600)
    bundle = exported(tmp_path, "--checkpoint", str(path))
    manifest = bundle.manifest
    assert (manifest.model["preset"], manifest.model["lang_weight"]) == (PRESET[size], "stored")
    assert manifest.source.trained
    iou, error, moved = golden_answer(bundle, size)
    assert iou >= 0.9999
    assert error < 1e-3
    assert moved < 1e-4


@pytest.fixture(scope="module", params=PRESET)
def half(request, tmp_path_factory):
    """The size, and its FP16 bundle in the form that TensorRT takes; what it samples is the same.

    The golden weights come by their seed: of a file's weights, which count as trained, the mask of
    every question has to keep an IoU of 0.998, and made-up ones are accepted from 0.995.
    """
    folder = tmp_path_factory.mktemp("half")
    weights = ["--random-weights", "0", "--preset", PRESET[request.param]]
    yield (
        request.param,
        exported(folder, *weights, "--precision", "fp16", "--grid-sample", "gather"),
    )
    shutil.rmtree(folder)


@pytest.mark.full
def test_true_fp16_keeps_the_golden_mask(half):
    size, bundle = half
    with emulated(bundle) as rounded:
        iou, error, moved = golden_answer(rounded, size)
    assert iou >= 0.998
    assert error < 1e-2
    assert moved < 5e-3


@pytest.mark.full
def test_tensorrt_rtx_compiles_all_four(half):
    """Without a GPU. What stays FP32 is named, so most layers of the others are FP16."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    _, bundle = half
    done = CliRunner().invoke(
        compile_main, [str(bundle.path), "--engine", "tensorrt-rtx", "--json"]
    )
    assert done.exit_code == 0, done.output
    plans = json.loads(done.stdout)["graphs"]
    assert plans.keys() == set(bundle.stages)
    for stage, plan in plans.items():
        cost = f"{plan['bytes'] / 1e6:.0f} MB {plan['seconds']:.1f} s"
        print(stage, plan["asked"], plan["layers"], cost)
        half_layers, full = plan["layers"].get("fp16", 0), plan["layers"].get("fp32", 0)
        assert half_layers > full if plan["asked"] == "fp16" else half_layers == 0
