"""CUDA through cuda-python: is there a driver, which GPU is it, and calls that raise.

The driver is asked before anything of TensorRT is made: its lean runtimes crash the process where
there is none. cuda-python has to be installed only where a device is really used.

CUDA keeps a current device for each thread. Whatever enters from a thread, a pool's or the
caller's, therefore names its device first (`on_device`) and leaves the caller's as it was.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ris import pip_install
from ris.engines.errors import EngineError

_PIP = pip_install("tensorrt")
_NO_GPU = "the CUDA driver sees no GPU; check CUDA_VISIBLE_DEVICES"
_FORKED = (
    "this process is the child of a fork, and its parent has used CUDA, which does not survive"
    " that; start it anew, as the method 'spawn' of multiprocessing does"
)


@dataclass
class _State:
    """What this process has to do with the driver."""

    used: bool = False
    """Whether the driver was started here."""

    lost: bool = False
    """Whether a fork has lost it."""


_STATE = _State()


def note_use() -> None:
    """Notes that this process has started the driver, so that the child of a fork is told."""
    _STATE.used = True


def _after_fork() -> None:
    _STATE.lost = _STATE.lost or _STATE.used


os.register_at_fork(after_in_child=_after_fork)


def driver_problem() -> str | None:
    """Why no GPU can be used here ("no CUDA driver ..."), or None where one can."""
    found = _count()
    return found if isinstance(found, str) else None


def gpu_problem(index: int) -> str | None:
    """Why the GPU of this number cannot be used here, or None where it can."""
    if (problem := driver_problem()) or index == 0:
        return problem
    found = _count()
    if isinstance(found, str) or index < found:
        return found if isinstance(found, str) else None
    return f"there is no GPU {index}: the driver sees {found}, counted from 0"


def _count() -> int | str:
    """The number of GPUs, at least 1; or why none can be used."""
    if _STATE.lost:
        return _FORKED
    # find_spec of a submodule raises where the package around it is missing
    has_cuda_python = (
        importlib.util.find_spec("cuda") is not None
        and importlib.util.find_spec("cuda.bindings") is not None
    )
    found = _count_of_cuda_python() if has_cuda_python else _count_of_driver()
    if not isinstance(found, str):
        note_use()  # the question alone has started it
    return found


def _count_of_cuda_python() -> int | str:
    """`_count`, as cuda-python answers it."""
    try:
        runtime = load()
        error, count = runtime.cudaGetDeviceCount()
    except Exception as failure:
        return (
            f"no CUDA driver that cuda-python can use ({failure}); install one, or install"
            " cuda-bindings again"
        )
    if int(error) != 0:
        return (
            f"no CUDA driver that fits ({error_text(runtime, error)}); install one, r580 or"
            " later for CUDA 13"
        )
    return int(count) or _NO_GPU


def _count_of_driver() -> int | str:
    """`_count`, as the driver's own library answers it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver (libcuda.so.1 is not there); install one"
    if driver.cuInit(0) != 0:
        return _NO_GPU
    count = ctypes.c_int()
    counted = driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return count.value if counted and count.value else _NO_GPU


def load() -> Any:
    """The module cuda.bindings.runtime.

    Raises:
        EngineError: Where it is not installed.
    """
    try:
        return importlib.import_module("cuda.bindings.runtime")
    except ImportError as error:
        raise EngineError(
            f"running on a GPU needs cuda-python, which is not installed; {_PIP}"
        ) from error


def error_text(runtime: Any, error: Any) -> str:
    """A CUDA error in the runtime's own words."""
    _, text = runtime.cudaGetErrorString(error)
    return text.decode() if isinstance(text, bytes) else str(text or error)


def call(runtime: Any, name: str, *arguments: Any) -> Any:
    """Calls a function of cuda-python, which returns (error, values...).

    Returns:
        The first value, None where there is none.

    Raises:
        EngineError: With CUDA's words, for an error.
    """
    error, *values = getattr(runtime, name)(*arguments)
    if int(error) != 0:
        raise EngineError(
            f"{name} failed: {error_text(runtime, error)}; see nvidia-smi for memory and other"
            " processes"
        )
    return values[0] if values else None


@contextlib.contextmanager
def on_device(runtime: Any, index: int) -> Iterator[None]:
    """Makes a GPU this thread's current one during the block, and the one before it afterwards.

    Raises EngineError where there is no such GPU.
    """
    before = call(runtime, "cudaGetDevice")
    call(runtime, "cudaSetDevice", index)
    try:
        yield
    finally:
        if int(before) != index:
            runtime.cudaSetDevice(before)


@dataclass(frozen=True)
class Gpu:
    """One GPU, as far as a compiled graph depends on it."""

    name: str
    """Its product name."""

    capability: tuple[int, int]
    """The compute capability, major and minor."""

    processors: int
    """The number of its streaming multiprocessors, which a MIG slice has fewer of."""

    memory: int
    """Its memory in bytes."""

    @property
    def architecture(self) -> str:
        """The compute capability as compilers write it, such as "sm_90"."""
        return f"sm_{self.capability[0]}{self.capability[1]}"

    @property
    def key(self) -> str:
        """What a plan's key says of it, such as "sm_90, NVIDIA H200, 132 SMs, 140 GiB".

        Plans differ between GPUs of one compute capability. Memory is rounded, as drivers keep more
        or less of it to themselves.
        """
        size = f"{self.memory / 2**30:.0f} GiB"
        return f"{self.architecture}, {self.name}, {self.processors} SMs, {size}"


def gpu(runtime: Any, index: int) -> Gpu:
    """The GPU of this number.

    Raises:
        EngineError: With CUDA's words, for an error.
    """
    found = call(runtime, "cudaGetDeviceProperties", index)
    name = found.name.decode(errors="replace") if isinstance(found.name, bytes) else str(found.name)
    return Gpu(
        name=name.rstrip("\0"),
        capability=(int(found.major), int(found.minor)),
        processors=int(found.multiProcessorCount),
        memory=int(found.totalGlobalMem),
    )
