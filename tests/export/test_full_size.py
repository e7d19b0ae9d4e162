"""The paper's model at full size, golden weights: export, run the runtime on the golden image, agree with the golden
files and with the reference (docs/model.md 21 and 22). The only tests that take minutes.
"""

from __future__ import annotations

import json
import resource

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


def export(folder, *options):
    done = CliRunner().invoke(main, ["--random-weights", "0", "--out", str(folder), "--json", *options])
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def golden_logits():
    """The golden file of the gRefCOCO variant."""
    return np.load(GOLDEN / "e2e_grefcoco_seed0.npz")


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("full") / "fp32"
    return folder, export(folder)


def test_every_stage_agrees(bundle):
    rows = bundle[1]["parity"]
    assert rows["end_to_end.mask_logits"]["relative"] < 1e-3
    for stage in ("sam_image_encoder", "clip_image_encoder", "text_encoder", "fusion", "mask_decoder"):
        assert max(r["relative"] for name, r in rows.items() if name.startswith(stage)) < 1e-4


def test_weights_are_those_of_table_2(bundle):
    """Parameters per graph: the components of docs/model.md 18 without their dead parts."""
    manifest = json.loads((bundle[0] / "manifest.json").read_text())
    millions = {stage: entry["parameters"] / 1e6 for stage, entry in manifest["graphs"].items()}
    assert 303 < millions["clip_image_encoder"] < 304.3
    assert 89 < millions["sam_image_encoder"] < 93
    assert 108 < millions["text_encoder"] < 109.1


def test_the_runtime_gives_the_golden_mask(bundle, golden_logits):
    with load(bundle[0]) as model:
        scene = model.encode_image(inputs.image(0))
        # made-up weights say "no target" here; the golden mask is the one before that decision
        result = scene.segment(inputs.EXPRESSIONS[0][0], no_target_threshold=1.0)
    difference = inputs.compare(golden_logits, "low_res_logits", result.logits[None, None])
    assert difference["max"] < 1e-3, difference
    assert difference["p99"] < 2e-4, difference
    want = mask_from_logits(golden_logits["low_res_logits"][0, 0], 480, 640)
    assert mask_iou(result.mask, want) >= 0.9999
    no_target = 1 / (1 + np.exp(golden_logits["nt_logits"][0, 0] - golden_logits["nt_logits"][0, 1]))
    assert result.no_target == pytest.approx(no_target, abs=5e-4)
    pixels = mask_from_logits(result.logits, 1024, 1024).sum()
    assert abs(int(golden_logits["mask_pixels"]) - pixels) <= 1e-4 * 1024 * 1024


def test_fp16_keeps_the_golden_mask(tmp_path, golden_logits):
    export(tmp_path / "fp16", "--precision", "fp16")
    with load(tmp_path / "fp16") as model:
        result = model.encode_image(inputs.image(0)).segment(inputs.EXPRESSIONS[0][0])
    want = golden_logits["low_res_logits"][0, 0]
    assert compare(result.logits, want).relative < 1e-2
    assert mask_iou(mask_from_logits(result.logits, 1024, 1024), mask_from_logits(want, 1024, 1024)) >= 0.998


def test_memory(bundle):
    """Everything above, the exporter included, in one process: under 10 GB."""
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 10e9
