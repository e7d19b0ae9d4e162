"""OpenVINO: the fast engine for CPUs, and Intel's GPUs and NPUs.

What it compiles is kept like TensorRT's plans, under the same key rule; OpenVINO's own cache stays off. What it
computes in is asked for by `EngineOptions.compute`, by default the precision of the graph, and never left to OpenVINO,
which takes bfloat16 for FP32 graphs wherever the CPU has it. What a graph's layers really run in is read from the
compiled graph and shown with the session.

An axis that can only be 1 is fixed when a graph is compiled: OpenVINO fuses attention only where it knows every shape.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import openvino

from ris.engines import cache
from ris.engines.base import (
    Compiled,
    DeviceValue,
    Engine,
    EngineOptions,
    Graph,
    Progress,
    Session,
    SessionInfo,
    Value,
    first_line,
    silent,
)
from ris.engines.errors import EngineError

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}
_NAMES = {"f32": "fp32", "f16": "fp16", "i8": "int8", "u8": "int8"}  # OpenVINO's names of precisions, and ours
PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "Deconvolution", "ScaledDotProductAttention")


class OpenVinoEngine(Engine):
    """Compiles through the cache and opens what is there."""

    name = "openvino"

    def __init__(self, options: EngineOptions) -> None:
        """Raises EngineError where the device is not there, or cannot compute in `options.compute`."""
        super().__init__(options)
        self._core = openvino.Core()
        self.device = options.device.upper()
        there = self._core.available_devices
        if self.device not in {name.split(".")[0] for name in there}:
            raise EngineError(f"OpenVINO has no device {options.device!r} here; it has {', '.join(there).lower()}")
        self._capabilities = set(self._core.get_property(self.device, "OPTIMIZATION_CAPABILITIES"))
        if options.compute is not None and _CAPABILITIES[options.compute] not in self._capabilities:
            raise EngineError(
                f"{self._name()} does not compute in {options.compute}; it has {', '.join(self.computes())}"
            )

    def computes(self) -> list[str]:
        """The precisions that the device computes in, as `EngineOptions.compute` names them."""
        return [name for name, capability in _CAPABILITIES.items() if capability in self._capabilities]

    def _name(self) -> str:
        return str(self._core.get_property(self.device, "FULL_DEVICE_NAME")).strip()

    def _compute(self, graph: Graph) -> str:
        """What this graph runs in. Where the device has no FP16, an FP16 graph runs in bfloat16 if that will do for it,
        else in FP32.
        """
        wanted = self.options.compute or graph.precision
        order = {"fp32": ("fp32",), "bf16": ("bf16", "fp32"), "fp16": ("fp16", *["bf16"] * graph.bf16, "fp32")}[wanted]
        return next((name for name in order if name in self.computes()), "fp32")

    def _mode(self) -> str:
        return "THROUGHPUT" if self.options.throughput else "LATENCY"

    def _settings(self, graph: Graph) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[self._compute(graph)],
            "PERFORMANCE_HINT": self._mode(),
        }
        if self.options.threads is not None and self.device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = self.options.threads
        return settings

    def _fixed(self) -> dict[str, int]:
        """The axes that can only be 1, by name."""
        most = {"images": self.options.max_batch, "expressions": self.options.max_expressions}
        return {axis: 1 for axis, size in most.items() if size == 1}

    def _read(self, graph: Graph) -> Any:
        """The graph with its fixed axes."""
        model, fixed = self._core.read_model(str(graph.path)), self._fixed()
        inputs = {name: port for port in model.inputs for name in port.get_names()}
        model.reshape(
            {
                inputs[spec.name]: [fixed.get(axis, -1) if isinstance(axis, str) else axis for axis in spec.shape]
                for spec in graph.inputs
            }
        )
        return model

    def build(self, graph: Graph, progress: Progress = silent) -> Compiled:
        """The graph compiled for this device, from the cache or built now. report: layers by precision."""
        settings = self._settings(graph)
        recipe = cache.Recipe(
            stage=graph.stage,
            onnx=cache.graph_hashes(graph),
            engine=self.name,
            version=openvino.get_version(),
            device=f"{self.device} {self._name()} {' '.join(sorted(self._capabilities))}",
            profiles=self._fixed(),
            options={"compute": self._compute(graph), "mode": self._mode()},
        )

        def compile_to(file: Path) -> dict[str, Any]:
            progress(graph.stage, "compiling", None)
            compiled = self._tried(
                "compile", graph, lambda: self._core.compile_model(self._read(graph), self.device, settings)
            )
            with file.open("wb") as target:
                target.write(compiled.export_model().getbuffer())
            return {"layers": layers(compiled), "layers_from": "OpenVINO's runtime graph"}

        return cache.obtain(recipe, graph.cache, compile_to, self.options, progress)

    def open(self, graph: Graph, artifact: Path) -> Session:
        """A session over a compiled graph of the cache. Raises EngineError."""
        blob = cache.map_checked(artifact, self.name)
        settings = self._settings(graph)  # an imported graph does not remember what it was compiled for
        compiled = self._tried(
            "import its own compiled",
            graph,
            lambda: self._core.import_model(openvino.Tensor(blob), self.device, settings),
        )
        counted = layers(compiled)
        info = SessionInfo(
            engine=self.name,
            version=openvino.get_version().split("-")[0],
            device=self.options.device,
            providers=tuple(f"{self.device} {name}" for name in counted),
            nodes={f"{self.device} {name}": count for name, count in counted.items()},
            precision=next(iter(layers(compiled, PRODUCTS)), None),
        )
        return OpenVinoSession(graph, info, compiled, blob, self._fixed(), self.options.low_memory)

    def _tried(self, doing: str, graph: Graph, make: Any) -> Any:
        try:
            return make()
        except RuntimeError as error:
            raise EngineError(f"{graph.stage}: OpenVINO cannot {doing} {graph.path}: {_reason(error)}") from error


def _reason(error: RuntimeError) -> str:
    """OpenVINO's own words without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [line for line in lines if line and not line.startswith(("Exception from", "Check '", "["))]
    return first_line(RuntimeError(said[0])) if said else first_line(error)


def layers(compiled: Any, kinds: Collection[str] = ()) -> dict[str, int]:
    """How many of the compiled graph's layers that compute something run in each precision, most first.

    kinds: count layers of these types only.
    """
    found: Counter[str] = Counter()
    for node in compiled.get_runtime_model().get_ordered_ops():
        about = node.get_rt_info()
        kind = str(about["layerType"].astype(str)) if "layerType" in about else ""
        if kind in kinds if kinds else kind not in ("Input", "Output", "Const", "Reorder", ""):
            precision = str(about["runtimePrecision"].astype(str)) if "runtimePrecision" in about else "unknown"
            found[_NAMES.get(precision, precision)] += 1
    return dict(found.most_common())


class OpenVinoSession(Session):
    """A compiled graph with as many requests as threads that use it at once.

    blob: the memory that the graph was imported from, whose weights it may go on using; fixed: the axes that are fixed.
    """

    def __init__(
        self, graph: Graph, info: SessionInfo, compiled: Any, blob: Any, fixed: Mapping[str, int], low_memory: bool
    ) -> None:
        super().__init__(graph, info)
        self._compiled, self._blob = compiled, blob
        self._fixed, self._low_memory = fixed, low_memory
        self._running, self._lock = 0, threading.Lock()
        self._idle: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._inputs = [_index(compiled.inputs, spec.name, graph.stage) for spec in graph.inputs]
        self._outputs = [_index(compiled.outputs, spec.name, graph.stage) for spec in graph.outputs]

    @property
    def at_once(self) -> int:
        """How many requests it runs side by side."""
        return int(self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        compiled = self._compiled
        if compiled is None:
            raise EngineError(f"{self.graph.stage}: the session is closed")
        arrays = {}
        for index, spec in zip(self._inputs, self.graph.inputs, strict=True):
            value = feeds[spec.name]
            for axis, size in zip(spec.shape, value.shape, strict=True):
                if isinstance(axis, str) and size != self._fixed.get(axis, size):
                    raise EngineError(
                        f"{self.graph.stage}: compiled for one of {axis} at a time, got {size}; "
                        "load the bundle with a larger max_batch or max_expressions"
                    )
            arrays[index] = np.ascontiguousarray(value.numpy() if isinstance(value, DeviceValue) else value)
        with self._lock:
            self._running += 1
        try:
            request = self._idle.get_nowait()
        except queue.Empty:
            request = compiled.create_infer_request()
        try:
            request.infer(arrays, share_inputs=True)
            # the request's own memory is written again by its next run
            return {
                spec.name: request.get_output_tensor(index).data.copy()
                for index, spec in zip(self._outputs, self.graph.outputs, strict=True)
            }
        except RuntimeError as error:
            raise EngineError(f"{self.graph.stage}: OpenVINO failed: {_reason(error)}") from error
        finally:
            self._idle.put(request)
            with self._lock:
                self._running -= 1
                if self._low_memory and not self._running:
                    compiled.release_memory()

    def close(self) -> None:
        self._compiled = self._blob = None
        self._idle = queue.SimpleQueue()


def _index(ports: list[Any], name: str, stage: str) -> int:
    """Which of the compiled graph's inputs or outputs has this name."""
    for i, port in enumerate(ports):
        if name in port.get_names():
            return i
    raise EngineError(f"{stage}: the compiled graph has no {name!r}; compile it again")


ENGINE = OpenVinoEngine
