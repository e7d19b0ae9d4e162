"""The README's commands and Python run as they stand, on a small bundle and picture."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from conftest import REPO

README = (REPO / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    line
    for kind, block in BLOCKS
    if kind == "sh"
    for line in block.splitlines()
    if line.startswith("ris-")
]
# exported and compared at full size by tests/export/test_full_size.py
QUICK = [line for line in COMMANDS if "full-size" not in line]


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_bundle, picture):
    monkeypatch.chdir(tmp_path)
    Path("ris-bundle").symlink_to(tiny_bundle)
    Image.fromarray(picture).save("photo.jpg")
    Path("photos").mkdir()
    Image.fromarray(picture).save("photos/a.png")
    Path("examples").symlink_to(REPO / "examples")
    Path("requests.jsonl").write_text('{"image": "photo.jpg", "expression": "left man"}\n')


def test_there_are_commands_to_run():
    assert len(QUICK) >= 5
    assert len(COMMANDS) > len(QUICK)


@pytest.mark.parametrize("line", [c for c in QUICK if not c.startswith("ris-export")])
def test_commands(here, line):
    program, *arguments = shlex.split(line, comments=True)
    if program == "ris-batch":
        pytest.importorskip("ray", reason='Ray is not installed: pip install ".[ray]"')
    done = subprocess.run(
        [Path(sys.executable).parent / program, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr


def test_export_commands_are_accepted():
    """Each option exists; the exports themselves run in tests/export."""
    from ris.export.command import main

    for line in COMMANDS:
        program, *arguments = shlex.split(line, comments=True)
        if program == "ris-export":
            main.make_context("ris-export", arguments)


def test_python(here):
    [code] = [block for kind, block in BLOCKS if kind == "python"]
    scope: dict[str, object] = {}
    exec(code, scope)
    assert scope["mask"].dtype == np.bool_
    assert scope["mask"].shape == (480, 640)


def test_linked_files_exist():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (REPO / target).exists(), target


def test_every_command_has_help():
    names = [
        "export",
        "compile",
        "infer",
        "parity",
        "bench",
        "doctor",
        "train",
        "eval",
        "calibrate",
        "batch",
        "serve",
        "demo-ui",
    ]
    for name in (f"ris-{n}" for n in names):
        program = Path(sys.executable).parent / name
        done = subprocess.run([program, "--help"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0
        assert "Examples:" in done.stdout
    assert shutil.which("make")
