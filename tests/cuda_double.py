"""Doubles of cuda.bindings.runtime and of TensorRT's runtime objects that record their calls.

Device memory is host memory, so copies and executions really happen, and as late as they may: what
lies on a stream happens when somebody waits for it. So code is found out that reads too early, or
writes over what is still to be read. Capture records executions and launch repeats them.
Every thread has a current device, 0 at first: streams and memory of another one are refused, and
so is everything that CUDA forbids while a graph is captured. tests/engines/test_tensorrt_api.py
checks every name and signature here against the real modules.
"""

from __future__ import annotations

import ctypes
import itertools
import threading

import numpy as np


class Handle(int):
    """A stream, a graph or an executable graph."""


class Properties:
    """Stands in for cudaDeviceProp, as far as it is read."""

    name, major, minor = b"NVIDIA Double", 9, 0
    multiProcessorCount, totalGlobalMem = 132, 140 * 2**30 - 2**20


class Cuda:
    """Stands in for the module cuda.bindings.runtime."""

    class cudaMemcpyKind:
        cudaMemcpyHostToDevice, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice = 1, 2, 3

    class cudaStreamCaptureMode:
        cudaStreamCaptureModeThreadLocal = 1

    cudaStreamNonBlocking = 1
    cudaEventDisableTiming = 2

    def __init__(self):
        self.calls = []
        self.fail = {}  # name of a function -> error code of its next calls
        self.most_streams, self.count = 99, 2
        self.properties = Properties()
        self.on = {}  # stream or address of device memory -> the device that it is on
        self.threads = set()  # the threads that made a device their current one
        self._local = threading.local()
        self.device, self.pinned = {}, {}  # address -> block
        self.streams, self.graphs, self.executables = set(), {}, {}
        self.capturing = {}  # stream -> the executions that are recorded on it
        self._capturers = {}  # stream -> the thread that captures it
        self.events = {}  # event -> the stream it was recorded on last, or None
        self._work = {}  # stream -> what lies on it: functions, and events
        self._handles = itertools.count(1)

    def _note(self, name, *values):
        self.calls.append(name)
        code = self.fail.get(name, 0)
        return (code, *(None if code else value for value in values))

    def names(self):
        """The calls so far, and none from now on."""
        calls, self.calls = self.calls, []
        return calls

    @property
    def leaks(self):
        memory = [*self.device, *self.pinned]
        return [*memory, *self.streams, *self.graphs, *self.executables, *self.events]

    def put(self, stream, work):
        """Something to do, or an event, at the end of a stream."""
        assert stream in self.streams
        self._work.setdefault(stream, []).append(work)

    def _happen(self, stream, until=None):
        """What lies on a stream happens, to the event `until` or to its end."""
        work = self._work.get(stream, [])
        while work:
            item = work.pop(0)
            if item == until:
                return
            if callable(item):
                item()

    @property
    def current(self):
        """The thread's current device."""
        return getattr(self._local, "device", 0)

    def forbid_in_capture(self, name):
        """A capture forbids it to its own thread, as in `cudaStreamCaptureModeThreadLocal`."""
        assert threading.get_ident() not in self._capturers.values(), f"{name} while capturing"

    def cudaGetDeviceCount(self):
        return self._note("cudaGetDeviceCount", self.count)

    def cudaGetDevice(self):
        return 0, self.current

    def cudaSetDevice(self, device):
        if not 0 <= device < self.count:
            return (101,)
        self._local.device = device
        self.threads.add(threading.current_thread().name)
        return (0,)

    def cudaMemGetInfo(self):
        taken = sum(map(len, self.device.values()))
        return 0, self.properties.totalGlobalMem - taken, self.properties.totalGlobalMem

    def cudaGetDeviceProperties(self, device):
        return self._note("cudaGetDeviceProperties", self.properties)

    def cudaGetErrorString(self, error):
        return 0, f"error {int(error)}".encode()

    def _allocate(self, name, blocks, size):
        self.forbid_in_capture(name)
        if self.fail.get(name):
            return self._note(name, None)
        block = ctypes.create_string_buffer(size)
        blocks[ctypes.addressof(block)] = block
        return self._note(name, ctypes.addressof(block))

    def cudaMalloc(self, size):
        answer = self._allocate("cudaMalloc", self.device, size)
        self.on[answer[1]] = self.current
        return answer

    def cudaMallocHost(self, size):
        return self._allocate("cudaMallocHost", self.pinned, size)

    def cudaFree(self, devPtr):
        self.forbid_in_capture("cudaFree")
        assert self.on[devPtr] == self.current
        for stream in self.streams:  # CUDA waits for the whole device here
            self._happen(stream)
        del self.device[devPtr]  # a KeyError: freed twice, or never allocated
        return self._note("cudaFree")

    def cudaFreeHost(self, ptr):
        self.forbid_in_capture("cudaFreeHost")
        del self.pinned[ptr]
        return self._note("cudaFreeHost")

    def _place(self, address, count, blocks):
        for start, block in blocks.items():
            if start <= address and address + count <= start + len(block):
                return
        raise AssertionError(f"{count} bytes at {address} are no such memory")

    def cudaMemcpyAsync(self, dst, src, count, kind, stream):
        assert stream in self.streams
        assert stream not in self.capturing, "host copies must not be captured"
        sides = {
            1: (self.device, self.pinned),
            2: (self.pinned, self.device),
            3: (self.device, self.device),
        }

        def copy():
            for address, blocks in zip((dst, src), sides[kind], strict=True):
                self._place(address, count, blocks)
            ctypes.memmove(dst, src, count)

        if not self.fail.get(f"copy {kind}"):
            self.put(stream, copy)
        return self._note(f"copy {kind}")

    def cudaMemcpy(self, dst, src, count, kind):
        assert kind == 2
        self._place(src, count, self.device)
        ctypes.memmove(dst, src, count)
        return self._note("cudaMemcpy")

    def cudaStreamCreateWithFlags(self, flags):
        if len(self.streams) >= self.most_streams:
            return 2, None
        stream = Handle(next(self._handles))
        self.streams.add(stream)
        self.on[stream] = self.current
        return self._note("cudaStreamCreateWithFlags", stream)

    def cudaStreamDestroy(self, stream):
        self._happen(stream)
        self.streams.remove(stream)
        return self._note("cudaStreamDestroy")

    def cudaStreamSynchronize(self, stream):
        assert stream in self.streams
        self._happen(stream)
        return self._note("cudaStreamSynchronize")

    def cudaEventCreateWithFlags(self, flags):
        assert flags == self.cudaEventDisableTiming
        if self.fail.get("cudaEventCreateWithFlags"):
            return self._note("cudaEventCreateWithFlags", None)
        event = Handle(next(self._handles))
        self.events[event] = None
        return self._note("cudaEventCreateWithFlags", event)

    def cudaEventRecord(self, event, stream):
        assert self.on[stream] == self.current
        self.put(stream, event)
        self.events[event] = stream
        return self._note("cudaEventRecord")

    def cudaEventSynchronize(self, event):
        stream = self.events[event]
        if event in self._work.get(stream, []):
            self._happen(stream, event)
        return self._note("cudaEventSynchronize")

    def cudaEventDestroy(self, event):
        del self.events[event]
        return self._note("cudaEventDestroy")

    def cudaStreamBeginCapture(self, stream, mode):
        assert self.on[stream] == self.current
        assert mode == self.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self.capturing[stream] = []
        self._capturers[stream] = threading.get_ident()
        return self._note("cudaStreamBeginCapture")

    def cudaStreamEndCapture(self, stream):
        work = self.capturing.pop(stream)
        del self._capturers[stream]
        if self.fail.get("cudaStreamEndCapture"):
            return self._note("cudaStreamEndCapture", None)
        graph = Handle(next(self._handles))
        self.graphs[graph] = work
        return self._note("cudaStreamEndCapture", graph)

    def cudaGraphInstantiate(self, graph, flags):
        if self.fail.get("cudaGraphInstantiate"):
            return self._note("cudaGraphInstantiate", None)
        executable = Handle(next(self._handles))
        self.executables[executable] = self.graphs[graph]
        return self._note("cudaGraphInstantiate", executable)

    def cudaGraphDestroy(self, graph):
        del self.graphs[graph]
        return self._note("cudaGraphDestroy")

    def cudaGraphLaunch(self, graphExec, stream):
        assert self.on[stream] == self.current
        for work in self.executables[graphExec]:
            self.put(stream, work)
        return self._note("cudaGraphLaunch")

    def cudaGraphExecDestroy(self, graphExec):
        del self.executables[graphExec]
        return self._note("cudaGraphExecDestroy")


