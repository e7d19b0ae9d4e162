"""A TensorRT plan on a GPU: one execution context and CUDA graph per set of shapes, pinned host
buffers.

Thread rule: `run` may be called from several threads; the calls on one session take turns. Every
session has its own stream, so those of different sessions overlap. A call returns when its outputs
are whole, kept ones too, which is why a kept value may be used on any other session's stream.

The modules `tensorrt` (or `tensorrt_rtx`) and `cuda.bindings.runtime` are values, so that the
bookkeeping can be exercised without a GPU.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ris.engines.base import DTYPES, NO_STEPS, Graph, HostStep, Session, SessionInfo, Value
from ris.engines.cuda import CudaValue, DeviceMemory, PinnedArray, call
from ris.engines.errors import EngineError
from ris.engines.tensorrt_logger import make_logger

Shapes = tuple[tuple[int, ...], ...]

MAX_BUCKETS = 4
"""Sets of shapes that keep their context and buffers; the one unused for longest goes first."""

PORTIONS = 4
"""An output that the host changes travels in so many pieces."""


def open_session(
    trt: Any,
    cuda: Any,
    graph: Graph,
    info: SessionInfo,
    plan: bytes,
    refit_from: Path | None = None,
) -> TensorRtSession:
    """Deserialises a plan. refit_from: the ONNX file that gives a plan without weights its weights
    back.

    The caller has asked for the driver before. Raises EngineError with TensorRT's words where the
    plan does not load, and where its inputs and outputs are not the graph's.
    """
    logger = make_logger(trt)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise EngineError(
            f"{graph.stage}: {info.engine} {info.version} cannot load the plan:"
            f" {logger.errors_in_a_line()}; plans load on the GPU architecture and version they"
            " were built for, so compile it again here"
        )
    if refit_from is not None:
        _refit(trt, logger, engine, graph, refit_from)
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    wanted = [spec.name for spec in (*graph.inputs, *graph.outputs)]
    if sorted(names) != sorted(wanted):
        raise EngineError(
            f"{graph.stage}: the plan has the values {', '.join(names)}, expected"
            f" {', '.join(wanted)}"
        )
    return TensorRtSession(trt, cuda, graph, info, runtime, engine, logger)


def _refit(trt: Any, logger: Any, engine: Any, graph: Graph, onnx: Path) -> None:
    """Gives a stripped plan the weights of the graph it was built from."""
    refitter = trt.Refitter(engine, logger)
    parser = trt.OnnxParserRefitter(refitter, logger)
    if not parser.refit_from_file(str(onnx)) or not refitter.refit_cuda_engine():
        missing = ", ".join(refitter.get_missing_weights()) or logger.errors_in_a_line()
        raise EngineError(
            f"{graph.stage}: the plan cannot take its weights from {onnx}: {missing}; compile it"
            " again"
        )


class _Bucket:
    """Everything that one set of input shapes needs: context, buffers on both sides, and the
    captured CUDA graph.
    """

    def __init__(self, session: TensorRtSession, shapes: Shapes) -> None:
        self._cuda = session.cuda
        self._graph_exec: Any = None
        self._warm = False
        self.device: dict[str, DeviceMemory] = {}
        self.host: dict[str, PinnedArray] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.context: Any = None
        self._events: list[Any] = []
        self._changed: dict[str, PinnedArray] = {}
        try:
            self._prepare(session, shapes)
        except BaseException:
            self.close()
            raise

    def _prepare(self, session: TensorRtSession, shapes: Shapes) -> None:
        stage = session.graph.stage
        self.context = session.create_context()
        if self.context is None:
            raise EngineError(
                f"{stage}: no execution context ({session.logger.errors_in_a_line()}); the GPU's"
                " memory may be full"
            )
        for spec, shape in zip(session.graph.inputs, shapes, strict=True):
            if not self.context.set_input_shape(spec.name, shape):
                _, _, largest = session.engine.get_tensor_profile_shape(spec.name, 0)
                raise EngineError(
                    f"{stage}: input {spec.name!r} is {list(shape)}, the plan takes up to"
                    f" {list(largest)}; compile it with a larger --max-batch or --max-expressions"
                )
            self.shapes[spec.name] = shape
        if unresolved := self.context.infer_shapes():
            raise EngineError(
                f"{stage}: TensorRT cannot tell the shape of {', '.join(unresolved)}; compile it"
                " again"
            )
        for spec in session.graph.outputs:
            self.shapes[spec.name] = tuple(self.context.get_tensor_shape(spec.name))
        for spec in (*session.graph.inputs, *session.graph.outputs):
            dtype = np.dtype(DTYPES[spec.dtype])
            shape = self.shapes[spec.name]
            self.device[spec.name] = DeviceMemory(
                self._cuda, int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            )
            self.host[spec.name] = PinnedArray(self._cuda, shape, dtype)
            if not self.context.set_tensor_address(spec.name, self.device[spec.name].address):
                raise EngineError(
                    f"{stage}: TensorRT refuses the memory for {spec.name!r}; report it, please"
                )

    def portion_events(self) -> list[Any]:
        """PORTIONS events, made when they are needed first."""
        while len(self._events) < PORTIONS:
            flags = self._cuda.cudaEventDisableTiming
            self._events.append(call(self._cuda, "cudaEventCreateWithFlags", flags))
        return self._events

    def changed(self, name: str, shape: tuple[int, ...]) -> PinnedArray:
        """The host's buffer for what it makes of an output."""
        array = self._changed.get(name)
        if array is None or array.array.shape != shape:
            array = self._changed[name] = PinnedArray(
                self._cuda, shape, self.host[name].array.dtype
            )
        return array

    def enqueue(self, session: TensorRtSession) -> None:
        """Puts one execution on the stream: as it is the first time, which warms up what capture
        must not see; from the second on as a CUDA graph.
        """
        if self._graph_exec is None and session.may_capture and self._warm:
            self._capture(session)
        if self._graph_exec is not None:
            call(self._cuda, "cudaGraphLaunch", self._graph_exec, session.stream)
        else:
            self._execute(session)
        self._warm = True

    def _execute(self, session: TensorRtSession) -> None:
        if not self.context.execute_async_v3(int(session.stream)):
            raise EngineError(
                f"{session.graph.stage}: TensorRT failed: {session.logger.errors_in_a_line()}"
            )

    def _capture(self, session: TensorRtSession) -> None:
        """Records one execution. Where that is impossible the session goes on without, and says so
        in `notes`.
        """
        cuda, stream = self._cuda, session.stream
        call(
            cuda,
            "cudaStreamBeginCapture",
            stream,
            cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal,
        )
        failure: EngineError | None = None
        try:
            self._execute(session)
        except EngineError as error:
            failure = error
        code, recorded = cuda.cudaStreamEndCapture(
            stream
        )  # ends the capture whatever happened in it
        if failure is None and int(code) == 0:
            try:
                # flags 0: the call is the same in CUDA 12 and 13
                self._graph_exec = call(cuda, "cudaGraphInstantiate", recorded, 0)
            except EngineError as problem:
                failure = problem
        if int(code) == 0 and recorded is not None:
            cuda.cudaGraphDestroy(recorded)
        if self._graph_exec is None:
            session.may_capture = False
            session.notes.append(f"no CUDA graph: {failure or 'the capture failed'}")

    def close(self) -> None:
        if self._graph_exec is not None:
            self._cuda.cudaGraphExecDestroy(self._graph_exec)
            self._graph_exec = None
        self.context = None  # before the memory it points to
        for event in self._events:
            self._cuda.cudaEventDestroy(event)
        self._events.clear()
        for array in self._changed.values():
            array.close()
        for memory in self.device.values():
            memory.close()
        for array in self.host.values():
            array.close()


