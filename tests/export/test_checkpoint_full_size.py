"""A training checkpoint of the paper's size, with every official key in it.

It is loaded within its memory, exported, and run on another image and expression than the golden
ones (docs/reference/models/dfam.md 22).
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from stages import STAGES

from conftest import GOLDEN, REPO
from golden import inputs
from ris.export.command import main
from ris.export.sources import DEMO_WEIGHTS
from ris.reference.checkpoint import WeightFiles, load_model
from ris.reference.dfam.preprocess import prepare_image
from ris.runtime import load
from ris.runtime.comparing import mask_iou
from ris.runtime.masks import mask_from_logits

pytestmark = [pytest.mark.timeout(1500), pytest.mark.full]

MEASURE = """
import json, re, sys
from pathlib import Path
import torch
from ris.reference.checkpoint import WeightFiles, load_model
def peak():  # not ru_maxrss: a child begins with its parent's
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) * 1024
load_model(WeightFiles(Path(sys.argv[2])))  # the demo's: what it imports takes 340 MB by itself
before = peak()
model, inspection = load_model(WeightFiles(Path(sys.argv[1])))
values = model.state_dict().values()
total = sum(float(p.double().sum() if p.numel() < 1e6 else p.sum()) for p in values)
sizes = [p.numel() * p.element_size() for p in model.state_dict().values()]
print(json.dumps({"rise": peak() - before, "weights": sum(sizes), "largest": max(sizes)}))
"""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """model_final.pth, 2.4 GB; made by another process, whose memory is not counted here."""
    path = tmp_path_factory.mktemp("trained") / "model_final.pth"
    make = [sys.executable, REPO / "tests" / "checkpoint_files.py", path, GOLDEN / "keys.json", "1"]
    subprocess.run([str(part) for part in make], check=True, timeout=600)
    yield path
    path.unlink()


def measure(path):
    command = [sys.executable, "-c", MEASURE, str(path), str(DEMO_WEIGHTS)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    print("memory, bytes:", done.stdout.strip())
    return json.loads(done.stdout)


def test_loading_holds_one_copy_and_the_largest_tensor(checkpoint):
    """Every weight is read; not the optimiser's 300 MB nor the text tower's 500 MB."""
    found = measure(checkpoint)
    assert found["weights"] > 2.1e9
    assert found["rise"] <= found["weights"] + found["largest"] + 60e6, found


def test_half_precision_is_converted_a_tensor_at_a_time(checkpoint, tmp_path):
    make = (
        "import sys, torch; s = torch.load(sys.argv[1], mmap=True, weights_only=True)['model'];"
        "torch.save({k: v.half() for k, v in s.items()}, sys.argv[2])"
    )
    half = tmp_path / "half.pth"
    command = [sys.executable, "-c", make, str(checkpoint), str(half)]
    subprocess.run(command, check=True, timeout=600)
    found = measure(half)
    half.unlink()
    assert found["rise"] <= found["weights"] + found["largest"] + 60e6, found


def test_the_key_report(checkpoint):
    done = CliRunner().invoke(
        main, ["--checkpoint", str(checkpoint), "--dry-run", "--json", "--out", "nowhere"]
    )
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    keys = report["files"]["keys"]
    assert report["model"]["preset"] == "vitb-vitl336"
    assert (report["model"]["query"], report["model"]["no_target"]) == ("cls", "mlp")
    assert (keys["loaded"], len(keys["dead"])) == (1136, 155)
    assert (keys["missing"], keys["unexpected"]) == ([], [])
    assert 2e9 < report["plan"]["bundle_bytes"] < 2.4e9


@torch.no_grad()
def test_another_image_and_expression_than_the_golden_ones(checkpoint, tmp_path):
    """From the file to a mask without PyTorch, against the reference's forward.

    Differences are in units of the logits' deviation.
    """
    bundle = tmp_path / "bundle"
    done = CliRunner().invoke(
        main, ["--checkpoint", str(checkpoint), "--out", str(bundle), "--json"]
    )
    assert done.exit_code == 0, done.output
    # everything so far in this process, the exporter included
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < 10e9

    rows = json.loads(done.stdout)["parity"]
    assert rows["end_to_end.mask_logits"]["relative"] < 1e-3
    for stage in STAGES:
        assert max(r["relative"] for name, r in rows.items() if name.startswith(stage)) < 1e-4

    image, expression = inputs.image(1), inputs.EXPRESSIONS[1][0]
    with load(bundle) as runtime:
        result = runtime.encode_image(image).segment(expression, no_target_threshold=1.0)
        assert runtime.bundle.manifest.source.trained

    model, _ = load_model(WeightFiles(checkpoint))
    want = model(*prepare_image(image, model.config), torch.from_numpy(inputs.tokens(1)[0]))
    logits = want.mask_logits[0, 0].numpy()
    difference = np.abs(result.logits.astype(np.float64) - logits) / logits.std()
    mask = mask_from_logits(logits, *image.shape[:2])
    iou = mask_iou(result.mask, mask)
    worst, p99 = difference.max(), np.quantile(difference, 0.99)
    print(f"mask logits: max {worst:.1e}, p99 {p99:.1e}; mask IoU {iou:.6f}")
    assert worst < 1e-3
    assert p99 < 2e-4
    assert 0 < mask.sum() < mask.size
    assert iou >= 0.9999
    probability = want.no_target_logits.softmax(1)[0, 1].item()
    assert result.no_target == pytest.approx(probability, abs=5e-4)
