"""CUDA through cuda-python: is there a driver, and memory that is surely given back.

The driver is asked before anything of TensorRT is made: its lean runtimes crash the process where
there is none. cuda-python has to be installed only where a device is really used.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
import os
from typing import Any

import numpy as np

from ris import pip_install
from ris.engines.base import DeviceValue
from ris.engines.errors import EngineError

_PIP = pip_install("tensorrt")
_NO_GPU = "the CUDA driver sees no GPU; check CUDA_VISIBLE_DEVICES"


def driver_problem() -> str | None:
    """Why no GPU can be used here ("no CUDA driver ..."), or None where one can."""
    # find_spec of a submodule raises where the package around it is missing
    has_cuda_python = (
        importlib.util.find_spec("cuda") is not None
        and importlib.util.find_spec("cuda.bindings") is not None
    )
    return _problem_of_cuda_python() if has_cuda_python else _problem_of_driver()


def _problem_of_cuda_python() -> str | None:
    """`driver_problem`, as cuda-python answers it."""
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
    return None if count else _NO_GPU


def _problem_of_driver() -> str | None:
    """`driver_problem`, as the driver's own library answers it."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver (libcuda.so.1 is not there); install one"
    if driver.cuInit(0) != 0:
        return _NO_GPU
    count = ctypes.c_int()
    counted = driver.cuDeviceGetCount(ctypes.byref(count)) == 0
    return None if counted and count.value else _NO_GPU


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


def compute_capability(runtime: Any) -> str:
    """The compute capability of the current device, as "sm_90".

    Raises:
        EngineError: With CUDA's words, for an error.
    """
    device = call(runtime, "cudaGetDevice")
    kinds = runtime.cudaDeviceAttr
    major_kind = kinds.cudaDevAttrComputeCapabilityMajor
    minor_kind = kinds.cudaDevAttrComputeCapabilityMinor
    major = call(runtime, "cudaDeviceGetAttribute", major_kind, device)
    minor = call(runtime, "cudaDeviceGetAttribute", minor_kind, device)
    return f"sm_{major}{minor}"


class DeviceMemory:
    """A block of device memory. `close` may be called twice.

    It belongs to the process that made it: what the child of a fork has of it is nothing to free.
    """

    address: int
    """Where the block begins; 0 after `close`."""

    def __init__(self, runtime: Any, size: int) -> None:
        self._runtime, self._process = runtime, os.getpid()
        self.address = 0  # `close` runs even where the allocation below fails
        self.address = int(call(runtime, "cudaMalloc", max(size, 1)))

    def close(self) -> None:
        address, self.address = self.address, 0
        if address and self._process == os.getpid():
            self._runtime.cudaFree(address)

    def __del__(self) -> None:
        self.close()


class PinnedArray:
    """An array in page-locked host memory, which the device can copy without the CPU."""

    address: int
    """Where the memory begins; 0 after `close`."""

    array: np.ndarray
    """The array in it. It must not be used after `close`, nor when this object is gone."""

    def __init__(self, runtime: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._runtime = runtime
        self.address = 0  # `close` runs even where something below fails
        self.array = np.empty(0, dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.address = int(call(runtime, "cudaMallocHost", max(size, 1)))
        raw = (ctypes.c_byte * size).from_address(self.address)
        self.array = np.frombuffer(memoryview(raw).cast("B"), dtype=dtype).reshape(shape)

    def close(self) -> None:
        address, self.address = self.address, 0
        if address:
            self.array = np.empty(0, self.array.dtype)
            self._runtime.cudaFreeHost(address)

    def __del__(self) -> None:
        self.close()


class CudaValue(DeviceValue):
    """An array in device memory of its own, complete when it is handed out."""

    def __init__(
        self, runtime: Any, memory: DeviceMemory, shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        """Takes over memory that already holds the array.

        Args:
            runtime: The module `cuda.bindings.runtime`.
            memory: The memory; the value closes it.
            shape: The array's shape.
            dtype: The array's dtype.
        """
        self._runtime, self._memory = runtime, memory
        self.shape, self.dtype = shape, dtype

    @property
    def address(self) -> int:
        """Where the array lies on the device.

        Raises:
            EngineError: After `close`.
        """
        if not self._memory.address:
            raise EngineError("the value on the device was closed; encode the image again")
        return self._memory.address

    def numpy(self) -> np.ndarray:
        array = np.empty(self.shape, self.dtype)
        kind = self._runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        call(self._runtime, "cudaMemcpy", array.ctypes.data, self.address, array.nbytes, kind)
        return array

    def close(self) -> None:
        self._memory.close()
