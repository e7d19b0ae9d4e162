"""LISA at full width, from files with exactly the official keys to the golden masks."""

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
from golden.lisa.inputs import EXPRESSIONS
from ris.export.command import main
from ris.runtime import open_bundle
from ris.runtime.comparing import compare, mask_iou
from ris.runtime.loading import open_model

pytestmark = [pytest.mark.full, pytest.mark.timeout(5400)]

SIZE = (480, 640)


@pytest.fixture
def given(tmp_path):
    """What `ris-export` is given; another process writes it, whose memory does not count."""
    script = REPO / "tests" / "lisa_golden_run.py"
    subprocess.run([sys.executable, str(script), str(tmp_path / "given")], check=True, timeout=900)
    yield (
        *("--checkpoint", str(tmp_path / "given" / "LISA-7B-v1")),
        *("--clip-checkpoint", str(tmp_path / "given" / "clip.safetensors")),
    )
    shutil.rmtree(tmp_path)


def sampled(golden, name, array):
    """An array as its golden one is stored, whole or every so many numbers, and that one."""
    if name in golden:
        return array.ravel(), golden[name].ravel()
    return array.ravel()[:: int(golden[f"{name}.stride"])], golden[f"{name}.sub"].ravel()


def test_fp32_gives_the_golden_masks(given, tmp_path):
    out = tmp_path / "bundle"
    done = CliRunner().invoke(main, [*given, "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["parity"]["end_to_end.mask_logits"]["relative"] < 1e-3

    bundle = open_bundle(out)
    assert bundle.manifest.model["llama"]["layers"] == 2
    golden = np.load(GOLDEN / "lisa" / "e2e_lisa_seed0.npz")
    with open_model(bundle, engine="onnxruntime") as model:
        scene = model.encode_image(inputs.image(0))
        for number, (expression, (_, form)) in enumerate(EXPRESSIONS.items()):
            answer = scene.segment(expression, form=form)
            end = f"_{number}" if number else ""
            bits = np.unpackbits(golden[f"mask_bits{end}"], count=SIZE[0] * SIZE[1])
            iou = mask_iou(answer.mask, bits.reshape(SIZE).astype(bool))
            error = compare(*sampled(golden, f"low_res_logits{end}", answer.logits)).relative
            print(f"{expression}: {iou:.6f}, logits {error:.1e}")
            assert iou >= 0.9999
            assert error < 1e-4
