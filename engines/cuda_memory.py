"""Memory of a GPU: blocks from a pool, page-locked arrays, and values that stay on the device.

`cudaMalloc` and `cudaFree` wait for the whole device, so what one run gives back serves the next
one. A thread frees nothing while it captures a CUDA graph: CUDA forbids it (captures are the
thread's own, `cudaStreamCaptureModeThreadLocal`), and Python may collect a forgotten value at any
moment. What would be freed then waits for the end of the capture.

Memory belongs to the process that got it. The child of a fork has the addresses and nothing else,
so it frees nothing.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ris.engines.base import DeviceValue
from ris.engines.cuda import call, on_device
from ris.engines.errors import EngineError

IDLE = 2**28
"""Bytes of a GPU that a pool keeps for later while nobody uses them, at most."""

_SMALL, _LARGE = 512, 2**21  # bytes: the smallest block, and the step above which blocks grow


class _Captures(threading.local):
    """Holds back what frees memory while this thread captures a CUDA graph. Each has its own.

    It has no lock, as Python may collect a value, and so come here, while a thread holds any lock.
    """

    def __init__(self) -> None:
        self._running: list[None] = []  # an entry for each capture
        self._waiting: deque[Callable[[], object]] = deque()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A capture runs during the block."""
        self._running.append(None)
        try:
            yield
        finally:
            self._running.pop()
            self._catch_up()

    def then(self, free: Callable[[], object]) -> None:
        """Calls `free`: now, or at the end of the captures that run."""
        if self._running:
            self._waiting.append(free)
        else:
            free()

    def _catch_up(self) -> None:
        """Calls what waits, unless a capture runs."""
        while not self._running:
            try:
                free = self._waiting.popleft()
            except IndexError:
                return
            free()


_captures = _Captures()


def capturing() -> contextlib.AbstractContextManager[None]:
    """The thread captures during the block, and frees nothing meanwhile."""
    return _captures.one()


class Pool:
    """The blocks of one GPU that nobody uses, by size. Several threads may use it at once."""

    runtime: Any
    """The module `cuda.bindings.runtime`."""

    index: int
    """The number of the GPU."""

    def __init__(self, runtime: Any, index: int) -> None:
        self.runtime, self.index = runtime, index
        self._process = os.getpid()
        self._lock = (
            threading.RLock()
        )  # reentrant: a collected value may come here in the middle of it
        self._free: dict[int, list[int]] = {}
        self._idle = self._users = 0

    @property
    def is_inherited(self) -> bool:
        """Whether this process has it from its parent and must not use it."""
        return self._process != os.getpid()

    def enter(self) -> None:
        """One more session uses the pool."""
        with self._lock:
            self._users += 1

    def leave(self) -> None:
        """A session uses it no more; after the last one nothing is kept."""
        with self._lock:
            self._users -= 1
            last = self._users <= 0
        if last:
            self.trim()

    def get(self, size: int) -> int:
        """The address of a block of at least `size` bytes.

        Raises:
            EngineError: With CUDA's words, where there is no memory.
        """
        size = _rounded(size)
        with self._lock:
            if blocks := self._free.get(size):
                self._idle -= size
                return blocks.pop()
        with on_device(self.runtime, self.index):
            try:
                return int(call(self.runtime, "cudaMalloc", size))
            except EngineError:
                if not self._idle:
                    raise
            self.trim()  # what nobody uses may be of another size
            return int(call(self.runtime, "cudaMalloc", size))

    def give(self, address: int, size: int) -> None:
        """Takes a block back; keeps it for later where that is not too much."""
        size = _rounded(size)
        if self.is_inherited:
            return
        with self._lock:
            if self._users > 0 and self._idle + size <= IDLE:
                self._free.setdefault(size, []).append(address)
                self._idle += size
                return
        _captures.then(lambda: self._release([address]))

    def trim(self) -> None:
        """Gives all that nobody uses back to the GPU."""
        with self._lock:
            blocks: list[int] = []
            while self._free:
                blocks += self._free.popitem()[1]
            self._idle = 0
        if blocks:
            _captures.then(lambda: self._release(blocks))

    def _release(self, blocks: list[int]) -> None:
        with on_device(self.runtime, self.index):
            for address in blocks:
                self.runtime.cudaFree(address)


