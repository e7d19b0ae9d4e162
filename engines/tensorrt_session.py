"""A TensorRT plan on a GPU: for each set of shapes a bucket with context, buffers and CUDA graph.

Threads: `run` may be called from several threads; the calls on one session take turns. Every
session has its own stream, so the calls of different sessions overlap. A call returns when its
outputs are complete, those that stay on the device too. That is why a kept value may be used on any
other session's stream. A thread that enters makes the session's GPU its current one.

Expressions are padded to 1, 2, 4, 8 and so on, so that there are few sets of shapes: each has an
execution context, buffers and a CUDA graph.
"""

from __future__ import annotations

import atexit
import threading
import weakref
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ris.engines.base import Graph, HostStep, Session, SessionInfo, TensorSpec, Value
from ris.engines.cuda import call, on_device
from ris.engines.cuda_memory import CudaValue, DeviceMemory, pool_of
from ris.engines.devices import index_of
from ris.engines.errors import EngineError, PlanError
from ris.engines.tensorrt_bucket import PORTIONS, Bucket, LoadedPlan, Scratch, Shapes
from ris.engines.tensorrt_kernels import Kernels
from ris.engines.tensorrt_logger import make_logger

MAX_BUCKETS = 4
"""Sets of shapes that keep their context and buffers; the one unused for longest goes first."""


@dataclass(frozen=True)
class Plan:
    """A plan of the cache, and how it is to be run."""

    data: bytes
    """Its bytes."""

    refit_from: Path | None = None
    """The ONNX file whose weights a plan without weights takes; None for others."""

    has_host_code: bool = False
    """Whether it brings code for the host, as version-compatible plans do, which may be run."""

    kernels: Path | None = None
    """The file that keeps what TensorRT-RTX compiles at run time; None where nothing is kept."""

    cuda_graphs: bool = True
    """Whether to launch CUDA graphs from the second call with the same shapes on."""


def open_session(
    trt: Any, cuda: Any, graph: Graph, info: SessionInfo, plan: Plan
) -> TensorRtSession:
    """Deserialises a plan. There has to be a driver: see `ris.engines.cuda`.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        cuda: The module `cuda.bindings.runtime`.
        graph: The graph that the plan was built from.
        info: What runs, for the session; its device says on which GPU.
        plan: The plan.

    Raises:
        EngineError: With TensorRT's words, where the plan does not load; and where its inputs and
            outputs are not the graph's.
    """
    index = index_of(info.device)
    with on_device(cuda, index):
        logger = make_logger(trt, kept=5)
        runtime = trt.Runtime(logger)
        if plan.has_host_code:
            runtime.engine_host_code_allowed = True
        engine = runtime.deserialize_cuda_engine(plan.data)
        if engine is None:
            raise PlanError(
                f"{graph.stage}: {info.engine} {info.version} cannot load the plan:"
                f" {logger.errors_in_a_line()}; plans load on the GPU architecture and version they"
                " were built for, so compile it again here"
            )
        kernels = Kernels(trt, engine, plan.kernels)
        pool = pool_of(cuda, index)
        loaded = LoadedPlan(trt, cuda, graph, engine, runtime, logger, pool, kernels.runtime_config)
        if plan.refit_from is not None:
            _refit(loaded, plan.refit_from)

        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        wanted = [spec.name for spec in (*graph.inputs, *graph.outputs)]
        if sorted(names) != sorted(wanted):
            raise PlanError(
                f"{graph.stage}: the plan has the values {', '.join(names)}, expected"
                f" {', '.join(wanted)}"
            )
        return TensorRtSession(loaded, info, kernels, plan.cuda_graphs)


def _refit(plan: LoadedPlan, onnx: Path) -> None:
    """Gives a plan without weights those of the graph it was built from."""
    trt, logger = plan.trt, plan.logger
    refitter = trt.Refitter(plan.engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx)) or not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights()) or logger.errors_in_a_line()
        raise PlanError(
            f"{plan.graph.stage}: the plan cannot take its weights from {onnx}: {missing}; compile"
            " it again"
        )


