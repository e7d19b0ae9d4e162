"""A TensorRT plan at one set of input shapes: execution context, buffers and CUDA graph.

What the layers of a plan hand each other lies in one scratch block, which all buckets of a session
share, since they take turns.

The modules `tensorrt` (or `tensorrt_rtx`) and `cuda.bindings.runtime` are values, so that the
bookkeeping can be exercised without a GPU.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from ris.engines.base import DTYPES, Graph
from ris.engines.cuda import call
from ris.engines.cuda_memory import DeviceMemory, PinnedArray, Pool, capturing
from ris.engines.errors import EngineError

Shapes = tuple[tuple[int, ...], ...]
"""The shapes of the inputs, in the graph's order."""

PORTIONS = 4
"""An output that the host changes travels in this many pieces."""


@dataclass(frozen=True)
class LoadedPlan:
    """A deserialised plan, and what it is run with."""

    trt: Any
    """The module `tensorrt` or `tensorrt_rtx`."""

    cuda: Any
    """The module `cuda.bindings.runtime`."""

    graph: Graph
    """The graph that was compiled."""

    engine: Any
    """TensorRT's ICudaEngine."""

    runtime: Any
    """TensorRT's Runtime. It has to outlive `engine`, so this field comes after that one."""

    logger: Any
    """Keeps what TensorRT says, for messages."""

    pool: Pool
    """Where device memory is from, on the GPU that the plan was loaded on."""

    runtime_config: Any = None
    """TensorRT-RTX's IRuntimeConfig, which has what it compiles at run time; None for TensorRT."""

    def create_context(self) -> Any:
        """An execution context without scratch memory, None where there is no memory for it."""
        if self.runtime_config is not None:
            return self.engine.create_execution_context(self.runtime_config)
        strategy = self.trt.ExecutionContextAllocationStrategy.USER_MANAGED
        return self.engine.create_execution_context(strategy)


