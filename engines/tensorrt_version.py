"""Which TensorRT is really loaded: the library's own version, and the CUDA it was built for.

The Python package's version is that of the bindings. The library beside it may be another one, the
system's for instance, and plans depend on the library.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import re
from pathlib import Path

_LIBRARIES = {"tensorrt": "libnvinfer", "tensorrt_rtx": "libtensorrt_rtx"}
_DISTRIBUTIONS = {"tensorrt": "tensorrt", "tensorrt_rtx": "tensorrt-rtx"}
_FLAVOURS = ("cu13", "cu12", "cu11")
_PARTS = ("Major", "Minor", "Patch", "Build")
_MAPS = Path("/proc/self/maps")


def full_version(package: str, bindings: str) -> str:
    """Bindings, library and CUDA, such as "10.16.1.11, library 10.16.1.11, cu13".

    Args:
        package: The module, "tensorrt" or "tensorrt_rtx"; it is imported already.
        bindings: The module's version.
    """
    library = loaded_library(_LIBRARIES.get(package, package), bindings.partition(".")[0])
    version = (library and library_version(library)) or "unknown"
    return f"{bindings}, library {version}, {cuda_flavour(package)}"


def loaded_library(name: str, major: str) -> Path | None:
    """The shared library that this process has loaded; None where it has none of that name.

    major: which one to prefer where several are loaded.
    """
    pattern = re.compile(rf"(/\S*/{re.escape(name)}\.so(?:\.[\d.]+)?)$", re.MULTILINE)
    try:
        found = list(dict.fromkeys(pattern.findall(_MAPS.read_text(errors="replace"))))
    except OSError:
        return None
    found.sort(key=lambda path: f".so.{major}" not in path)
    return Path(found[0]) if found else None


def library_version(library: str | Path) -> str | None:
    """The version that libnvinfer or TensorRT-RTX's library says itself; None where it does not.

    library: a path, or a name that the system's loader finds.
    """
    try:
        loaded = ctypes.CDLL(str(library))
        return ".".join(str(getattr(loaded, f"getInferLib{part}Version")()) for part in _PARTS)
    except (OSError, AttributeError):
        return None


def cuda_flavour(package: str) -> str:
    """The CUDA that pip's package is for, such as "cu13"; "of the system" for one without a name.

    package: the module.
    """
    for flavour in _FLAVOURS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            importlib.metadata.version(f"{_DISTRIBUTIONS.get(package, package)}-{flavour}")
            return flavour
    return "of the system"


def linked_library(provider: Path) -> str | None:
    """The libnvinfer that a provider's library is linked to, such as "libnvinfer.so.10".

    None where the file cannot be read or names none.
    """
    try:
        found = re.search(rb"libnvinfer\.so\.\d+", provider.read_bytes())
    except OSError:
        return None
    return found[0].decode() if found else None