class TensorRtSession(Session):
    """Runs a plan."""

    def __init__(
        self, plan: LoadedPlan, info: SessionInfo, kernels: Kernels, cuda_graphs: bool
    ) -> None:
        """Takes over a plan and makes the streams that it runs on.

        Args:
            plan: The plan.
            info: What runs.
            kernels: What TensorRT-RTX compiles while it runs.
            cuda_graphs: Launch CUDA graphs where that is possible.

        Raises:
            EngineError: Where a stream cannot be made.
        """
        super().__init__(plan.graph, info)
        self._plan, self._kernels = plan, kernels
        cuda = self._cuda = plan.cuda
        self._stream: Any = call(cuda, "cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
        try:
            self._upload: Any = call(cuda, "cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
        except BaseException:
            cuda.cudaStreamDestroy(self._stream)
            raise
        self._may_capture = cuda_graphs
        self._buckets: OrderedDict[Shapes, Bucket] = OrderedDict()
        self._scratch = Scratch(plan.pool)
        self._held: list[DeviceMemory] = []  # what the run at hand reads
        self._lock = threading.Lock()
        plan.pool.enter()
        _OPEN.add(self)

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        with self._lock, self._on_device():
            try:
                bucket, count = self._enqueue(feeds)
                to_host = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
                for spec in self.graph.outputs:
                    array, memory = self._asked(bucket, spec, count), bucket.device[spec.name]
                    target = bucket.host[spec.name].address
                    self._copy(target, memory.address, array.nbytes, to_host)
            finally:
                self._wait()
            self._kernels.keep()
            outputs = self.graph.outputs
            return {spec.name: self._asked(bucket, spec, count).copy() for spec in outputs}

    def _run_and_keep(
        self, feeds: Mapping[str, Value], host_steps: Mapping[str, HostStep]
    ) -> Mapping[str, Value]:
        """Runs the graph once and leaves every output on the device, in memory of its own.

        What the host changes comes down and goes up again in portions. While some are on their way
        the host works on another.
        """
        with self._lock, self._on_device():
            kept: dict[str, Value] = {}
            try:
                bucket, count = self._enqueue(feeds)
                arrays = {s.name: self._asked(bucket, s, count) for s in self.graph.outputs}
                fetched = {name: self._fetch(bucket, name, arrays[name]) for name in host_steps}
                for name, array in arrays.items():
                    if name not in host_steps:
                        kept[name] = self._keep(bucket, name, array)
                for name, step in host_steps.items():
                    kept[name] = self._change(bucket, name, step, fetched[name])
            finally:
                # whatever happened, nothing may still write to memory that is given back
                self._wait()
            self._kernels.keep()
            return kept

    def _on_device(self) -> Any:
        """Makes the session's GPU the thread's current one."""
        return on_device(self._cuda, self._plan.pool.index)

    def _enqueue(self, feeds: Mapping[str, Value]) -> tuple[Bucket, int]:
        """Puts the inputs' copies and the execution on the stream.

        Returns the bucket, and the number of expressions that were asked.
        """
        asked = {feeds[s.name].shape[0] for s in self.graph.inputs if _counts_expressions(s)}
        # where two inputs disagree the graph itself refuses them
        count = max(asked, default=0)
        padded = self._padded(count) if len(asked) == 1 else count
        shapes = tuple(
            (padded, *feeds[spec.name].shape[1:])
            if _counts_expressions(spec) and len(asked) == 1
            else tuple(feeds[spec.name].shape)
            for spec in self.graph.inputs
        )
        bucket = self._bucket(self._plan, shapes)
        for spec in self.graph.inputs:
            self._feed(bucket, spec.name, feeds[spec.name])

        if self._may_capture and bucket.may_be_captured and (failure := bucket.capture()):
            self._may_capture = False
            self.notes.append(f"no CUDA graph: {failure}")
        bucket.enqueue()
        return bucket, count

    def _padded(self, count: int) -> int:
        """The next of 1, 2, 4, 8 and so on, or the most that the plan takes; 0 of 0."""
        most = count
        for spec in self.graph.inputs:
            if _counts_expressions(spec):
                most = self._plan.engine.get_tensor_profile_shape(spec.name, 0)[2][0]
        padded = 1 << (count - 1).bit_length() if count else 0
        return max(count, min(padded, most))

    def _feed(self, bucket: Bucket, name: str, value: Value) -> None:
        """Puts the copy of an input on the stream; what is missing repeats its last row."""
        kinds = self._cuda.cudaMemcpyKind
        pinned, target = bucket.host[name], bucket.device[name].address
        if isinstance(value, np.ndarray):
            pinned.array[: len(value)] = value
            pinned.array[len(value) :] = value[-1:]
            self._copy(target, pinned.address, pinned.array.nbytes, kinds.cudaMemcpyHostToDevice)
            return

        if not isinstance(value, CudaValue) or value.index != self._plan.pool.index:
            raise EngineError(
                f"{self.graph.stage}: input {name!r} lies on another device, or on one of another"
                " engine"
            )
        memory = value.memory
        self._held.append(memory)
        rows, whole = value.shape[0], pinned.array[: value.shape[0]].nbytes
        self._copy(target, memory.address, whole, kinds.cudaMemcpyDeviceToDevice)
        row = pinned.array[:1].nbytes
        for i in range(rows, len(pinned.array)):
            last = memory.address + (rows - 1) * row
            self._copy(target + i * row, last, row, kinds.cudaMemcpyDeviceToDevice)

    def _asked(self, bucket: Bucket, spec: TensorSpec, count: int) -> np.ndarray:
        """The host's array of an output, without what padding added."""
        array = bucket.host[spec.name].array
        return array[:count] if _counts_expressions(spec) else array

    def _bucket(self, plan: LoadedPlan, shapes: Shapes) -> Bucket:
        """The bucket of these shapes; makes room for a new one first."""
        if shapes in self._buckets:
            self._buckets.move_to_end(shapes)
            return self._buckets[shapes]
        while len(self._buckets) >= MAX_BUCKETS:
            self._buckets.popitem(last=False)[1].close()

        bucket = Bucket(plan, self._stream, shapes)
        try:
            self._share_scratch(bucket)
        except BaseException:
            bucket.close()
            raise
        self._buckets[shapes] = bucket
        self._kernels.keep_later()
        return bucket

    def _share_scratch(self, bucket: Bucket) -> None:
        """Gives a new bucket the scratch block, which grows where it is too small."""
        if bucket.scratch > self._scratch.size:
            try:
                self._scratch.grow(bucket.scratch)
            except BaseException:
                # the others have lost theirs
                while self._buckets:
                    self._buckets.popitem()[1].close()
                raise
            for other in self._buckets.values():
                other.use_scratch(self._scratch)
        bucket.use_scratch(self._scratch)

    def _keep(self, bucket: Bucket, name: str, array: np.ndarray) -> CudaValue:
        """Puts the copy of an output into memory of its own on the stream."""
        pool = self._plan.pool
        memory = DeviceMemory(pool, array.nbytes)
        on_device = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(memory.address, bucket.device[name].address, array.nbytes, on_device)
        return CudaValue(pool, memory, array.shape, array.dtype)

    def _fetch(self, bucket: Bucket, name: str, array: np.ndarray) -> _Fetched:
        """Puts the copies of an output's maps to the host on the stream, in portions.

        array: the part of the host's buffer that they go to.
        """
        pinned, source = bucket.host[name], bucket.device[name].address
        maps = array.reshape(-1, *array.shape[-2:])
        each = -(-len(maps) // PORTIONS)  # rounded up
        portions = [
            slice(first, min(first + each, len(maps))) for first in range(0, len(maps), each)
        ]
        to_host = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        fetched = []
        for portion, event in zip(portions, bucket.portion_events(), strict=False):
            first, size = portion.start * maps[0].nbytes, maps[portion].nbytes
            self._copy(pinned.address + first, source + first, size, to_host)
            call(self._cuda, "cudaEventRecord", event, self._stream)
            fetched.append((portion, event))
        return _Fetched(array, fetched)

    def _change(self, bucket: Bucket, name: str, step: HostStep, fetched: _Fetched) -> CudaValue:
        """What `step` makes of the maps that are being fetched.

        Each portion goes up on a stream of its own, beside those that still come down.

        Args:
            bucket: The buffers.
            name: The output's name.
            step: The change.
            fetched: What `_fetch` returned.
        """
        array, pool = fetched.array, self._plan.pool
        maps = array.reshape(-1, *array.shape[-2:])
        changed = bucket.changed(name, (*array.shape[:-2], *step.size))
        sent = changed.array.reshape(-1, *step.size)
        memory = DeviceMemory(pool, changed.array.nbytes)
        to_device = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        try:
            for portion, event in fetched.portions:
                call(self._cuda, "cudaEventSynchronize", event)
                sent[portion] = step.function(maps[portion])
                first, size = portion.start * sent[0].nbytes, sent[portion].nbytes
                to, source = memory.address + first, changed.address + first
                call(self._cuda, "cudaMemcpyAsync", to, source, size, to_device, self._upload)
        finally:
            call(self._cuda, "cudaStreamSynchronize", self._upload)
        return CudaValue(pool, memory, changed.array.shape, changed.array.dtype)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        """Puts a copy of `size` bytes on the stream; kind: which sides, a cudaMemcpyKind."""
        call(self._cuda, "cudaMemcpyAsync", target, source, size, kind, self._stream)

    def _wait(self) -> None:
        """Waits for all that lies on the stream, and lets go of what it read."""
        try:
            call(self._cuda, "cudaStreamSynchronize", self._stream)
        finally:
            self._held.clear()

    def _close(self) -> None:
        with self._on_device():
            for bucket in self._buckets.values():
                bucket.close()
            self._buckets.clear()
            self._scratch.close()
            self._cuda.cudaStreamDestroy(self._stream)
            self._cuda.cudaStreamDestroy(self._upload)
            pool = self._plan.pool
            del self._plan, self._kernels
        pool.leave()


@dataclass(frozen=True)
class _Fetched:
    """An output's maps on their way to the host."""

    array: np.ndarray
    """Where they go to, as the output is shaped."""

    portions: list[tuple[slice, Any]]
    """Which maps go together, and the event after which they are there."""


def _counts_expressions(spec: TensorSpec) -> bool:
    return bool(spec.shape) and spec.shape[0] == "expressions"


_OPEN: weakref.WeakSet[TensorRtSession] = weakref.WeakSet()


def _at_exit() -> None:
    """Closes what is open while the driver is still there; later TensorRT would crash."""
    for session in list(_OPEN):
        session.close()


# before that of the gates, which is registered first
atexit.register(_at_exit)
