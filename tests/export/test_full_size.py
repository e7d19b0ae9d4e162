"""The paper's model at full size in FP16, golden weights: export, run the runtime on the golden image, agree with the
golden file (docs/model.md 21 and 22). FP32 at full size is in test_checkpoint_full_size.py.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from conftest import GOLDEN
from golden import inputs
from ris.export.command import main
from ris.runtime import load
from ris.runtime.masks import mask_from_logits
from ris.runtime.parity import compare, mask_iou

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "fp16"
    done = CliRunner().invoke(main, ["--random-weights", "0", "--precision", "fp16", "--out", str(folder), "--json"])
    assert done.exit_code == 0, done.output
    return folder


def test_weights_are_those_of_table_2(bundle):
    """Parameters per graph: the components of docs/model.md 18 without their dead parts."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    millions = {stage: entry["parameters"] / 1e6 for stage, entry in manifest["graphs"].items()}
    assert 303 < millions["clip_image_encoder"] < 304.3
    assert 89 < millions["sam_image_encoder"] < 93
    assert 108 < millions["text_encoder"] < 109.1


def test_fp16_keeps_the_golden_mask(bundle):
    golden = np.load(GOLDEN / "e2e_grefcoco_seed0.npz")
    with load(bundle) as model:
        # made-up weights say "no target" here; the golden mask is the one before that decision
        scene = model.encode_image(inputs.image(0))
        result = scene.segment(inputs.EXPRESSIONS[0][0], no_target_threshold=None)
    want = golden["low_res_logits"][0, 0]
    assert compare(result.logits, want).relative < 1e-2
    assert mask_iou(mask_from_logits(result.logits, 1024, 1024), mask_from_logits(want, 1024, 1024)) >= 0.998
    no_target = 1 / (1 + np.exp(golden["nt_logits"][0, 0] - golden["nt_logits"][0, 1]))
    assert result.no_target == pytest.approx(no_target, abs=5e-3)
