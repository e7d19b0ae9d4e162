"""The commands and the Python of the README and of the guide, on a small bundle and picture.

What is quick runs as it stands. Of the rest, click reads the options.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import click
import numpy as np
import pytest
from PIL import Image

from conftest import REPO

BIN = Path(sys.executable).parent
README = REPO / "README.md"
GUIDE = sorted((REPO / "docs" / "guide").glob("*.md"))
SCRIPTS = tomllib.loads((REPO / "pyproject.toml").read_text("utf-8"))["project"]["scripts"]

READ_ONLY = {
    r"^ris-export": "exports run in tests/export, at full size in test_full_size.py",
    r"^ris-train": "tests/training trains",
    r"^ris-serve (?:http|start|load-test)|^ris-demo-ui": "serves until stopped; tests/serving",
    r"^ris-calibrate int8 .*(?:photos|requests)": "takes long; two other calibrations run",
    r"full-size|^ris-bench .*--out": "takes minutes; a shorter ris-bench runs",
    r"--checkpoint": "the tests of checkpoints make their own",
    r"--data (?:grefcoco|refcoco|ref-zom)": "the data sets are not here",
    r"tensorrt|--device cuda": "needs a GPU",
    r"--address|shards/": "needs a cluster",
    r"--compute bf16": "needs a processor with bfloat16",
    r"compare (?:reference|bench/before\.json)": "compares what other commands left",
    r"^ris-\w+ (?:emulated|int8-bundle|trained-bundle)|--bundle int8-bundle": "made by another",
    r"^ris-\w+ (?:evf|rela)-bundle|--bundle (?:evf|rela)-bundle": "made of files not here",
    r"^ris-models (?:fetch|push)|--bundle hf://": "needs a Hub; tests/runtime/hub has one",
    r"compare ris-bundle (?:emulated|int8-bundle)": "made by another",
}
"""What is not run, and why."""

ENDS_WITH = {"--bundle nowhere": 2, "tables examples/supplement.toml": 2}
"""Exit codes of commands that show an error."""

NEEDS = {"ris-batch": ("ray", ".[ray]"), "--engine openvino": ("openvino", ".[openvino]")}
"""Packages without which a command is skipped."""


def blocks(page: Path, kind: str) -> list[str]:
    return re.findall(rf"```{kind}\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks that start a command of ours, continued lines joined."""
    lines = "\n".join(blocks(page, "sh")).replace("\\\n", " ").splitlines()
    return [" ".join(line.split("  #")[0].split()) for line in lines if line.startswith("ris-")]


COMMANDS = list(dict.fromkeys(line for page in (README, *GUIDE) for line in commands(page)))
RUN = [line for line in COMMANDS if not any(re.search(known, line) for known in READ_ONLY)]


@pytest.fixture
def here(tmp_path, monkeypatch, tiny_bundle, tiny_fp16_bundle, picture):
    """A folder with what the commands name."""
    monkeypatch.chdir(tmp_path)
    for name in ("ris-bundle", "fp32-bundle"):
        Path(name).symlink_to(tiny_bundle)
    Path("fp16-bundle").symlink_to(tiny_fp16_bundle)
    Path("examples").symlink_to(REPO / "examples")
    Image.fromarray(picture).save("photo.jpg")
    Path("photos").mkdir()
    Image.fromarray(picture).save("photos/a.png")

    asked = {"image": "photo.jpg", "expression": "left man"}
    Path("requests.jsonl").write_text(json.dumps(asked) + "\n")
    Path("photos.jsonl").write_text(json.dumps({**asked, "mask": None}) + "\n")
    Path("data").mkdir()


def test_there_are_commands_to_run():
    assert len(commands(README)) >= 5
    assert len(RUN) >= 20
    assert len(COMMANDS) > len(RUN)


def test_what_is_not_run_is_there():
    """No pattern outlives the last command that it stood for."""
    for pattern in READ_ONLY:
        assert any(re.search(pattern, line) for line in COMMANDS), pattern


def marked(line: str) -> object:
    return pytest.param(line, marks=pytest.mark.ray) if line.startswith("ris-batch") else line


@pytest.mark.parametrize("line", map(marked, RUN))
def test_commands(here, line):
    for part, (package, extra) in NEEDS.items():
        if part in line:
            pytest.importorskip(package, reason=f'not installed: pip install "{extra}"')

    program, *arguments = shlex.split(line)
    done = subprocess.run([BIN / program, *arguments], capture_output=True, text=True, timeout=600)
    expected = next((code for part, code in ENDS_WITH.items() if part in line), 0)
    assert done.returncode == expected, done.stderr


@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in RUN])
def test_options_exist(here, line):
    program, *arguments = shlex.split(line)
    module, _, name = SCRIPTS[program].partition(":")
    command = getattr(importlib.import_module(module), name)
    if isinstance(command, click.Group):
        named = arguments[0] in command.commands
        command = command.commands[arguments.pop(0) if named else "run"]

    for folder in ("reference", "results", "emulated", "int8-bundle", "models", "made-up"):
        Path(folder).mkdir()  # click looks whether they exist
    for file in ("ranges.json", "rounded.safetensors", "answers.jsonl"):
        Path(file).touch()
    command.make_context(program, arguments)


@pytest.mark.parametrize("page", [README, REPO / "docs" / "index.md", *GUIDE], ids=lambda p: p.name)
def test_python(here, page):
    codes = blocks(page, "python")
    for code in codes:
        scope: dict[str, object] = {}
        exec(code, scope)
        assert scope["mask"].dtype == np.bool_
        assert scope["mask"].shape == (480, 640)
    assert codes or page not in (README, REPO / "docs" / "index.md")


def test_modules_that_the_guide_runs_exist():
    text = "".join(page.read_text(encoding="utf-8") for page in (REPO / "docs").rglob("*.md"))
    named = set(re.findall(r"python -m (ris\.[\w.]+)", text))
    assert "ris.training.publish" in named
    for module in named:
        assert importlib.util.find_spec(module) is not None, module


# Completion, as docs/guide/shell.md has it


def bash(code: str, **environment: str) -> str:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    done = subprocess.run(
        ["bash", "-c", code],
        env={**os.environ, "PATH": path, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_bash_completes_every_command():
    """The block that names them all, then what bash knows of each."""
    [block] = [code for code in blocks(REPO / "docs/guide/shell.md", "sh") if "for name" in code]
    known = bash(f"{block}\ncomplete -p")
    for program in SCRIPTS:
        assert f" {program}\n" in known + "\n", program


def test_completion_knows_options_and_choices():
    words = {"COMP_WORDS": "ris-infer photo.jpg --engine open", "COMP_CWORD": "3"}
    assert bash("_RIS_INFER_COMPLETE=bash_complete ris-infer", **words) == "plain,openvino\n"
    words = {"COMP_WORDS": "ris-eval compare --sam", "COMP_CWORD": "2"}
    assert bash("_RIS_EVAL_COMPLETE=bash_complete ris-eval", **words) == "plain,--samples\n"


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_a_script(shell):
    assert "ris-infer" in bash(f"_RIS_INFER_COMPLETE={shell}_source ris-infer")


def test_every_command_has_help():
    for name in SCRIPTS:
        done = subprocess.run([BIN / name, "--help"], capture_output=True, text=True, timeout=120)
        assert done.returncode == 0
        assert "Examples:" in done.stdout
    assert shutil.which("make")
