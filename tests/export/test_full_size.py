"""The paper's model at full size in FP16 agrees with the golden file.

It has the golden weights, and is run on the golden image (docs/reference/models/dfam.md 21 and 22).
FP32 at full size is in test_checkpoint_full_size.py.
"""

from __future__ import annotations

import contextlib
import json

import numpy as np
import pytest
from click.testing import CliRunner

from conftest import GOLDEN
from golden import inputs
from ris.calibration.numerics import emulated
from ris.export.command import main
from ris.runtime import open_bundle
from ris.runtime.commands.compile import main as compile_main
from ris.runtime.comparing import compare, mask_iou
from ris.runtime.loading import open_model
from ris.runtime.masks import mask_from_logits

pytestmark = [pytest.mark.timeout(1500), pytest.mark.full]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "fp16"
    arguments = ["--random-weights", "0", "--precision", "fp16", "--out", str(folder)]
    # the form that TensorRT takes; what it samples is the same
    done = CliRunner().invoke(main, [*arguments, "--grid-sample", "gather"])
    assert done.exit_code == 0, done.output
    return folder


def test_tensorrt_rtx_compiles_all_five(bundle):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
    done = CliRunner().invoke(compile_main, [str(bundle), "--engine", "tensorrt-rtx", "--json"])
    assert done.exit_code == 0, done.output
    plans = json.loads(done.stdout)["graphs"]
    assert len(plans) == 6
    for stage, plan in plans.items():
        cost = f"{plan['bytes'] / 1e6:.0f} MB {plan['seconds']:.1f} s"
        print(stage, plan["asked"], plan["layers"], cost)
        half, full = plan["layers"].get("fp16", 0), plan["layers"].get("fp32", 0)
        assert half > full if plan["asked"] == "fp16" else half == 0
    # SAM's and CLIP's blocks, each attention in one kernel
    assert plans["sam_image_encoder"]["fused_attention"] == 12
    assert plans["clip_image_encoder"]["fused_attention"] == 24


def test_weights_are_those_of_table_2(bundle):
    """By graph: the components of docs/reference/models/dfam.md 18 without their dead parts."""
    graphs = open_bundle(bundle).manifest.graphs
    millions = {stage: entry.parameters / 1e6 for stage, entry in graphs.items()}
    assert 303 < millions["clip_image_encoder"] < 304.3
    assert 89 < millions["sam_image_encoder"] < 93
    assert 108 < millions["text_encoder"] < 109.1
    for stage in ("sam_image_encoder", "clip_image_encoder", "fusion"):
        size = (bundle / f"graphs/{stage}.onnx.data").stat().st_size
        print(f"{stage}: {size / (1e6 * millions[stage]):.3f} bytes a weight")
        assert size < 2.3e6 * millions[stage], "islands are a seventh of the weights at most"


@pytest.mark.parametrize("arithmetic", ["of ONNX Runtime's CPU", "true FP16"])
def test_fp16_keeps_the_golden_mask(bundle, arithmetic):
    golden = np.load(GOLDEN / "e2e_grefcoco_seed0.npz")
    opened = open_bundle(bundle)
    with contextlib.ExitStack() as stack:
        if arithmetic == "true FP16":
            opened = stack.enter_context(emulated(opened))
        model = stack.enter_context(open_model(opened, engine="onnxruntime"))
        # made-up weights say "no target" here; the golden mask is the one before that decision
        scene = model.encode_image(inputs.image(0))
        result = scene.segment(inputs.EXPRESSIONS[0][0], no_target_threshold=None)
    want = golden["low_res_logits"][0, 0]
    error = compare(result.logits, want).relative
    iou = mask_iou(mask_from_logits(result.logits, 1024, 1024), mask_from_logits(want, 1024, 1024))
    print(f"golden image, arithmetic {arithmetic}: mask logits {error:.1e}, mask IoU {iou:.5f}")
    assert error < 1e-2
    assert iou >= 0.998
    no_target = 1 / (1 + np.exp(golden["nt_logits"][0, 0] - golden["nt_logits"][0, 1]))
    assert result.no_target == pytest.approx(no_target, abs=5e-3)
