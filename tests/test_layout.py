"""The rules of docs/reference/design.md, The folders: who imports whom, and what the thin runtime
must never load.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import tomllib

import pytest

from conftest import REPO

# A room, and those that it stands on. An arrow is an import; who stands on a room stands on what
# carries it, too.
STANDS_ON = {
    "engines": (),
    "runtime": ("engines",),
    "data": ("runtime",),
    "evaluation": ("data",),
    "calibration": ("evaluation",),
    "reference": (),
    "training": ("evaluation", "reference"),
    "export": ("calibration", "reference"),
    "serving": ("data",),
}
# one family, which every room may raise, and how its sentences repeat somebody's text
ERRORS = {"ris.engines.errors", "ris.engines.text"}
HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "onnx",
    "onnxscript",
    "segment_anything",
    "open_clip",
    "safetensors",
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            whole = node.module == "ris"  # `from ris import export` names a room as well
            yield from (f"ris.{alias.name}" if whole else node.module for alias in node.names)
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and re.fullmatch(r"ris(\.\w+)+", node.value)
        ):
            yield node.value  # importlib.import_module takes it


def carriers(room):
    """The rooms that `room` may import: itself, what it stands on, and what those stand on."""
    return {room}.union(*(carriers(below) for below in STANDS_ON[room]))


@pytest.mark.parametrize("room", sorted(STANDS_ON))
def test_rooms_import_only_what_they_stand_on(room):
    light = "reference" not in carriers(room)
    for path in sorted((REPO / room).rglob("*.py")):
        for name in imported(path):
            package, *parts = name.split(".")
            if package == "ris":
                everywhere = name in ERRORS or (parts and parts[0] not in STANDS_ON)
                assert everywhere or parts[0] in carriers(room), f"{path} imports {name}"
            elif light:
                rewrites_graphs = path.parent.name in ("numerics", "weights")
                assert package not in HEAVY - ({"onnx"} if rewrites_graphs else set()), (
                    f"{path} imports {name}"
                )


def test_no_room_is_missing():
    """Every folder of the package is a room with arrows, and every room is installed."""
    packages = tomllib.loads((REPO / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {*STANDS_ON, "package"}  # the latter holds `import ris` itself
    assert set(packages["package-dir"].values()) == rooms
    folders = (p.parent for room in rooms for p in (REPO / room).rglob("__init__.py"))
    names = {".".join(("ris", *folder.relative_to(REPO).parts)) for folder in folders}
    assert {name.replace("ris.package", "ris") for name in names} == set(packages["packages"])


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
import ris.runtime.commands.infer, ris.runtime.commands.parity
import ris.runtime.commands.bench, ris.runtime.commands.doctor
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
        ("ris.training.command", ["--out", "run"], "torch"),
        ("ris.calibration.command", ["ranges"], "onnx"),
        ("ris.calibration.command", ["emulate", "bundle", "--out", "x"], "onnx"),
        ("ris.calibration.command", ["int8", "bundle", "--out", "x"], "onnx"),
        ("ris.calibration.command", ["weights", "--out", "x"], "torch"),
        ("ris.evaluation.command", ["--pytorch", "--checkpoint", "x.pth"], "torch"),
        ("ris.serving.batch.command", ["photos", "-e", "x"], "pyarrow"),
        ("ris.serving.page.command", ["bundle"], "fastapi"),
    ],
)
def test_commands_that_need_pytorch_say_what_to_install(tmp_path, command, arguments, missing):
    """Where the heavy packages are not installed: one sentence, no traceback."""
    find = "import importlib.util; importlib.util.find_spec = lambda name: None"
    code = f"{REFUSE}\n{find}\nfrom {command} import main\nmain({arguments!r})"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=tmp_path
    )
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Error: " in done.stderr
    assert f'{missing}: pip install ".[' in done.stderr.replace("PyTorch", "torch")


def test_import_is_light():
    """Importing the runtime loads no engine and no tokenizer: those come with the first bundle."""
    code = "import sys, ris.runtime; print(*sorted({n.split('.')[0] for n in sys.modules}))"
    loaded = set(run_python(code).stdout.split())
    assert "numpy" in loaded
    assert not loaded & (HEAVY | {"onnxruntime", "tokenizers", "rich", "click"})
