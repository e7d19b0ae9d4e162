"""OpenVINO: the fast engine for CPUs, and Intel's GPUs and NPUs.

What it compiles is kept like TensorRT's plans, under the same key rule; OpenVINO's own cache stays
off. What it computes in is asked for by `EngineOptions.compute`, by default the precision of the
graph, and never left to OpenVINO, which takes bfloat16 for FP32 graphs wherever the CPU has it.
What a graph's layers really run in is read from the compiled graph and shown with the session.

An axis that can only be 1 is fixed when a graph is compiled: OpenVINO fuses attention only where it
knows every shape.

A graph of which only a part may be bfloat16 is compiled in two, cut at the value where that part
begins: OpenVINO's own marks for nodes that stay FP32 do not survive its making of fully connected
layers.

On CPUs without VNNI instructions INT8 products add pairs of products in 16 bits, which overflow.
There an INT8 graph is compiled without OpenVINO's low precision transformations: its weights stay
INT8, its sums are in floating point.
"""

from __future__ import annotations

import functools
import queue
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino
from openvino import opset13 as opset

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
from ris.engines.processor import core_limit

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}
_NAMES = {
    "f32": "fp32",
    "f16": "fp16",
    "i8": "int8",
    "u8": "int8",
}  # OpenVINO's names of precisions, and ours
PRODUCTS = ("FullyConnected", "MatMul", "Convolution", "Deconvolution", "ScaledDotProductAttention")
_FILE = 2  # the format of what is kept; 1 was one blob
# where the blobs of a compiled graph begin in its file: OpenVINO reads their weights in place
_PAGE = 4096


