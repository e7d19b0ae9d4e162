"""EVF-SAM at full size, from a file with exactly the official keys to the golden masks."""

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
from golden.evfsam.inputs import EXPRESSIONS
from ris.calibration.numerics import emulated
from ris.engines import EngineOptions, create
from ris.export.command import main
from ris.reference.unigram import made_up_unigram
from ris.runtime import open_bundle
from ris.runtime.commands.compile import main as compile_main
from ris.runtime.comparing import compare, mask_iou
from ris.runtime.loading import open_model

pytestmark = [pytest.mark.full, pytest.mark.timeout(5400)]

SIZE = (480, 640)
GOLDENS = {"1": "e2e_evfsam_seed0.npz", "2": "e2e_evfsam2_seed0.npz"}


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """What an export of a version's golden weights is given: a checkpoint and a vocabulary."""
    folder = tmp_path_factory.mktemp("golden")
    vocabulary = folder / "tokenizer.json"
    made_up_unigram().save(str(vocabulary))  # it has the golden expressions' ids

    def arguments(version):
        path = folder / f"{version}.safetensors"
        if not path.exists():  # another process writes it, whose memory does not count
            script = REPO / "tests" / "evfsam_golden_run.py"
            make = [sys.executable, str(script), str(path), version]
            subprocess.run(make, check=True, timeout=600)
        return "--checkpoint", path, "--vocabulary", vocabulary

    yield arguments
    shutil.rmtree(folder)


def exported(folder, *arguments):
    """What `ris-export` writes with these arguments."""
    done = CliRunner().invoke(main, [*map(str, arguments), "--out", str(folder / "b"), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["parity"]["end_to_end.mask_logits"]["relative"] < 2e-2
    return open_bundle(folder / "b")


def sampled(golden, name, array):
    """An array as its golden one is stored, whole or every so many numbers, and that one."""
    if name in golden:
        return array.ravel(), golden[name].ravel()
    return array.ravel()[:: int(golden[f"{name}.stride"])], golden[f"{name}.sub"].ravel()


def golden_answers(bundle, engine="onnxruntime", compute=None):
    """For each golden expression whether the mask is right, and the error of the logits.

    The main expression's mask is there whole: its IoU. Of the others there is the number of pixels:
    by which share of the picture that differs.
    """
    golden = np.load(GOLDEN / "evfsam" / GOLDENS[bundle.manifest.model["version"]])
    found = []
    options = {"engine": engine, "compute": compute, "max_expressions": 1}
    with open_model(bundle, **options) as model:
        scene = model.encode_image(inputs.image(0))
        for number, expression in enumerate(EXPRESSIONS):
            answer = scene.segment(expression)
            end = f"_{number}" if number else ""
            error = compare(*sampled(golden, f"low_res_logits{end}", answer.logits)).relative
            if not number:
                bits = np.unpackbits(golden["mask_bits"], count=SIZE[0] * SIZE[1])
                agrees = mask_iou(answer.mask, bits.reshape(SIZE).astype(bool))
            else:
                pixels = int(golden[f"mask_pixels{end}"])
                agrees = 1 - abs(int(answer.mask.sum()) - pixels) / answer.mask.size
            print(f"{expression}: {agrees:.6f}, logits {error:.1e}")
            found.append((agrees, error))
    return found


@pytest.fixture
def computes():
    """What OpenVINO computes in on this CPU; nothing where it is not installed."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    return create("openvino", EngineOptions()).computes()


@pytest.mark.parametrize("version", ["2", "1"])
def test_fp32_gives_the_golden_masks(version, given, tmp_path, computes):
    bundle = exported(tmp_path, *given(version))
    manifest = bundle.manifest
    assert manifest.model["preset"] == {"1": "evfsam", "2": "evfsam2"}[version]
    assert manifest.source.trained
    for agrees, error in golden_answers(bundle):
        assert agrees >= 0.9999
        assert error < 1e-3
    if "bf16" in computes:
        for agrees, error in golden_answers(bundle, "openvino", "bf16"):
            assert agrees >= 0.985
            assert error < 4e-2
    shutil.rmtree(bundle.path)


@pytest.mark.parametrize("preset", ["evfsam2", "evfsam"])
def test_true_fp16_keeps_the_golden_masks(preset, tmp_path):
    """Of made-up weights: of trained ones an IoU of 0.998 is asked, and version 2 keeps 0.99795."""
    made_up = ["--preset", preset, "--random-weights", "0"]
    bundle = exported(tmp_path, *made_up, "--precision", "fp16")
    with emulated(bundle) as rounded:
        for agrees, error in golden_answers(rounded):
            assert agrees >= 0.99
            assert error < 2e-2
    shutil.rmtree(bundle.path)


ATTENTIONS = {"evfsam2": 48 - 3 + 3 * 4, "evfsam": 32}
"""Layers of attention in an image encoder's plan: one for each block, but for Hiera-L's three that
attend to the whole map, which do so in four parts: two of eight heads at once."""


@pytest.mark.parametrize("preset", ["evfsam2", "evfsam"])
def test_tensorrt_rtx_builds_all_graphs(preset, tmp_path):
    """FP16 as TensorRT takes it; the image encoder's attention is fused."""
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    made_up = ["--preset", preset, "--random-weights", "0", "--precision", "fp16"]
    bundle = exported(tmp_path, *made_up, "--grid-sample", "gather")
    done = CliRunner().invoke(
        compile_main, [str(bundle.path), "--engine", "tensorrt-rtx", "--json"]
    )
    assert done.exit_code == 0, done.output
    plans = json.loads(done.stdout)["graphs"]
    assert set(plans) == set(bundle.stages)
    for stage, plan in plans.items():
        cost = f"{plan['bytes'] / 1e6:.0f} MB {plan['seconds']:.1f} s"
        print(stage, plan["asked"], plan["layers"], plan["fused_attention"], cost)
        half, full = plan["layers"].get("fp16", 0), plan["layers"].get("fp32", 0)
        assert half > full if plan["asked"] == "fp16" else half == 0
    assert plans["sam_image_encoder"]["fused_attention"] == ATTENTIONS[preset]
    shutil.rmtree(bundle.path)
