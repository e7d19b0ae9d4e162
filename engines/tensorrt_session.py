"""A TensorRT plan on a GPU: for each set of shapes a bucket with context, buffers and CUDA graph.

Threads: `run` may be called from several threads; the calls on one session take turns. Every
session has its own stream, so the calls of different sessions overlap. A call returns when its
outputs are complete, those that stay on the device too. That is why a kept value may be used on any
other session's stream.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ris.engines.base import Graph, HostStep, Session, SessionInfo, Value
from ris.engines.cuda import CudaValue, DeviceMemory, call
from ris.engines.errors import EngineError, PlanError
from ris.engines.tensorrt_bucket import PORTIONS, Bucket, LoadedPlan, Shapes
from ris.engines.tensorrt_logger import make_logger

MAX_BUCKETS = 4
"""Sets of shapes that keep their context and buffers; the one unused for longest goes first."""


def open_session(
    trt: Any,
    cuda: Any,
    graph: Graph,
    info: SessionInfo,
    plan: bytes,
    refit_from: Path | None = None,
) -> TensorRtSession:
    """Deserialises a plan. There has to be a driver: see `ris.engines.cuda`.

    Args:
        trt: The module `tensorrt` or `tensorrt_rtx`.
        cuda: The module `cuda.bindings.runtime`.
        graph: The graph that the plan was built from.
        info: What runs, for the session.
        plan: The plan's bytes.
        refit_from: The ONNX file whose weights a plan without weights takes; None for others.

    Raises:
        EngineError: With TensorRT's words, where the plan does not load; and where its inputs and
            outputs are not the graph's.
    """
    logger = make_logger(trt, kept=5)
    runtime = trt.Runtime(logger)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise PlanError(
            f"{graph.stage}: {info.engine} {info.version} cannot load the plan:"
            f" {logger.errors_in_a_line()}; plans load on the GPU architecture and version they"
            " were built for, so compile it again here"
        )
    loaded = LoadedPlan(trt, cuda, graph, engine, runtime, logger)
    if refit_from is not None:
        _refit(loaded, refit_from)

    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    wanted = [spec.name for spec in (*graph.inputs, *graph.outputs)]
    if sorted(names) != sorted(wanted):
        raise PlanError(
            f"{graph.stage}: the plan has the values {', '.join(names)}, expected"
            f" {', '.join(wanted)}"
        )
    return TensorRtSession(loaded, info)


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

    notes: list[str]
    """What the user should know, such as why there is no CUDA graph."""

    def __init__(self, plan: LoadedPlan, info: SessionInfo) -> None:
        """Takes over a plan and makes the streams that it runs on.

        Raises:
            EngineError: Where a stream cannot be made.
        """
        super().__init__(plan.graph, info)
        self._plan = plan
        cuda = self._cuda = plan.cuda
        self._stream: Any = call(cuda, "cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
        try:
            self._upload: Any = call(cuda, "cudaStreamCreateWithFlags", cuda.cudaStreamNonBlocking)
        except BaseException:
            cuda.cudaStreamDestroy(self._stream)
            raise
        self.notes = []
        self._may_capture = True
        self._buckets: OrderedDict[Shapes, Bucket] = OrderedDict()
        self._lock = threading.Lock()

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        with self._lock:
            bucket = self._enqueue(feeds)
            to_host = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
            for spec in self.graph.outputs:
                pinned, memory = bucket.host[spec.name], bucket.device[spec.name]
                self._copy(pinned.address, memory.address, pinned.array.nbytes, to_host)
            self._wait()
            return {spec.name: bucket.host[spec.name].array.copy() for spec in self.graph.outputs}

    def _run_and_keep(
        self, feeds: Mapping[str, Value], host_steps: Mapping[str, HostStep]
    ) -> Mapping[str, Value]:
        """Runs the graph once and leaves every output on the device, in memory of its own.

        What the host changes comes down and goes up again in portions. While some are on their way
        the host works on another.
        """
        with self._lock:
            bucket = self._enqueue(feeds)
            kept: dict[str, Value] = {}
            try:
                fetched = {name: self._fetch(bucket, name) for name in host_steps}
                for spec in self.graph.outputs:
                    if spec.name not in host_steps:
                        kept[spec.name] = self._keep(bucket, spec.name)
                for name, step in host_steps.items():
                    kept[name] = self._change(bucket, name, step, fetched[name])
            finally:
                # whatever happened, nothing may still write to memory that is given back
                self._wait()
            return kept

    def _enqueue(self, feeds: Mapping[str, Value]) -> Bucket:
        """Puts the inputs' copies and the execution on the stream."""
        shapes = tuple(tuple(feeds[spec.name].shape) for spec in self.graph.inputs)
        bucket = self._bucket(self._plan, shapes)

        kinds = self._cuda.cudaMemcpyKind
        for spec in self.graph.inputs:
            value, pinned = feeds[spec.name], bucket.host[spec.name]
            if isinstance(value, CudaValue):
                source, kind = value.address, kinds.cudaMemcpyDeviceToDevice
            elif isinstance(value, np.ndarray):
                np.copyto(pinned.array, value)
                source, kind = pinned.address, kinds.cudaMemcpyHostToDevice
            else:
                raise EngineError(
                    f"{self.graph.stage}: input {spec.name!r} lies on a device of another engine"
                )
            self._copy(bucket.device[spec.name].address, source, pinned.array.nbytes, kind)

        if self._may_capture and bucket.may_be_captured and (failure := bucket.capture()):
            self._may_capture = False
            self.notes.append(f"no CUDA graph: {failure}")
        bucket.enqueue()
        return bucket

    def _bucket(self, plan: LoadedPlan, shapes: Shapes) -> Bucket:
        """The bucket of these shapes; makes room for a new one first."""
        if shapes in self._buckets:
            self._buckets.move_to_end(shapes)
            return self._buckets[shapes]
        while len(self._buckets) >= MAX_BUCKETS:
            self._buckets.popitem(last=False)[1].close()
        bucket = self._buckets[shapes] = Bucket(plan, self._stream, shapes)
        return bucket

    def _keep(self, bucket: Bucket, name: str) -> CudaValue:
        """Puts the copy of an output into memory of its own on the stream."""
        array = bucket.host[name].array
        memory = DeviceMemory(self._cuda, array.nbytes)
        on_device = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(memory.address, bucket.device[name].address, array.nbytes, on_device)
        return CudaValue(self._cuda, memory, array.shape, array.dtype)

    def _fetch(self, bucket: Bucket, name: str) -> list[tuple[slice, Any]]:
        """Puts the copies of an output's maps to the host on the stream, in portions.

        Returns for each portion its maps, and the event after which they are there.
        """
        pinned, source = bucket.host[name], bucket.device[name].address
        maps = pinned.array.reshape(-1, *pinned.array.shape[-2:])
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
        return fetched

    def _change(
        self, bucket: Bucket, name: str, step: HostStep, fetched: list[tuple[slice, Any]]
    ) -> CudaValue:
        """What `step` makes of the maps that are being fetched.

        Each portion goes up on a stream of its own, beside those that still come down.

        Args:
            bucket: The buffers.
            name: The output's name.
            step: The change.
            fetched: The portions and their events, as `_fetch` returned them.
        """
        array = bucket.host[name].array
        maps = array.reshape(-1, *array.shape[-2:])
        changed = bucket.changed(name, (*array.shape[:-2], *step.size))
        sent = changed.array.reshape(-1, *step.size)
        memory = DeviceMemory(self._cuda, changed.array.nbytes)
        to_device = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        try:
            for portion, event in fetched:
                call(self._cuda, "cudaEventSynchronize", event)
                sent[portion] = step.function(maps[portion])
                first, size = portion.start * sent[0].nbytes, sent[portion].nbytes
                to, source = memory.address + first, changed.address + first
                call(self._cuda, "cudaMemcpyAsync", to, source, size, to_device, self._upload)
        finally:
            call(self._cuda, "cudaStreamSynchronize", self._upload)
        return CudaValue(self._cuda, memory, changed.array.shape, changed.array.dtype)

    def _copy(self, target: int, source: int, size: int, kind: Any) -> None:
        """Puts a copy of `size` bytes on the stream; kind: which sides, a cudaMemcpyKind."""
        call(self._cuda, "cudaMemcpyAsync", target, source, size, kind, self._stream)

    def _wait(self) -> None:
        call(self._cuda, "cudaStreamSynchronize", self._stream)

    def _close(self) -> None:
        for bucket in self._buckets.values():
            bucket.close()
        self._buckets.clear()
        self._cuda.cudaStreamDestroy(self._stream)
        self._cuda.cudaStreamDestroy(self._upload)
        del self._plan