class Scratch:
    """The block of a session's scratch memory; it grows and never shrinks."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._memory: DeviceMemory | None = None

    @property
    def size(self) -> int:
        """Its bytes."""
        return self._memory.size if self._memory else 0

    @property
    def address(self) -> int:
        """Where it begins; 0 before it has grown."""
        return self._memory.address if self._memory else 0

    def grow(self, size: int) -> None:
        """Takes a block of another size in place of the old one, which nothing may use any more.

        Raises EngineError where there is no memory; there is no block then.
        """
        self.close()
        self._memory = DeviceMemory(self._pool, size)

    def close(self) -> None:
        memory, self._memory = self._memory, None
        if memory:
            memory.close()


class Bucket:
    """Everything that one set of input shapes needs."""

    context: Any
    """TensorRT's IExecutionContext, None after `close`."""

    shapes: dict[str, tuple[int, ...]]
    """The shapes of the inputs and outputs by name."""

    device: dict[str, DeviceMemory]
    """The device's buffers of the inputs and outputs by name."""

    host: dict[str, PinnedArray]
    """The host's buffers of the inputs and outputs by name."""

    scratch: int
    """The bytes of scratch memory that an execution needs."""

    def __init__(self, plan: LoadedPlan, stream: Any, shapes: Shapes) -> None:
        """Prepares the execution of a plan on a stream.

        Raises:
            EngineError: For shapes that the plan does not take, and where memory runs out.
        """
        self._plan, self._cuda, self._stream = plan, plan.cuda, stream
        self._graph_exec: Any = None
        self._ran = False
        self._events: list[Any] = []
        self._changed: dict[str, PinnedArray] = {}
        self.context, self.scratch = None, 0
        self.shapes, self.device, self.host = {}, {}, {}
        try:
            self._set_shapes(shapes)
            self._allocate()
        except BaseException:
            self.close()
            raise

    def _set_shapes(self, shapes: Shapes) -> None:
        """Makes the context, gives it the inputs' shapes and learns those of the outputs."""
        graph, engine = self._plan.graph, self._plan.engine
        self.context = self._plan.create_context()
        if self.context is None:
            raise EngineError(
                f"{graph.stage}: no execution context ({self._plan.logger.errors_in_a_line()}); the"
                " GPU's memory may be full"
            )
        for spec, shape in zip(graph.inputs, shapes, strict=True):
            if not self.context.set_input_shape(spec.name, shape):
                _, _, largest = engine.get_tensor_profile_shape(spec.name, 0)
                raise EngineError(
                    f"{graph.stage}: input {spec.name!r} is {list(shape)}, the plan takes up to"
                    f" {list(largest)}; compile it with a larger --max-batch or --max-expressions"
                )
            self.shapes[spec.name] = shape

        if unresolved := self.context.infer_shapes():
            raise EngineError(
                f"{graph.stage}: TensorRT cannot tell the shape of {', '.join(unresolved)}; compile"
                " it again"
            )
        for spec in graph.outputs:
            self.shapes[spec.name] = tuple(self.context.get_tensor_shape(spec.name))
        self.scratch = max(1, int(self.context.update_device_memory_size_for_shapes()))

    def _allocate(self) -> None:
        """Gets the buffers of the inputs and outputs on both sides."""
        graph = self._plan.graph
        for spec in (*graph.inputs, *graph.outputs):
            dtype, shape = np.dtype(DTYPES[spec.dtype]), self.shapes[spec.name]
            size = int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            memory = self.device[spec.name] = DeviceMemory(self._plan.pool, size)
            self.host[spec.name] = PinnedArray(self._cuda, shape, dtype)
            if not self.context.set_tensor_address(spec.name, memory.address):
                raise EngineError(
                    f"{graph.stage}: TensorRT refuses the memory for {spec.name!r}; report it,"
                    " please"
                )

    def use_scratch(self, scratch: Scratch) -> None:
        """Executes in this block from now on; a CUDA graph, which has the old one, is dropped."""
        self._drop_graph()
        self.context.set_device_memory(scratch.address, scratch.size)

    def portion_events(self) -> list[Any]:
        """`PORTIONS` events, made when they are needed first."""
        while len(self._events) < PORTIONS:
            flags = self._cuda.cudaEventDisableTiming
            self._events.append(call(self._cuda, "cudaEventCreateWithFlags", flags))
        return self._events

    def changed(self, name: str, shape: tuple[int, ...]) -> PinnedArray:
        """The host's buffer for what it makes of an output."""
        array = self._changed.get(name)
        if array is None or array.array.shape != shape:
            dtype = self.host[name].array.dtype
            array = self._changed[name] = PinnedArray(self._cuda, shape, dtype)
        return array

    @property
    def may_be_captured(self) -> bool:
        """Whether `capture` may be called: not yet done, and not before the first execution.

        The first execution warms up what capture must not see.
        """
        return self._ran and self._graph_exec is None

    def capture(self) -> str | None:
        """Records one execution as a CUDA graph.

        Returns:
            Why that is impossible, or None where it is done.

        Raises:
            EngineError: Where the capture does not begin.
        """
        cuda, stream = self._cuda, self._stream
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        failure: EngineError | None = None
        with capturing():
            call(cuda, "cudaStreamBeginCapture", stream, mode)
            try:
                self._execute()
            except EngineError as error:
                failure = error
            except BaseException:  # Ctrl-C
                cuda.cudaStreamEndCapture(stream)
                raise
            # this ends the capture whatever happened in it
            code, recorded = cuda.cudaStreamEndCapture(stream)

        if failure is None and int(code) == 0:
            try:
                # flags 0: the call is the same in CUDA 12 and 13
                self._graph_exec = call(cuda, "cudaGraphInstantiate", recorded, 0)
            except EngineError as error:
                failure = error
        if int(code) == 0 and recorded is not None:
            cuda.cudaGraphDestroy(recorded)
        if self._graph_exec is not None:
            return None
        return str(failure or "the capture failed")

    def enqueue(self) -> None:
        """Puts one execution on the stream: the CUDA graph where one was captured."""
        if self._graph_exec is not None:
            call(self._cuda, "cudaGraphLaunch", self._graph_exec, self._stream)
        else:
            self._execute()
        self._ran = True

    def _execute(self) -> None:
        if not self.context.execute_async_v3(int(self._stream)):
            logger = self._plan.logger
            raise EngineError(
                f"{self._plan.graph.stage}: TensorRT failed: {logger.errors_in_a_line()}"
            )

    def _drop_graph(self) -> None:
        if self._graph_exec is not None:
            self._cuda.cudaGraphExecDestroy(self._graph_exec)
            self._graph_exec = None

    def close(self) -> None:
        self._drop_graph()
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
