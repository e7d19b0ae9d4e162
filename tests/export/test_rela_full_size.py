"""ReLA at full size, from a file with exactly the official keys to the golden mask."""

from __future__ import annotations

import json
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
from ris.runtime.loading import open_model
from ris.runtime.masks import mask_from_logits
from ris.runtime.parity import compare, mask_iou

pytestmark = pytest.mark.timeout(1500)


def exported(folder, size, precision):
    """The bundle of a checkpoint that another process wrote."""
    path, out = folder / f"gres_swin_{size}.pth", folder / "bundle"
    make = [sys.executable, str(REPO / "tests" / "rela_helper.py"), str(path), size]
    subprocess.run(make, check=True, timeout=600)
    arguments = ["--checkpoint", str(path), "--lang-weight", "stored", "--precision", precision]
    done = CliRunner().invoke(main, [*arguments, "--out", str(out), "--json"])
    path.unlink()
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
    bundle = exported(tmp_path, size, "fp32")
    manifest = bundle.manifest
    assert (manifest.model["preset"], manifest.model["lang_weight"]) == (PRESET[size], "stored")
    assert manifest.source.trained
    iou, error, moved = golden_answer(bundle, size)
    assert iou >= 0.9999
    assert error < 1e-3
    assert moved < 1e-4


@pytest.mark.full
@pytest.mark.parametrize("size", PRESET)
def test_true_fp16_keeps_the_golden_mask(size, tmp_path):
    with emulated(exported(tmp_path, size, "fp16")) as bundle:
        iou, error, moved = golden_answer(bundle, size)
    assert iou >= 0.998
    assert error < 1e-2
    assert moved < 5e-3