class IExecutionContext:
    """Its scratch memory takes 1000 bytes for each row of its first input."""

    def __init__(self, engine):
        self._engine = engine
        self._shapes, self._addresses = {}, {}
        self._scratch = 0, 0

    def update_device_memory_size_for_shapes(self):
        assert len(self._shapes) == len(self._engine._inputs), "the shapes come first"
        return 1000 * self._shapes[self._engine._inputs[0]][0]

    def set_device_memory(self, memory, size):
        assert size >= self.update_device_memory_size_for_shapes()
        self._scratch = memory, size

    def set_input_shape(self, name, shape):
        fits = all(a <= b for a, b in zip(shape, self._engine._largest[name], strict=True))
        self._shapes[name] = tuple(shape)
        return fits

    def infer_shapes(self):
        return [] if self._engine._shapes_known else ["y"]

    def get_tensor_shape(self, name):
        return self._shapes.get(name) or self._engine._output_shape(name, self._shapes)

    def set_tensor_address(self, name, memory):
        self._engine._cuda._place(memory, 1, self._engine._cuda.device)
        self._addresses[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        cuda = self._engine._cuda
        cuda.calls.append("execute")
        if self._engine._fails or (self._engine._no_capture and stream_handle in cuda.capturing):
            return False
        assert cuda.on[stream_handle] == cuda.current
        assert set(self._addresses) == set(self._engine._names)
        addresses, scratch = dict(self._addresses), self._scratch

        def view(name, dtype):
            shape = self.get_tensor_shape(name)
            size = int(np.prod(shape)) * np.dtype(dtype).itemsize
            memory = (ctypes.c_char * size).from_address(addresses[name])
            return np.frombuffer(memory, dtype).reshape(shape)

        def work():
            cuda._place(*scratch, cuda.device)  # it must be there still
            self._engine._compute(view)

        if stream_handle in cuda.capturing:
            cuda.capturing[stream_handle].append(work)
        else:
            cuda.put(stream_handle, work)
        return True


class ICudaEngine:
    """x float32 [n, 4] up to n = 8 (or what `_largest` says), index int32 [m] -> y like x."""

    num_io_tensors = 3

    def __init__(self, cuda):
        self._cuda = cuda
        self._inputs, self._names = ("x", "index"), ("x", "index", "y")
        self._largest = {"x": (8, 4), "index": (8,)}
        self._fails = self._no_capture = False
        self._shapes_known = True
        self._contexts = True
        self._configs = []

    def _output_shape(self, name, shapes):
        return shapes["x"]

    def _compute(self, view):
        """y = 2 x + index[0]"""
        np.copyto(view("y", np.float32), 2 * view("x", np.float32) + view("index", np.int32)[0])

    def get_tensor_name(self, index):
        return self._names[index]

    def get_tensor_profile_shape(self, name, profile_index):
        return [tuple(1 for _ in self._largest[name])] * 2 + [self._largest[name]]

    def create_execution_context(self, runtime_config=None):
        self._configs.append(runtime_config)
        if getattr(runtime_config, "_cache", None):
            runtime_config._cache._data += b"a kernel"
        return IExecutionContext(self) if self._contexts else None

    def create_runtime_config(self):
        return IRuntimeConfig()


class IRuntimeCache:
    """What TensorRT-RTX compiled at run time: here the shapes that contexts were made for."""

    def __init__(self):
        self._data = b""

    def deserialize(self, blob):
        self._data = bytes(blob)
        return blob != b"of another GPU"

    def serialize(self):
        return self._data


class IRuntimeConfig:
    """TensorRT-RTX has more of it than TensorRT."""

    def __init__(self):
        self._strategy = self._cache = None

    def set_execution_context_allocation_strategy(self, strategy):
        self._strategy = strategy

    def create_runtime_cache(self):
        return IRuntimeCache()

    def set_runtime_cache(self, cache):
        self._cache = cache
        return True


class Runtime:
    made = []  # noqa: RUF012 (a list of all)
    engine_host_code_allowed = False

    def __init__(self, logger):
        self._logger = logger
        Runtime.made.append(self)

    def deserialize_cuda_engine(self, serialized_engine):
        if serialized_engine == b"bad":
            error = "Error Code 6:\n  the plan is of another device"
            self._logger.log(TensorRt.ILogger.Severity.ERROR, error)
            return None
        return TensorRt.engine


class Refitter:
    lacks = ()  # the weights that it does not get

    def __init__(self, engine, logger):
        self._engine = engine

    def refit_cuda_engine(self):
        return not self.lacks

    def get_missing_weights(self):
        return list(self.lacks)


class OnnxParserRefitter:
    def __init__(self, refitter, logger):
        self.files = []

    def refit_from_file(self, model):
        self.files.append(model)
        return True


class TensorRt:
    """Stands in for the module tensorrt, as far as a session uses it."""

    class ILogger:
        class Severity:
            INTERNAL_ERROR, ERROR, WARNING = 0, 1, 2

        def __init__(self):
            pass

    class ExecutionContextAllocationStrategy:
        USER_MANAGED = 2

    Runtime, Refitter, OnnxParserRefitter = Runtime, Refitter, OnnxParserRefitter
    engine: ICudaEngine  # what deserialising gives
