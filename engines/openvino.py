"""OpenVINO: the fast engine for CPUs, and Intel's GPUs and NPUs.

What it compiles is kept like TensorRT's plans, under the same key rule; OpenVINO's own cache stays
off. `EngineOptions.compute` says what it computes in, by default the precision of the graph, but
for FP16 graphs on a CPU: those run in FP32, since OpenVINO's FP16 takes no heed of what is to stay
FP32 within a graph, and is no faster there. What it computes in is never left to OpenVINO, which
takes bfloat16 for FP32 graphs wherever the CPU has it. What the layers of a graph really run in is
read from the compiled graph and shown with the session.

An axis that can only be 1 is fixed when a graph is compiled: OpenVINO fuses attention only where it
knows every shape. In one case it computes it wrongly there (`has_as_many_heads_as_queries`): the
axes of such a graph stay open.

A graph of which only a part may be bfloat16 is compiled in two parts, cut at the value where that
part begins. OpenVINO's own marks for nodes that stay FP32 would not do: they are lost when it makes
fully connected layers of products.

Weights in 8 or 4 bits stay so, and what they are multiplied with is not rounded unless
`EngineOptions.int8_activations` asks for it.

On CPUs without VNNI instructions INT8 products add pairs of products in 16 bits, which overflow.
There an INT8 graph is compiled without OpenVINO's low precision transformations: its weights stay
INT8, its sums are in floating point.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import openvino

from ris.engines import cache, entry
from ris.engines.base import (
    Compiled,
    Engine,
    EngineOptions,
    Graph,
    Progress,
    Session,
    SessionInfo,
    silent,
)
from ris.engines.errors import EngineError, PlanError
from ris.engines.linked import without_links
from ris.engines.openvino_layers import bf16_gain, int8_overflows, layers, main_precision
from ris.engines.openvino_model import (
    has_as_many_heads_as_queries,
    hold_joins,
    split,
    turn_weights,
)
from ris.engines.openvino_session import Imported, OpenVinoSession, reason
from ris.engines.processor import core_limit, has_vnni
from ris.engines.recipe import Recipe, graph_hashes

T = TypeVar("T")

_HINTS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_CAPABILITIES = {"fp32": "FP32", "bf16": "BF16", "fp16": "FP16"}
_FILE = 3  # the format of what is kept; 1 was one blob, 2 had attention that was computed wrongly
_QUANTISES = ("CPU", "GPU")  # devices that may round activations by themselves
_ACTIVATION_GROUP = 32  # activations that share a scale; what it takes by itself on a CPU
# where the blobs of a compiled graph begin in its file: OpenVINO reads their weights in place
_PAGE = 4096


class OpenVinoEngine(Engine):
    """Compiles through the cache and opens what is there."""

    name = "openvino"
    """The engine's name in the table."""

    device: str
    """OpenVINO's name of the device."""

    def __init__(self, options: EngineOptions) -> None:
        """Asks OpenVINO what the device can do.

        Raises:
            EngineError: Where the device is not there, or cannot compute in `options.compute`.
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

    @property
    def here(self) -> tuple[str, str]:
        """OpenVINO's version, and the device with its name and what it can compute in."""
        features = " ".join(sorted(self._capabilities))
        return openvino.get_version(), f"{self.device} {self._name()} {features}"

    def gain(self, compute: str) -> float:
        """How many times as fast as in FP32 a CPU multiplies in bfloat16; else 0."""
        tried = self.device == "CPU" and compute == "bf16" and "bf16" in self.computes()
        return bf16_gain() if tried else 0.0

    def build(self, graph: Graph, progress: Progress = silent, *, anew: bool = False) -> Compiled:
        """The graph compiled for this device, from the cache or built now.

        Its report has the number of layers by precision.

        Raises:
            EngineError: Where OpenVINO cannot read or compile the graph, and as in `obtain`.
        """
        computes, widens = self._parts(graph), self._widens(graph)

        def compile_to(file: Path) -> dict[str, Any]:
            progress(graph.stage, "compiling", None)
            with without_links(graph, file.parent) as onnx:
                compiled = self._compile(graph, onnx, computes, widens)
                _write_blobs(file, [part.export_model().getbuffer() for part in compiled])
            counted = layers(compiled, self._narrow_in(graph))
            return {"layers": counted, "layers_from": "OpenVINO's runtime graph"}

        recipe = self._recipe(graph, computes, widens)
        return cache.obtain(recipe, graph.cache, compile_to, self.options, progress, anew=anew)

    def open(self, graph: Graph, artifact: Path) -> Session:
        """A session that runs a compiled graph of the cache.

        Raises:
            PlanError: Where the artifact is damaged, not trusted or of another engine, and where
                OpenVINO refuses it.
        """
        data = entry.map_checked(artifact, self.name)
        blobs = _read_blobs(data, artifact)
        computes = self._parts(graph)
        if len(blobs) < len(computes):  # the graph has no value where bfloat16 may begin
            computes = ["fp32"]

        def import_parts() -> list[Any]:
            # an imported graph does not remember what it was compiled for
            return [
                self._core.import_model(
                    openvino.Tensor(blob, shared_memory=True), self.device, self._settings(compute)
                )
                for blob, compute in zip(blobs, computes, strict=True)
            ]

        try:
            compiled = import_parts()
        except RuntimeError as error:
            raise PlanError(
                f"{artifact}: OpenVINO cannot import what it compiled ({reason(error)}); compile it"
                " again"
            ) from error
        entry.let_go(data)  # OpenVINO has the weights in its own order by now

        info = self._info(graph, compiled)
        imported = Imported(compiled, blobs, self._fixed())
        return OpenVinoSession(graph, info, imported, self.options.low_memory)

    def _recipe(self, graph: Graph, computes: list[str], widens: bool) -> Recipe:
        options = {"compute": ", then ".join(computes), "mode": self._mode(), "file": _FILE}
        if graph.int8:
            options["int8"] = "widened" if widens else "joins held"
        if graph.weights or graph.int8:
            options["activations"] = "int8" if self.options.int8_activations else "kept"
        version, device = self.here
        return Recipe(
            stage=graph.stage,
            onnx=graph_hashes(graph),
            engine=self.name,
            version=version,
            device=device,
            profiles=self._fixed(),
            options=options,
        )

    def _compile(self, graph: Graph, onnx: Path, computes: list[str], widens: bool) -> list[Any]:
        """The compiled parts of the graph in the file `onnx`.

        One part in FP32 where it has no value to be cut at.
        """
        model = self._tried("read", graph, lambda: self._read(graph, onnx))
        parts = [model]
        if len(computes) > 1 and graph.bf16_from:
            parts = split(model, graph.bf16_from)
        if len(parts) < len(computes):
            computes = ["fp32"]
        settings = [self._settings(compute) for compute in computes]
        if widens:
            settings = [setting | {"LP_TRANSFORMS_MODE": False} for setting in settings]

        def compile_parts() -> list[Any]:
            return [
                self._core.compile_model(part, self.device, setting)
                for part, setting in zip(parts, settings, strict=True)
            ]

        return self._tried("compile", graph, compile_parts)

    def _read(self, graph: Graph, onnx: Path) -> Any:
        """OpenVINO's model of the graph, with fixed axes, turned weights and held joins."""
        model = self._core.read_model(str(onnx))
        _reshape(model, graph, self._fixed())
        if has_as_many_heads_as_queries(model):
            _reshape(model, graph, {})
        turn_weights(model)
        if graph.int8:
            hold_joins(model)
        return model

    def _info(self, graph: Graph, compiled: list[Any]) -> SessionInfo:
        narrow_in = self._narrow_in(graph)
        counted = layers(compiled, narrow_in)
        nodes = {f"{self.device} {precision}": count for precision, count in counted.items()}
        return SessionInfo(
            engine=self.name,
            version=openvino.get_version().split("-")[0],
            device=self.options.device,
            providers=tuple(nodes),
            nodes=nodes,
            precision=main_precision(compiled, narrow_in),
            weights=graph.weights,
            activations=self._activations(graph),
        )

    def _tried(self, doing: str, graph: Graph, make: Callable[[], T]) -> T:
        """What `make` returns, with OpenVINO's errors as EngineError."""
        try:
            return make()
        except RuntimeError as error:
            raise EngineError(
                f"{graph.stage}: OpenVINO cannot {doing} {graph.path}: {reason(error)}"
            ) from error

    def _name(self) -> str:
        """The device's name for people."""
        return str(self._core.get_property(self.device, "FULL_DEVICE_NAME")).strip()

    def _parts(self, graph: Graph) -> list[str]:
        """What each part of the graph computes in; one entry where it is not cut."""
        compute = self._compute(graph)
        return ["fp32", compute] if compute == "bf16" and graph.bf16_from else [compute]

    def _compute(self, graph: Graph) -> str:
        """What this graph runs in.

        A CPU runs an FP16 graph in FP32 unless it was asked for. Another device that has no FP16
        runs it in bfloat16 if that is precise enough for it, else in FP32.
        """
        wanted = self.options.compute or graph.precision
        if wanted == "fp16" and self.options.compute is None and self.device == "CPU":
            return "fp32"
        order = {
            "fp32": ("fp32",),
            "bf16": ("bf16", "fp32"),
            "fp16": ("fp16", "bf16", "fp32") if graph.bf16 else ("fp16", "fp32"),
        }[wanted]
        return next((name for name in order if name in self.computes()), "fp32")

    def _widens(self, graph: Graph) -> bool:
        """Whether the graph's INT8 products run in floating point here."""
        return graph.int8 and self.device == "CPU" and int8_overflows()

    def _narrow_in(self, graph: Graph) -> str | None:
        """What layers compute in that have INT8 or INT4 weights alone; None where there are none.

        With `EngineOptions.int8_activations` as well: what is rounded is said apart.
        """
        if graph.weights:
            return self._compute(graph)
        return "fp32" if self._widens(graph) else None

    def _activations(self, graph: Graph) -> str | None:
        """As `SessionInfo.activations`.

        On a CPU OpenVINO rounds those of FP32 alone, and without VNNI none, though it is asked to.
        """
        if not (graph.weights and self.options.int8_activations):
            return None
        rounds = self.device != "CPU" or (has_vnni() and "fp32" in self._parts(graph))
        return "int8" if rounds else None

    def _mode(self) -> str:
        return "THROUGHPUT" if self.options.throughput else "LATENCY"

    def _settings(self, compute: str) -> dict[str, Any]:
        """OpenVINO's properties for a part that computes in `compute`."""
        settings: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _HINTS[compute],
            "PERFORMANCE_HINT": self._mode(),
        }
        if self.device in _QUANTISES:
            # left to itself, it rounds to INT8 what compressed weights are multiplied with
            group = _ACTIVATION_GROUP if self.options.int8_activations else 0
            settings["DYNAMIC_QUANTIZATION_GROUP_SIZE"] = group
        threads = self.options.threads or core_limit()
        if threads is not None and self.device == "CPU":
            settings["INFERENCE_NUM_THREADS"] = threads
        return settings

    def _fixed(self) -> dict[str, int]:
        """The axes that can only be 1, by name."""
        most = {"images": self.options.max_batch, "expressions": self.options.max_expressions}
        return {axis: 1 for axis, size in most.items() if size == 1}