class TensorRtSession(Session):
    """Runs a plan. notes: what the user should know, such as why there is no CUDA graph."""

    def __init__(
        self,
        trt: Any,
        cuda: Any,
        graph: Graph,
        info: SessionInfo,
        runtime: Any,
        engine: Any,
        logger: Any,
    ) -> None:
        super().__init__(graph, info)
        self.cuda = cuda
        self._trt = trt
        self.engine, self.logger = engine, logger
        self._runtime = runtime  # has to outlive the engine
        self.stream: Any = call(cuda, "cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
        try:
            self.upload: Any = call(cuda, "cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
        except BaseException:
            cuda.cudaStreamDestroy(self.stream)
            raise
        self.may_capture = True
        self.notes: list[str] = []
        self._buckets: OrderedDict[Shapes, _Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def create_context(self) -> Any:
        """An execution context, None where there is no memory for it."""
        if not hasattr(self._trt, "DynamicShapesKernelSpecializationStrategy"):
            return self.engine.create_execution_context()
        # TensorRT-RTX makes kernels for the shapes at hand when it runs, by default in the
        # background; a captured graph would keep the slow ones that it starts with
        runtime_config = self.engine.create_runtime_config()
        runtime_config.dynamic_shapes_kernel_specialization_strategy = (
            self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
        )
        return self.engine.create_execution_context(runtime_config)

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        with self._lock:
            bucket = self._enqueue(feeds)
            to_host = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            for spec in self.graph.outputs:
                pinned = bucket.host[spec.name]
                source, size = bucket.device[spec.name].address, pinned.array.nbytes
                call(
                    self.cuda, "cudaMemcpyAsync", pinned.address, source, size, to_host, self.stream
                )
            self._wait()
            return {spec.name: bucket.host[spec.name].array.copy() for spec in self.graph.outputs}

    def run_and_keep(
        self, feeds: Mapping[str, Value], host_steps: Mapping[str, HostStep] = NO_STEPS
    ) -> Mapping[str, Value]:
        """Runs the graph once and leaves every output on the device, in memory of its own; what the
        host changes comes down and goes up again in portions, the host working on one of them
        meanwhile."""
        self._check(feeds)
        with self._lock:
            bucket = self._enqueue(feeds)
            on_device = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
            kept: dict[str, Value] = {}
            try:
                fetched = {name: self._fetch(bucket, name) for name in host_steps}
                for spec in self.graph.outputs:
                    array = bucket.host[spec.name].array
                    if spec.name in host_steps:
                        continue
                    memory = DeviceMemory(self.cuda, array.nbytes)
                    source = bucket.device[spec.name].address
                    call(
                        self.cuda,
                        "cudaMemcpyAsync",
                        memory.address,
                        source,
                        array.nbytes,
                        on_device,
                        self.stream,
                    )
                    kept[spec.name] = CudaValue(self.cuda, memory, array.shape, array.dtype)
                for name, step in host_steps.items():
                    kept[name] = self._change(bucket, name, step, fetched[name])
            finally:
                # whatever happened, nothing may still write to memory that is given back
                self._wait()
            return kept

    def _fetch(self, bucket: _Bucket, name: str) -> list[tuple[slice, Any]]:
        """Puts the copies of an output's maps to the host on the stream, in portions: for each its
        maps, and the event that says they are there."""
        pinned, source = bucket.host[name], bucket.device[name].address
        maps = pinned.array.reshape(-1, *pinned.array.shape[-2:])
        each = -(-len(maps) // PORTIONS)
        to_host = self.cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        portions = [
            slice(first, min(first + each, len(maps))) for first in range(0, len(maps), each)
        ]
        fetched = []
        for portion, event in zip(portions, bucket.portion_events(), strict=False):
            first, size = portion.start * maps[0].nbytes, maps[portion].nbytes
            call(
                self.cuda,
                "cudaMemcpyAsync",
                pinned.address + first,
                source + first,
                size,
                to_host,
                self.stream,
            )
            call(self.cuda, "cudaEventRecord", event, self.stream)
            fetched.append((portion, event))
        return fetched

    def _change(
        self, bucket: _Bucket, name: str, step: HostStep, fetched: list[tuple[slice, Any]]
    ) -> CudaValue:
        """What `step` makes of the maps that are being fetched, each portion sent up on a stream of
        its own.
        """
        array = bucket.host[name].array
        maps = array.reshape(-1, *array.shape[-2:])
        changed = bucket.changed(name, (*array.shape[:-2], *step.size))
        sent = changed.array.reshape(-1, *step.size)
        memory = DeviceMemory(self.cuda, changed.array.nbytes)
        to_device = self.cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        try:
            for portion, event in fetched:
                call(self.cuda, "cudaEventSynchronize", event)
                sent[portion] = step.function(maps[portion])
                first, size = portion.start * sent[0].nbytes, sent[portion].nbytes
                to, source = memory.address + first, changed.address + first
                call(self.cuda, "cudaMemcpyAsync", to, source, size, to_device, self.upload)
        finally:
            call(self.cuda, "cudaStreamSynchronize", self.upload)
        return CudaValue(self.cuda, memory, changed.array.shape, changed.array.dtype)

    def _enqueue(self, feeds: Mapping[str, Value]) -> _Bucket:
        """Puts the inputs' copies and the execution on the stream."""
        if self.engine is None:
            raise EngineError(f"{self.graph.stage}: the session is closed; load the bundle again")
        bucket = self._bucket(tuple(tuple(feeds[spec.name].shape) for spec in self.graph.inputs))
        kinds = self.cuda.cudaMemcpyKind
        for spec in self.graph.inputs:
            value, pinned = feeds[spec.name], bucket.host[spec.name]
            target, size = bucket.device[spec.name].address, pinned.array.nbytes
            if isinstance(value, CudaValue):
                source, kind = value.address, kinds.cudaMemcpyDeviceToDevice
            elif isinstance(value, np.ndarray):
                np.copyto(pinned.array, value)
                source, kind = pinned.address, kinds.cudaMemcpyHostToDevice
            else:
                raise EngineError(
                    f"{self.graph.stage}: input {spec.name!r} lies on a device of another engine"
                )
            call(self.cuda, "cudaMemcpyAsync", target, source, size, kind, self.stream)
        bucket.enqueue(self)
        return bucket

    def _bucket(self, shapes: Shapes) -> _Bucket:
        """The bucket of these shapes; makes room for a new one first."""
        if shapes in self._buckets:
            self._buckets.move_to_end(shapes)
            return self._buckets[shapes]
        while len(self._buckets) >= MAX_BUCKETS:
            self._buckets.popitem(last=False)[1].close()
        bucket = self._buckets[shapes] = _Bucket(self, shapes)
        return bucket

    def _wait(self) -> None:
        call(self.cuda, "cudaStreamSynchronize", self.stream)

    def close(self) -> None:
        """Waits for a call that is running, then gives everything back."""
        with self._lock:
            if self.engine is None:
                return
            for bucket in self._buckets.values():
                bucket.close()
            self._buckets.clear()
            self.cuda.cudaStreamDestroy(self.stream)
            self.cuda.cudaStreamDestroy(self.upload)
            self.engine = self._runtime = None