class OpenVinoEngine(Engine):
    """Compiles through the cache and opens what is there."""

    name = "openvino"

    def __init__(self, options: EngineOptions) -> None:
        """Raises EngineError where the device is not there, or cannot compute in
        `options.compute`.
        """
        super().__init__(options)
        self._core = openvino.Core()
        self.device = options.device.upper()
        there = self._core.available_devices
        if self.device not in {name.split(".")[0] for name in there}:
            raise EngineError(
                f"OpenVINO has no device {options.device!r} here; it has {', '.join(there).lower()}"
            )
        self._capabilities = set(self._core.get_property(self.device, "OPTIMIZATION_CAPABILITIES"))
        if options.compute is not None and _CAPABILITIES[options.compute] not in self._capabilities:
            raise EngineError(
                f"{self._name()} does not compute in {options.compute}; it has"
                f" {', '.join(self.computes())}"
            )

    def computes(self) -> list[str]:
        """The precisions that the device computes in, as `EngineOptions.compute` names them."""
        return [
            name for name, capability in _CAPABILITIES.items() if capability in self._capabilities
        ]

    def _name(self) -> str:
        return str(self._core.get_property(self.device, "FULL_DEVICE_NAME")).strip()

    def _compute(self, graph: Graph) -> str:
        """What this graph runs in. Where the device has no FP16, an FP16 graph runs in bfloat16 if
        that will do for it, else in FP32.
        """
        wanted = self.options.compute or graph.precision
        order = {
            "fp32": ("fp32",),
            "bf16": ("bf16", "fp32"),
            "fp16": ("fp16", *["bf16"] * graph.bf16, "fp32"),
        }[wanted]
        return next((name for name in order if name in self.computes()), "fp32")

    def _widens(self, graph: Graph) -> bool:
        """Whether the graph's INT8 products run in floating point here."""
        return graph.int8 and self.device == "CPU" and int8_overflows()

    def _mode(self) -> str:
        return "THROUGHPUT" if self.options.throughput else "LATENCY"

    def _settings(self, compute: str) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[compute],
            "PERFORMANCE_HINT": self._mode(),
        }
        threads = self.options.threads or core_limit()
        if threads is not None and self.device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = threads
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
                inputs[spec.name]: [
                    fixed.get(axis, -1) if isinstance(axis, str) else axis for axis in spec.shape
                ]
                for spec in graph.inputs
            }
        )
        _turn_weights(model)
        return model

    def _parts(self, graph: Graph) -> list[str]:
        """What the parts of the graph compute in, in their order; one where all of it computes in
        the same.
        """
        compute = self._compute(graph)
        return ["fp32", compute] if compute == "bf16" and graph.bf16_from else [compute]

    def build(self, graph: Graph, progress: Progress = silent) -> Compiled:
        """The graph compiled for this device, from the cache or built now. report: layers by
        precision.
        """
        computes, widens = self._parts(graph), self._widens(graph)
        recipe = cache.Recipe(
            stage=graph.stage,
            onnx=cache.graph_hashes(graph),
            engine=self.name,
            version=openvino.get_version(),
            device=f"{self.device} {self._name()} {' '.join(sorted(self._capabilities))}",
            profiles=self._fixed(),
            options={"compute": ", then ".join(computes), "mode": self._mode(), "file": _FILE}
            | ({"int8": "widened"} if widens else {}),
        )

        def compile_to(file: Path) -> dict[str, Any]:
            progress(graph.stage, "compiling", None)
            model = self._tried("read", graph, lambda: self._read(graph))
            parts = (
                split(model, graph.bf16_from) if len(computes) > 1 and graph.bf16_from else [model]
            )
            # FP32 where the graph does not name the value where bfloat16 may begin
            settings = [
                self._settings(one)
                for one in (computes if len(parts) == len(computes) else ["fp32"])
            ]
            if widens:
                settings = [setting | {"LP_TRANSFORMS_MODE": False} for setting in settings]

            def compile_parts() -> list[Any]:
                each = zip(parts, settings, strict=True)
                return [
                    self._core.compile_model(part, self.device, setting) for part, setting in each
                ]

            compiled = self._tried("compile", graph, compile_parts)
            _write_blobs(file, [one.export_model().getbuffer() for one in compiled])
            return {"layers": layers(compiled, widens), "layers_from": "OpenVINO's runtime graph"}

        return cache.obtain(recipe, graph.cache, compile_to, self.options, progress)

    def open(self, graph: Graph, artifact: Path) -> Session:
        """A session over a compiled graph of the cache. Raises EngineError."""
        data = cache.map_checked(artifact, self.name)
        blobs = _read_blobs(data, artifact)
        computes = self._parts(graph)
        if len(blobs) < len(computes):  # the graph does not name the value where bfloat16 may begin
            computes = ["fp32"]
        # an imported graph does not remember what it was compiled for
        compiled = self._tried(
            "import its own compiled",
            graph,
            lambda: [
                self._core.import_model(
                    openvino.Tensor(blob, shared_memory=True), self.device, self._settings(compute)
                )
                for blob, compute in zip(blobs, computes, strict=True)
            ],
        )
        cache.let_go(data)  # OpenVINO has the weights in its own order by now
        widens = self._widens(graph)
        counted = layers(compiled, widens)
        info = SessionInfo(
            engine=self.name,
            version=openvino.get_version().split("-")[0],
            device=self.options.device,
            providers=tuple(f"{self.device} {name}" for name in counted),
            nodes={f"{self.device} {name}": count for name, count in counted.items()},
            precision=main_precision(compiled, widens),
        )
        return OpenVinoSession(graph, info, compiled, blobs, self._fixed(), self.options.low_memory)

    def _tried(self, doing: str, graph: Graph, make: Any) -> Any:
        try:
            return make()
        except RuntimeError as error:
            raise EngineError(
                f"{graph.stage}: OpenVINO cannot {doing} {graph.path}: {_reason(error)}"
            ) from error


@functools.cache
def int8_overflows() -> bool:
    """Whether OpenVINO's INT8 products on this CPU lose what does not fit into 16 bits: a product
    of 127s, by trial.
    """
    rows, length, columns = 16, 64, 32
    x = opset.parameter([rows, length], np.float32)
    quantised = opset.fake_quantize(x, *(np.float32(end) for end in (-128, 127, -128, 127)), 256)
    weights = opset.convert(opset.constant(np.full((columns, length), 127, np.int8)), np.float32)
    scaled = opset.multiply(weights, np.ones((columns, 1), np.float32))
    product = opset.matmul(quantised, scaled, False, True)
    model = openvino.Model([product], [x])
    compiled = openvino.Core().compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    found = compiled(np.full((rows, length), 127, np.float32))[0]
    return bool((found != length * 127 * 127).any())


