"""CUDA through cuda-python: is there a driver, and memory that is surely given back.

The driver is asked before anything of TensorRT is made: its lean runtimes crash the process where
there is none. Nothing here needs cuda-python to be installed until a device is really used.
"""

from __future__ import annotations

import ctypes
import importlib
import importlib.util
from typing import Any

import numpy as np

from ris import pip_install
from ris.engines.base import DeviceValue
from ris.engines.errors import EngineError

_PIP = pip_install("tensorrt")


def driver_problem() -> str | None:
    """Why no GPU can be used here ("no CUDA driver ..."), or None where one can."""
    if (
        importlib.util.find_spec("cuda") is not None
        and importlib.util.find_spec("cuda.bindings") is not None
    ):
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
        return None if count else "the CUDA driver sees no GPU; check CUDA_VISIBLE_DEVICES"
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "no CUDA driver (libcuda.so.1 is not there); install one"
    number = ctypes.c_int()
    if (
        driver.cuInit(0) != 0
        or driver.cuDeviceGetCount(ctypes.byref(number)) != 0
        or not number.value
    ):
        return "the CUDA driver sees no GPU; check CUDA_VISIBLE_DEVICES"
    return None


def load() -> Any:
    """The module cuda.bindings.runtime. Raises EngineError where it is not installed."""
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
    """Calls a function of cuda-python, which returns (error, values...); gives back the value, None
    for none.

    Raises EngineError with CUDA's words.
    """
    error, *values = getattr(runtime, name)(*arguments)
    if int(error) != 0:
        raise EngineError(
            f"{name} failed: {error_text(runtime, error)}; see nvidia-smi for memory and other"
            " processes"
        )
    return values[0] if values else None


def compute_capability(runtime: Any) -> str:
    """That of the current device, as "sm_90". Raises EngineError."""
    device = call(runtime, "cudaGetDevice")
    kinds = runtime.cudaDeviceAttr
    major, minor = (
        call(runtime, "cudaDeviceGetAttribute", kind, device)
        for kind in (
            kinds.cudaDevAttrComputeCapabilityMajor,
            kinds.cudaDevAttrComputeCapabilityMinor,
        )
    )
    return f"sm_{major}{minor}"


class DeviceMemory:
    """A block of device memory. close() may be called twice."""

    def __init__(self, runtime: Any, size: int) -> None:
        self._runtime = runtime
        self.address: int = 0
        self.address = int(call(runtime, "cudaMalloc", max(size, 1)))

    def close(self) -> None:
        address, self.address = self.address, 0
        if address:
            self._runtime.cudaFree(address)

    def __del__(self) -> None:
        self.close()


class PinnedArray:
    """An array in page-locked host memory, which the device copies from and to on its own. `array`
    dies with it.
    """

    def __init__(self, runtime: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._runtime = runtime
        self.address: int = 0
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.address = int(call(runtime, "cudaMallocHost", max(size, 1)))
        raw = (ctypes.c_byte * size).from_address(self.address)
        self.array: np.ndarray = np.frombuffer(memoryview(raw).cast("B"), dtype=dtype).reshape(
            shape
        )

    def close(self) -> None:
        address, self.address = self.address, 0
        if address:
            self.array = np.empty(0, self.array.dtype)
            self._runtime.cudaFreeHost(address)

    def __del__(self) -> None:
        self.close()


class CudaValue(DeviceValue):
    """An array in device memory of its own, whole when it is handed out."""

    def __init__(
        self, runtime: Any, memory: DeviceMemory, shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        self._runtime, self._memory = runtime, memory
        self.shape, self.dtype = shape, dtype

    @property
    def address(self) -> int:
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