def _rounded(size: int) -> int:
    """The size of the block for `size` bytes, so that there are few sizes."""
    if size <= _LARGE:
        return max(_SMALL, 1 << (size - 1).bit_length())
    return -(-size // _LARGE) * _LARGE


_POOLS: dict[tuple[int, int], Pool] = {}
_POOLS_LOCK = threading.Lock()


def pool_of(runtime: Any, index: int) -> Pool:
    """The process's pool for one GPU.

    runtime: the module `cuda.bindings.runtime`.
    """
    with _POOLS_LOCK:
        found = _POOLS.get((id(runtime), index))
        if found is None or found.is_inherited or found.runtime is not runtime:
            found = _POOLS[id(runtime), index] = Pool(runtime, index)
        return found


def _after_fork() -> None:
    """Another thread of the parent may have held them."""
    global _captures, _POOLS_LOCK
    _captures, _POOLS_LOCK = _Captures(), threading.Lock()
    _POOLS.clear()


os.register_at_fork(after_in_child=_after_fork)


class DeviceMemory:
    """A block of device memory. `close` may be called twice."""

    address: int
    """Where the block begins; 0 after `close`."""

    size: int
    """How many bytes were asked for."""

    def __init__(self, pool: Pool, size: int) -> None:
        """Raises EngineError where there is no memory."""
        self._pool, self.size = pool, size
        self.address = 0  # `close` runs even where the allocation below fails
        self.address = pool.get(size)

    def close(self) -> None:
        address, self.address = self.address, 0
        if address:
            self._pool.give(address, self.size)

    def __del__(self) -> None:
        # at Python's end the driver may be gone already, and it frees everything
        if not sys.is_finalizing():
            self.close()


class PinnedArray:
    """An array in page-locked host memory, which the device can copy without the CPU."""

    address: int
    """Where the memory begins; 0 after `close`."""

    array: np.ndarray
    """The array in it. It must not be used after `close`, nor when this object is gone."""

    def __init__(self, runtime: Any, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._runtime, self._process = runtime, os.getpid()
        self.address = 0  # `close` runs even where something below fails
        self.array = np.empty(0, dtype)
        size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
        self.address = int(call(runtime, "cudaMallocHost", max(size, 1)))
        raw = (ctypes.c_byte * size).from_address(self.address)
        self.array = np.frombuffer(memoryview(raw).cast("B"), dtype=dtype).reshape(shape)

    def close(self) -> None:
        address, self.address = self.address, 0
        if address and self._process == os.getpid():
            self.array = np.empty(0, self.array.dtype)
            free = self._runtime.cudaFreeHost
            _captures.then(lambda: free(address))

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.close()


class CudaValue(DeviceValue):
    """An array in device memory of its own, complete when it is handed out.

    A run that reads it holds its memory: closed meanwhile, it is given back after that run.
    """

    def __init__(
        self, pool: Pool, memory: DeviceMemory, shape: tuple[int, ...], dtype: np.dtype
    ) -> None:
        """Takes over memory that already holds the array.

        Args:
            pool: Where the memory is from.
            memory: The memory; nobody else keeps it.
            shape: The array's shape.
            dtype: The array's dtype.
        """
        self._pool = pool
        self._memory: DeviceMemory | None = memory
        self.shape, self.dtype = shape, dtype

    @property
    def memory(self) -> DeviceMemory:
        """What holds the array; whoever keeps it keeps the array.

        Raises:
            EngineError: After `close`, and in the child of a fork.
        """
        memory = self._memory
        if memory is None:
            raise EngineError("the value on the device was closed; encode the image again")
        if self._pool.is_inherited:
            raise EngineError(
                "the value lies on the GPU of the process that this one was forked from; encode the"
                " image in the process that asks"
            )
        return memory

    @property
    def index(self) -> int:
        """The number of the GPU."""
        return self._pool.index

    def numpy(self) -> np.ndarray:
        array = np.empty(self.shape, self.dtype)
        runtime, memory = self._pool.runtime, self.memory
        kind = runtime.cudaMemcpyKind.cudaMemcpyDeviceToHost
        with on_device(runtime, self.index):
            call(runtime, "cudaMemcpy", array.ctypes.data, memory.address, array.nbytes, kind)
        return array

    def close(self) -> None:
        self._memory = None
