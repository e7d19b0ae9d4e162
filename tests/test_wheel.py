"""The wheel, installed alone in an empty environment; `check_wheel.py` says what is tried."""

from __future__ import annotations

import subprocess
import sys

import pytest

from conftest import REPO


@pytest.mark.slow
def test_the_wheel_alone_does_its_work():
    command = ["make", "test-wheel", f"PYTHON={sys.executable}"]
    done = subprocess.run(command, cwd=REPO, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    for said in ("14 commands start", "find the built-in bundle whole", "pyright finds the types"):
        assert said in done.stdout
