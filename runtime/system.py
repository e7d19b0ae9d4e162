"""What this machine is: versions, processor, memory, GPUs.

It reads files and asks `nvidia-smi`, and never raises: where a file or program is missing, as on
other systems than Linux, the answer says that something is unknown.
"""

from __future__ import annotations

import ctypes
import importlib.metadata
import os
import platform
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ris.engines import processor

RUNTIME_PACKAGES = ("ris-runtime", "numpy", "pillow", "tokenizers", "click", "rich")
"""The distributions that every command needs."""

ENGINE_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
)
"""The distributions that engines need."""

EXPORT_PACKAGES = (
    "torch",
    "torchvision",
    "onnx",
    "onnxscript",
    "transformers",
    "segment-anything",
    "open-clip-torch",
    "safetensors",
)
"""The distributions that only `ris-export` needs."""

X86_FEATURES = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "avx_vnni",
    "amx_tile",
    "amx_bf16",
    "amx_int8",
)
"""The x86 features that inference uses, as Linux names them."""

ARM_FEATURES = {
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
}
"""The Arm features that inference uses: Linux's name, and the usual one."""

_MEMINFO = Path("/proc/meminfo")
_GPU_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


@dataclass(frozen=True)
class Cpu:
    """The processor, and how much of it this process may use."""

    model: str
    """Its name, as the system has it; "unknown" where the system has none."""

    architecture: str
    """Such as "x86_64" or "aarch64"."""

    present: int
    """Logical cores of the machine."""

    usable: int
    """Those that this process may run on."""

    quota: float | None
    """Cores' worth of time that a container may spend, None without a limit."""

    features: tuple[str, ...]
    """The features that inference uses."""


@dataclass(frozen=True)
class Memory:
    """The machine's memory in bytes."""

    total: int | None
    """All of it, None where unknown."""

    available: int | None
    """What programs can still get, None where unknown."""

    limit: int | None
    """What a container may use, None without a limit."""


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU."""

    name: str
    """Its product name."""

    driver: str
    """The driver's version."""

    memory: str
    """In MiB, as `nvidia-smi` writes it."""

    compute_capability: str | None
    """Such as "9.0"; None where the driver is too old to say."""


@dataclass(frozen=True)
class Gpus:
    """The NVIDIA GPUs of the machine."""

    found: tuple[Gpu, ...]
    """Those that `nvidia-smi` lists."""

    driver: bool
    """Whether the driver's own library can be loaded."""

    note: str | None
    """Why none was found, None where some were."""


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """The version of each distribution that is installed, by name; nothing is imported."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def operating_system() -> dict[str, str]:
    """Names and versions of python, os, kernel and libc."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = f"{platform.system()} {platform.release()}"
    libc = " ".join(platform.libc_ver()).strip()
    return {
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "os": name,
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "libc": libc or "unknown",
    }


def cpu() -> Cpu:
    """The processor, from /proc/cpuinfo where there is one."""
    fields, flags = processor.cpu_fields(), processor.cpu_features()
    features = [flag for flag in X86_FEATURES if flag in flags]
    features += [name for flag, name in ARM_FEATURES.items() if flag in flags]

    model = fields.get("model name") or fields.get("Model") or platform.processor() or "unknown"
    if model == "unknown" and "CPU part" in fields:
        model = f"Arm implementer {fields.get('CPU implementer', '?')} part {fields['CPU part']}"
    return Cpu(
        model=model,
        architecture=platform.machine(),
        present=os.cpu_count() or 1,
        usable=processor.allowed_cores(),
        quota=processor.cpu_quota(),
        features=tuple(features),
    )


def memory() -> Memory:
    """The machine's memory, and the container's limit where that is the smaller one."""
    sizes = {
        m[1]: int(m[2]) * 1024
        for m in re.finditer(r"^(\w+):\s+(\d+) kB", processor.read(_MEMINFO), re.MULTILINE)
    }
    total = sizes["MemTotal"] if "MemTotal" in sizes else _memory_of_sysconf()
    files = processor.cgroup_files(
        "memory", version_2="memory.max", version_1="memory.limit_in_bytes"
    )
    limits = [processor.positive_integer(text) for text in files]
    limit = min((n for n in limits if n is not None), default=None)
    # version 1 writes a huge number for no limit
    if limit is not None and total is not None and limit >= total:
        limit = None
    return Memory(total, sizes.get("MemAvailable"), limit)


def _memory_of_sysconf() -> int | None:
    """All memory, for systems without /proc/meminfo."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None


def gpus(timeout: float = 15) -> Gpus:
    """NVIDIA GPUs as `nvidia-smi` lists them; it has `timeout` seconds to answer."""
    driver = cuda_driver()
    # old drivers refuse the last field, compute_cap
    for fields in (_GPU_FIELDS, _GPU_FIELDS[:3]):
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        except FileNotFoundError:
            there = "the driver library is there, but no nvidia-smi"
            return Gpus((), driver, there if driver else "no nvidia-smi and no driver library")
        except subprocess.TimeoutExpired:
            return Gpus((), driver, "nvidia-smi did not answer")
        except OSError as error:
            return Gpus((), driver, f"nvidia-smi cannot be run ({error.strerror})")
        if done.returncode == 0:
            found = _listed(done.stdout)
            return Gpus(found, driver, None if found else "nvidia-smi lists none")

    lines = (done.stderr or done.stdout).strip().splitlines()
    reason = lines[0] if lines else f"exit code {done.returncode}"
    return Gpus((), driver, f"nvidia-smi failed: {reason}")


def _listed(text: str) -> tuple[Gpu, ...]:
    """The GPUs of nvidia-smi's table, one a line."""
    rows = [[cell.strip() for cell in line.split(",")] for line in text.splitlines()]
    return tuple(Gpu(r[0], r[1], r[2], r[3] if len(r) > 3 else None) for r in rows if len(r) >= 3)


def cuda_driver() -> bool:
    """Whether the NVIDIA driver's own library can be loaded."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
