"""What this machine is: versions, processor, memory, GPUs. Reads files and asks `nvidia-smi`; never
raises.

Everything has a graceful answer where a file or program is missing, as on other systems than Linux.
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
ENGINE_PACKAGES = (
    "onnxruntime",
    "onnxruntime-gpu",
    "openvino",
    "tensorrt-cu13",
    "tensorrt-rtx-cu13",
    "cuda-bindings",
)
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
ARM_FEATURES = {
    "asimd": "neon",
    "asimdhp": "fp16",
    "asimddp": "dotprod",
    "bf16": "bf16",
    "i8mm": "i8mm",
    "sve": "sve",
}

_MEMINFO = Path("/proc/meminfo")
_GPU_FIELDS = ("name", "driver_version", "memory.total", "compute_cap")


@dataclass(frozen=True)
class Cpu:
    """model: as the system calls it; present: logical cores of the machine; usable: those this
    process may run on; quota: cores' worth of time a container may spend, None without a limit;
    features: those that inference uses.
    """

    model: str
    architecture: str
    present: int
    usable: int
    quota: float | None
    features: tuple[str, ...]


@dataclass(frozen=True)
class Memory:
    """In bytes; None where unknown. limit: what a container may use, None without a limit."""

    total: int | None
    available: int | None
    limit: int | None


@dataclass(frozen=True)
class Gpu:
    """One NVIDIA GPU. memory: as `nvidia-smi` gives it, in MiB; compute_capability: None for old
    drivers.
    """

    name: str
    driver: str
    memory: str
    compute_capability: str | None


@dataclass(frozen=True)
class Gpus:
    """found: by `nvidia-smi`; note: why there are none, or how they were looked for; driver:
    libcuda can be loaded.
    """

    found: tuple[Gpu, ...]
    driver: bool
    note: str | None


def versions(names: tuple[str, ...]) -> dict[str, str]:
    """Version by name of the distributions that are installed; none is imported."""
    found = {}
    for name in names:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def operating_system() -> dict[str, str]:
    """python, os, kernel and libc."""
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
    """Total and available memory of the machine, and the container's limit where it is the smaller
    one.
    """
    sizes = {
        m[1]: int(m[2]) * 1024
        for m in re.finditer(r"^(\w+):\s+(\d+) kB", processor.read(_MEMINFO), re.MULTILINE)
    }
    total = sizes.get("MemTotal")
    if total is None:
        try:
            total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        except (ValueError, OSError, AttributeError):
            total = None
    files = processor.cgroup_files(
        "memory", version_2="memory.max", version_1="memory.limit_in_bytes"
    )
    limits = [processor.positive_integer(text) for text in files]
    limit = min((n for n in limits if n is not None), default=None)
    # version 1 writes a huge number for no limit
    if limit is not None and total is not None and limit >= total:
        limit = None
    return Memory(total, sizes.get("MemAvailable"), limit)


def gpus(timeout: float = 15) -> Gpus:
    """NVIDIA GPUs as `nvidia-smi` lists them."""
    driver = cuda_driver()
    text = (
        "the driver library is there, but no nvidia-smi"
        if driver
        else "no nvidia-smi and no driver library"
    )
    for fields in (_GPU_FIELDS, _GPU_FIELDS[:3]):
        command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)
        except FileNotFoundError:
            return Gpus((), driver, text)
        except (OSError, subprocess.TimeoutExpired) as error:
            kind = (
                "did not answer"
                if isinstance(error, subprocess.TimeoutExpired)
                else f"cannot be run ({error.strerror})"
            )
            return Gpus((), driver, f"nvidia-smi {kind}")
        if done.returncode == 0:
            rows = [
                [cell.strip() for cell in line.split(",")]
                for line in done.stdout.splitlines()
                if line.strip()
            ]
            found = tuple(
                Gpu(r[0], r[1], r[2], r[3] if len(r) > 3 else None) for r in rows if len(r) >= 3
            )
            return Gpus(found, driver, None if found else "nvidia-smi lists none")
    reason = (done.stderr or done.stdout).strip().splitlines()
    return Gpus(
        (), driver, f"nvidia-smi failed: {reason[0] if reason else f'exit code {done.returncode}'}"
    )


def cuda_driver() -> bool:
    """Whether the NVIDIA driver's own library can be loaded."""
    for name in ("libcuda.so.1", "nvcuda.dll"):
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
