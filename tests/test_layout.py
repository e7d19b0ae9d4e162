"""The rules of docs/design.md, The folders: who imports whom, and what the thin runtime must never load."""

from __future__ import annotations

import ast
import subprocess
import sys

import pytest

from conftest import REPO

MAY_IMPORT = {
    "reference": {"reference"},
    "engines": {"engines"},
    "runtime": {"runtime", "engines"},
    "calibration": {"calibration", "engines", "runtime"},
    "export": {"export", "reference", "calibration", "engines", "runtime"},
    "serving": {"serving", "calibration", "engines", "runtime"},
}
# modules that a folder may import beyond those: the one family of errors; training data; what commands share
ALSO = {
    "reference": ("ris.engines.errors",),
    "reference/training": (
        "ris.engines.processor",
        "ris.engines.errors",
        "ris.calibration.datasets",
        "ris.calibration.evaluation.metrics",
        "ris.calibration.scenes",
        "ris.runtime.commands.console",
        "ris.runtime.commands.weight_files",
    ),
}
HEAVY = {"torch", "torchvision", "transformers", "onnx", "onnxscript", "segment_anything", "open_clip", "safetensors"}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module


@pytest.mark.parametrize("folder", sorted(MAY_IMPORT))
def test_folders_import_only_what_they_may(folder):
    for path in sorted((REPO / folder).rglob("*.py")):
        for name in imported(path):
            parts = name.split(".")
            if parts[0] == "ris":
                also = ALSO.get(str(path.parent.relative_to(REPO)), ALSO.get(folder, ()))
                allowed = parts[1] in MAY_IMPORT[folder] or name in also
                assert allowed, f"{path} imports {name}"
            if folder in ("engines", "runtime", "calibration", "serving"):
                allowed = {"onnx"} if path.parent == REPO / "calibration" / "numerics" else set()
                assert parts[0] not in HEAVY - allowed, f"{path} imports {name}"


def run_python(code):
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)


REFUSE = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {HEAVY!r}:
            raise ImportError("not installed: " + name)
sys.meta_path.insert(0, Refuse())
"""


def test_the_runtime_works_where_the_heavy_packages_do_not_exist(tiny_bundle):
    """Every import of a heavy package fails in this process; a mask comes out all the same."""
    done = run_python(
        REFUSE
        + f"""
import numpy as np
from ris.runtime import load
import ris.runtime.commands.infer, ris.runtime.commands.parity, ris.runtime.commands.bench, ris.runtime.commands.doctor
import ris.runtime.bench.worker
with load({str(tiny_bundle)!r}) as model:
    print(model.segment(np.zeros((30, 40, 3), np.uint8), "left man").mask.shape)
"""
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "(30, 40)"


@pytest.mark.parametrize(
    ("command", "arguments", "missing"),
    [
        ("ris.export.command", [], "torch"),
        ("ris.reference.training.command", ["--out", "run"], "torch"),
        ("ris.calibration.command", ["ranges"], "onnx"),
        ("ris.calibration.command", ["emulate", "bundle", "--out", "x"], "onnx"),
        ("ris.calibration.command", ["int8", "bundle", "--out", "x"], "onnx"),
        ("ris.calibration.evaluation.command", ["--pytorch", "--checkpoint", "x.pth"], "torch"),
        ("ris.serving.batch.command", ["photos", "-e", "x"], "pyarrow"),
        ("ris.serving.page.command", ["bundle"], "Gradio"),
    ],
)
def test_commands_that_need_pytorch_say_what_to_install(tmp_path, command, arguments, missing):
    """Where the heavy packages are not installed: one sentence, no traceback."""
    find = "import importlib.util; importlib.util.find_spec = lambda name: None"
    code = f"{REFUSE}\n{find}\nfrom {command} import main\nmain({arguments!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Error: " in done.stderr
    assert f'{missing}: pip install "ris-runtime[' in done.stderr.replace("PyTorch", "torch")


def test_import_is_light():
    """Importing the runtime loads no engine and no tokenizer: those come with the first bundle."""
    code = "import sys, ris.runtime; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    loaded = set(run_python(code).stdout.split())
    assert "numpy" in loaded
    assert not loaded & (HEAVY | {"onnxruntime", "tokenizers", "rich", "click"})


def test_no_file_is_too_long_to_finish():
    long = [p for d in MAY_IMPORT for p in (REPO / d).rglob("*.py") if len(p.read_text().splitlines()) > 500]
    assert not long