def _reason(error: RuntimeError) -> str:
    """OpenVINO's own words without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    said = [
        line for line in lines if line and not line.startswith(("Exception from", "Check '", "["))
    ]
    return first_line(RuntimeError(said[0])) if said else first_line(error)


def _turn_weights(model: Any) -> None:
    """Stores the weights of products the other way round, as the fully connected layers that
    OpenVINO makes of them read them. Left to OpenVINO, both ways stay in memory.
    """
    turned: dict[str, Any] = {}
    for node in model.get_ordered_ops():
        if node.get_type_name() != "MatMul" or node.get_attributes()["transpose_b"]:
            continue
        weight = node.input_value(1).get_node()
        stored = weight.input_value(0).get_node() if weight.get_type_name() == "Convert" else weight
        if stored.get_type_name() != "Constant" or len(stored.get_output_shape(0)) != 2:
            continue
        name = weight.get_friendly_name()
        if name not in turned:
            values = stored.data
            if stored.get_output_element_type(0) == openvino.Type.bf16:  # numpy has none
                values = (values.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
            wanted = weight.get_output_element_type(0).to_dtype()
            turned[name] = opset.constant(np.ascontiguousarray(values.T, wanted))
        product = opset.matmul(
            node.input_value(0), turned[name], node.get_attributes()["transpose_a"], True
        )
        product.set_friendly_name(node.get_friendly_name())
        product.output(0).set_names(node.output(0).get_names())
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(product.output(0))


def split(model: Any, name: str) -> list[Any]:
    """The model in two, cut at the value of this name: first what it depends on, and the outputs
    that do not depend on it; then the rest, which takes it as an input of that name. The model
    alone where it has no such value.
    """
    ports = [
        port
        for node in model.get_ordered_ops()
        for port in node.outputs()
        if name in port.get_names()
    ]
    if not ports:
        return [model]
    rest = model.clone()
    [port] = [
        port
        for node in rest.get_ordered_ops()
        for port in node.outputs()
        if name in port.get_names()
    ]
    given = opset.parameter(port.get_partial_shape(), port.get_element_type(), name)
    for consumer in port.get_target_inputs():
        consumer.replace_source_output(given.output(0))
    given.output(0).set_names({name})
    later = [
        result for result in rest.get_results() if given.get_friendly_name() in _ancestors(result)
    ]
    names = {output for result in later for output in result.output(0).get_names()}
    before = [
        result for result in model.get_results() if names.isdisjoint(result.output(0).get_names())
    ]
    cut = opset.result(ports[0])
    return [
        _model([*before, cut], model.get_parameters()),
        _model(later, [*rest.get_parameters(), given]),
    ]


def _model(results: list[Any], parameters: list[Any]) -> Any:
    """A model of these results, with those of the parameters that they need."""
    needed = set().union(*(_ancestors(result) for result in results))
    return openvino.Model(results, [one for one in parameters if one.get_friendly_name() in needed])


def _ancestors(node: Any) -> set[str]:
    """The names of the nodes that a node depends on, and its own."""
    found, left = set(), [node]
    while left:
        one = left.pop()
        if one.get_friendly_name() not in found:
            found.add(one.get_friendly_name())
            left += [source.get_source_output().get_node() for source in one.inputs()]
    return found


def _write_blobs(file: Path, blobs: Sequence[Any]) -> None:
    """Their sizes, then each at a page of its own."""
    with file.open("wb") as target:
        target.write(np.array([len(blobs), *map(len, blobs)], "<u8").tobytes())
        for blob in blobs:
            target.seek(-(-target.tell() // _PAGE) * _PAGE)
            target.write(blob)


def _read_blobs(data: Any, file: Path) -> list[Any]:
    """What `_write_blobs` wrote, as parts of the memory. Raises EngineError for another file."""
    head = data[: 8 * (len(data) // 8)][: 8 * 16].view("<u8")
    count = int(head[0]) if len(head) else 0
    if not 1 <= count < len(head):
        raise EngineError(f"{file} holds no compiled graph; compile it again")
    blobs, start = [], 8 * (1 + count)
    for size in head[1 : 1 + count]:
        start = -(-start // _PAGE) * _PAGE
        blobs.append(data[start : start + int(size)])
        start += int(size)
    return blobs


def _running(compiled: Sequence[Any], widened: bool) -> Iterator[tuple[Any, str, str]]:
    """The layers that compute something in compiled graphs: node, kind and precision.

    widened: what OpenVINO calls INT8 are layers with INT8 weights and sums in FP32.
    """
    for part in compiled:
        for node in part.get_runtime_model().get_ordered_ops():
            about = node.get_rt_info()
            kind = str(about["layerType"].astype(str)) if "layerType" in about else ""
            if kind not in ("Input", "Output", "Const", "Reorder", ""):
                precision = (
                    str(about["runtimePrecision"].astype(str))
                    if "runtimePrecision" in about
                    else "unknown"
                )
                name = _NAMES.get(precision, precision)
                yield node, kind, "fp32" if widened and name == "int8" else name


def layers(compiled: Sequence[Any], widened: bool = False) -> dict[str, int]:
    """How many layers of compiled graphs run in each precision, most first."""
    return dict(Counter(precision for _, _, precision in _running(compiled, widened)).most_common())


def main_precision(compiled: Sequence[Any], widened: bool = False) -> str | None:
    """What most of the work of matrix products and convolutions runs in: by results, times the
    length of each sum where it is known, that of a product's rows. None where there are none.
    """
    work: Counter[str] = Counter()
    for node, kind, precision in _running(compiled, widened):
        if kind in PRODUCTS:
            sizes = [_size(node.output(0).get_partial_shape())]
            if kind in ("FullyConnected", "MatMul"):
                sizes.append(_size(node.input(0).get_partial_shape()[-1:]))
            work[precision] += int(np.prod(sizes, dtype=np.float64))
    return work.most_common(1)[0][0] if work else None


def _size(shape: Any) -> int:
    """The number of elements, axes of unknown length being 1."""
    return int(
        np.prod([1 if axis.is_dynamic else axis.get_length() for axis in shape], dtype=np.int64)
    )


class OpenVinoSession(Session):
    """A compiled graph, in one part or in two, with as many requests for each as threads that use
    it at once.

    blobs: the memory that the parts were imported from, whose weights they may go on using; fixed:
    the axes that are fixed.
    """

    def __init__(
        self,
        graph: Graph,
        info: SessionInfo,
        compiled: list[Any],
        blobs: list[Any],
        fixed: Mapping[str, int],
        low_memory: bool,
    ) -> None:
        super().__init__(graph, info)
        self._compiled, self._blobs = compiled, blobs
        self._fixed, self._low_memory = fixed, low_memory
        self._running, self._lock = 0, threading.Lock()
        self._idle: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()
        given, wanted = ({spec.name for spec in specs} for specs in (graph.inputs, graph.outputs))
        between = {graph.bf16_from} if graph.bf16_from else set()
        # for each part its inputs and outputs, index -> name
        self._inputs = [_named(part.inputs, given | between) for part in compiled]
        self._outputs = [_named(part.outputs, wanted | between) for part in compiled]
        if missing := wanted - {name for part in self._outputs for name in part.values()}:
            raise EngineError(
                f"{graph.stage}: the compiled graph has no {missing.pop()!r}; compile it again"
            )

    @property
    def at_once(self) -> int:
        """How many requests it runs side by side."""
        return int(self._compiled[-1].get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        compiled = self._compiled
        if not compiled:
            raise EngineError(f"{self.graph.stage}: the session is closed")
        values: dict[str, Any] = {}
        for spec in self.graph.inputs:
            value = feeds[spec.name]
            for axis, size in zip(spec.shape, value.shape, strict=True):
                if isinstance(axis, str) and size != self._fixed.get(axis, size):
                    raise EngineError(
                        f"{self.graph.stage}: compiled for one of {axis} at a time, got {size}; "
                        "load the bundle with a larger max_batch or max_expressions"
                    )
            values[spec.name] = np.ascontiguousarray(
                value.numpy() if isinstance(value, DeviceValue) else value
            )
        with self._lock:
            self._running += 1
        try:
            requests = self._idle.get_nowait()
        except queue.Empty:
            requests = [part.create_infer_request() for part in compiled]
        try:
            for request, inputs, outputs in zip(requests, self._inputs, self._outputs, strict=True):
                request.infer(
                    {index: values[name] for index, name in inputs.items()}, share_inputs=True
                )
                values |= {
                    name: request.get_output_tensor(index).data for index, name in outputs.items()
                }
            # the requests' own memory is written again by their next run
            return {spec.name: values[spec.name].copy() for spec in self.graph.outputs}
        except RuntimeError as error:
            raise EngineError(f"{self.graph.stage}: OpenVINO failed: {_reason(error)}") from error
        finally:
            self._idle.put(requests)
            with self._lock:
                self._running -= 1
                if self._low_memory and not self._running:
                    for part in compiled:
                        part.release_memory()

    def close(self) -> None:
        self._compiled, self._blobs = [], []
        self._idle = queue.SimpleQueue()


def _named(ports: list[Any], names: set[str]) -> dict[int, str]:
    """Which of these names each of a compiled graph's inputs or outputs has, by index."""
    return {i: name for i, port in enumerate(ports) for name in port.get_names() if name in names}


ENGINE = OpenVinoEngine
