"""Nothing leaves the machine unasked: no engine looks a host up, and none notes who is here."""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys

import pytest

from ris.runtime import BUILT_IN

ASK = """
import sys
from ris.runtime import load
with load(sys.argv[1], engine=sys.argv[2]) as model:
    model.segment(sys.argv[3], "left man")
"""
STRACE = ("strace", "-f", "-qq", "-e", "trace=connect,sendto,sendmsg,sendmmsg", "-o")


def run(tmp_path, code, *arguments):
    """Runs Python in a home of its own.

    Returns the files that are there afterwards, and the calls to the network; none of them where
    strace is missing.
    """
    home, trace = tmp_path / "home", tmp_path / "trace"
    home.mkdir()
    unset = ("CI", "XDG_CACHE_HOME", "XDG_STATE_HOME", "ORT_DISABLE_TELEMETRY")
    environment = {name: value for name, value in os.environ.items() if name not in unset}
    environment["HOME"] = str(home)
    before = [*STRACE, str(trace)] if shutil.which("strace") else []
    command = [*before, sys.executable, "-c", code, *map(str, arguments)]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=120)
    files = {str(file.relative_to(home)) for file in home.rglob("*") if file.is_file()}
    calls = trace.read_text() if trace.exists() else ""
    return files, re.findall(r".*AF_INET.*|.*(?:google|microsoft).*", calls)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_asking_a_model_tells_nobody(tmp_path, picture_file, engine):
    pytest.importorskip(engine)
    files, calls = run(tmp_path, ASK, BUILT_IN, engine, picture_file)
    ours = (".cache/ris-runtime/", ".local/state/ris-runtime/")
    assert not [file for file in files if not file.startswith(ours)]
    assert not calls


def has_telemetry():
    try:
        return bool(importlib.metadata.version("openvino-telemetry"))
    except importlib.metadata.PackageNotFoundError:
        return False


def test_who_asks_for_telemetry_has_it():
    code = "import os, sys, openvino_telemetry as t, ris;"
    code += "print(os.environ['ORT_DISABLE_TELEMETRY'], sys.modules['openvino_telemetry'] is t)"
    environment = os.environ | {"ORT_DISABLE_TELEMETRY": "0"}
    if not has_telemetry():
        pytest.skip("OpenVINO's telemetry is not installed")
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True)
    assert done.stdout.split() == [b"0", b"True"], done.stderr


@pytest.fixture
def picture_file(tmp_path, picture):
    from PIL import Image

    file = tmp_path / "park.png"
    Image.fromarray(picture).save(file)
    return file