def _reshape(model: Any, graph: Graph, fixed: dict[str, int]) -> None:
    """Gives the model's inputs their shapes; axes that are not `fixed` are open."""
    inputs = {name: port for port in model.inputs for name in port.get_names()}
    shapes = {}
    for spec in graph.inputs:
        shapes[inputs[spec.name]] = [
            fixed.get(axis, -1) if isinstance(axis, str) else axis for axis in spec.shape
        ]
    model.reshape(shapes)


def _write_blobs(file: Path, blobs: Sequence[Any]) -> None:
    """Writes their number and sizes, then each blob at the beginning of a page."""
    with file.open("wb") as target:
        target.write(np.array([len(blobs), *map(len, blobs)], "<u8").tobytes())
        for blob in blobs:
            target.seek(_page_from(target.tell()))
            target.write(blob)


def _read_blobs(data: Any, file: Path) -> list[Any]:
    """What `_write_blobs` wrote, as parts of the memory. Raises PlanError for another file."""
    head = data[: 8 * (len(data) // 8)][: 8 * 16].view("<u8")
    count = int(head[0]) if len(head) else 0
    if not 1 <= count < len(head):
        raise EngineError(f"{file} holds no compiled graph; compile it again")
    blobs, start = [], 8 * (1 + count)
    for size in head[1 : 1 + count]:
        start = _page_from(start)
        blobs.append(data[start : start + int(size)])
        start += int(size)
    return blobs


def _page_from(position: int) -> int:
    """The beginning of the first page at or after a position in a file."""
    return -(-position // _PAGE) * _PAGE


ENGINE = OpenVinoEngine
