"""The real Python bindings of TensorRT 10 and 11, without TensorRT: wheels over stub libraries.

They are kept in build/tensorrt-bindings, which git ignores. `python
tests/tensorrt_bindings_helper.py` fetches them from the index.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

VERSIONS = ("10.16.1.11", "11.4.0.106")
LIBRARIES = {"INFER": "libnvinfer", "PLUGIN": "libnvinfer_plugin", "PARSER": "libnvonnxparser"}
STUB = Path(__file__).parent / "engines" / "tensorrt_stub.c"
FOLDER = Path(__file__).parent.parent / "build" / "tensorrt-bindings"


class NotHere(Exception):  # noqa: N818
    """Why the bindings cannot be had."""


def bindings(version: str) -> dict[str, str]:
    """Environment variables under which `import tensorrt_bindings` gives that version.

    Raises NotHere.
    """
    folder = FOLDER / version
    if not (folder / "complete").exists():
        _fetch(version, folder)
    return {"LD_LIBRARY_PATH": str(folder), "PYTHONPATH": str(folder)}


def _fetch(version: str, folder: Path) -> None:
    """Downloads the wheel and builds the stub libraries. Raises NotHere."""
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        raise NotHere("there is no C compiler for the stub libraries")
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    download = [sys.executable, "-m", "pip", "download", "-q", "--no-deps"]
    what = ["--only-binary", ":all:", "-d", str(folder), f"tensorrt-cu13-bindings=={version}"]
    done = subprocess.run([*download, *what], capture_output=True, text=True)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or not wheels:
        raise NotHere(f"tensorrt-cu13-bindings {version} cannot be downloaded")
    with zipfile.ZipFile(wheels[0]) as wheel:
        wheel.extractall(folder)

    for define, name in LIBRARIES.items():
        library = f"{name}.so.{version.partition('.')[0]}"
        flags = ["-shared", "-fPIC", f"-D{define}", f"-Wl,-soname,{library}"]
        subprocess.run([compiler, *flags, str(STUB), "-o", str(folder / library)], check=True)
    wheels[0].unlink()
    (folder / "complete").touch()


def run_under(version: str, code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs Python code that can import that version's tensorrt_bindings. Raises NotHere."""
    command = [sys.executable, "-c", code, *arguments]
    environment = os.environ | bindings(version)
    return subprocess.run(command, capture_output=True, text=True, env=environment)


if __name__ == "__main__":
    for wanted in VERSIONS:
        print(wanted, bindings(wanted)["PYTHONPATH"])
