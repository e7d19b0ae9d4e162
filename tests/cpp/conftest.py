"""libris for the tests, built once."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from pathlib import Path

import pytest

from libris_helper import REPO, Libris, run

NEEDED = {
    "nlohmann/json.hpp": "nlohmann-json3-dev",
    "utf8proc.h": "libutf8proc-dev",
    "openssl/evp.h": "libssl-dev",
}


@pytest.fixture(scope="session")
def onnxruntime_root():
    """ONNX Runtime's headers and library: $RIS_ONNXRUNTIME_ROOT, or where `make cpp` puts them."""
    root = Path(os.environ.get("RIS_ONNXRUNTIME_ROOT", REPO / "build" / "onnxruntime"))
    if platform.system() != "Linux":
        pytest.skip("libris is built on Linux alone")
    for program in ("cmake", "g++", "make"):
        if shutil.which(program) is None:
            pytest.skip(f"libris needs {program} to build: apt-get install {program}")
    for header, package in NEEDED.items():
        source = f"#include <{header}>"
        command = ["g++", "-x", "c++", "-E", "-"]
        found = subprocess.run(command, input=source, text=True, capture_output=True, check=False)
        if found.returncode != 0:
            pytest.skip(f"libris needs {header} to build: apt-get install {package}")
    if not (root / "include" / "onnxruntime_cxx_api.h").is_file():
        pytest.skip(
            f"no ONNX Runtime headers; run cpp/get-onnxruntime.sh {root}, or set"
            " RIS_ONNXRUNTIME_ROOT"
        )
    return root


def build(folder, root, *options):
    run(
        "cmake",
        "-S",
        REPO / "cpp",
        "-B",
        folder,
        f"-DRIS_ONNXRUNTIME_ROOT={root}",
        "-DRIS_BUILD_TESTS=ON",
        *options,
    )
    run("cmake", "--build", folder, f"-j{len(os.sched_getaffinity(0))}")
    return folder


@pytest.fixture(scope="session")
def cpp_build(onnxruntime_root):
    """The folder of a build: $RIS_CPP_BUILD, or build/cpp, brought up to date."""
    if given := os.environ.get("RIS_CPP_BUILD"):
        return Path(given)
    return build(REPO / "build" / "cpp", onnxruntime_root, "-DCMAKE_COMPILE_WARNING_AS_ERROR=ON")


@pytest.fixture(scope="session")
def sanitized_build(onnxruntime_root):
    """The tests' programs with AddressSanitizer and UndefinedBehaviorSanitizer, in
    build/cpp-sanitize.
    """
    return build(
        REPO / "build" / "cpp-sanitize",
        onnxruntime_root,
        "-DRIS_SANITIZE=ON",
        "-DRIS_BUILD_EXAMPLES=OFF",
    )


@pytest.fixture(scope="session")
def internals(cpp_build):
    """The steps inside libris (cpp/tests/internals.cpp)."""
    library = ctypes.CDLL(str(cpp_build / "tests" / "libris_internals.so"))
    library.test_mask.argtypes = [
        ctypes.c_void_p,
        *[ctypes.c_int] * 4,
        ctypes.c_void_p,
        ctypes.c_void_p,
    ]
    library.test_mask.restype = ctypes.c_double
    library.test_draw.argtypes = [ctypes.c_int, *[ctypes.c_uint64] * 3, ctypes.c_void_p]
    return library


@pytest.fixture(scope="session")
def libris(cpp_build):
    return Libris(cpp_build / "libris.so")
