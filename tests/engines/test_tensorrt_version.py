"""The version of the library that is really loaded, whatever the Python package says."""

from __future__ import annotations

import ctypes
import shutil
import subprocess

import pytest

from ris.engines import tensorrt_version
from ris.engines.tensorrt_version import full_version, library_version, linked_library

PARTS = (("Major", 10), ("Minor", 16), ("Patch", 1), ("Build", 11))


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A library with the functions in which TensorRT's says its version."""
    if not (compiler := shutil.which("gcc") or shutil.which("cc")):
        pytest.skip("there is no C compiler")
    folder = tmp_path_factory.mktemp("library")
    source, made = folder / "version.c", folder / "libnvinfer.so.10"
    lines = [f"int getInferLib{part}Version(void) {{ return {number}; }}" for part, number in PARTS]
    source.write_text("\n".join(lines))
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(made)], check=True)
    return made


def test_a_library_says_its_version(library, tmp_path):
    assert library_version(library) == "10.16.1.11"
    assert library_version(tmp_path / "none.so") is None
    assert library_version("libc.so.6") is None


def test_the_library_that_is_loaded_counts_and_not_the_packages_version(library):
    ctypes.CDLL(str(library))
    version = full_version("tensorrt", "10.99.0.0")
    assert version.startswith("10.99.0.0, library 10.16.1.11, ")


def test_nothing_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(tensorrt_version, "_MAPS", tmp_path / "none")
    assert "library unknown" in full_version("tensorrt", "10.99.0.0")


def test_the_cuda_of_pips_package(monkeypatch):
    installed = {"tensorrt-cu12": "10.16", "tensorrt-rtx-cu13": "1.7"}

    def version(name):
        if name not in installed:
            raise tensorrt_version.importlib.metadata.PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    assert tensorrt_version.cuda_flavour("tensorrt") == "cu12"
    assert tensorrt_version.cuda_flavour("tensorrt_rtx") == "cu13"
    installed.clear()
    assert tensorrt_version.cuda_flavour("tensorrt") == "of the system"


def test_a_providers_library_names_the_tensorrt_that_it_wants(tmp_path):
    provider = tmp_path / "libonnxruntime_providers_tensorrt.so"
    assert linked_library(provider) is None
    provider.write_bytes(b"\x7fELF\x00libcudart.so.13\x00libnvinfer.so.10\x00")
    assert linked_library(provider) == "libnvinfer.so.10"
    provider.write_bytes(b"nothing")
    assert linked_library(provider) is None
