"""ONNX Runtime: the portable default. Providers are explicit and checked after creation; nothing
falls back unseen.

ONNX Runtime reads the bundle's graphs as they are, so there is nothing to compile. On a GPU, values
are bound rather than passed, and what the next graph needs stays there. Only the CPU has been run
so far.
"""

from __future__ import annotations

import contextlib
import io
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ris import pip_install
from ris.engines.base import (
    DTYPES,
    NO_STEPS,
    Compiled,
    DeviceValue,
    Engine,
    EngineOptions,
    Graph,
    HostStep,
    Progress,
    Session,
    SessionInfo,
    Value,
    first_line,
    silent,
)
from ris.engines.errors import EngineError
from ris.engines.onnx_widen import widened
from ris.engines.processor import has_vnni, usable_cores

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"
# TF32 is off, since what is FP32 is so for its precision; the exhaustive convolution search takes a
# minute at full size
CUDA_OPTIONS = {
    "device_id": "0",
    "use_tf32": "0",
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}


class OrtDeviceValue(DeviceValue):
    """An OrtValue, on whichever device it lies."""

    def __init__(self, value: Any, dtype: np.dtype) -> None:
        self._value: Any = value
        self.shape, self.dtype = tuple(value.shape()), dtype

    @property
    def ort(self) -> Any:
        """The OrtValue. Raises EngineError after `close`."""
        if self._value is None:
            raise EngineError("the value on the device was closed; encode the image again")
        return self._value

    def numpy(self) -> np.ndarray:
        array: np.ndarray = self.ort.numpy()
        return array

    def close(self) -> None:
        self._value = None


class OnnxRuntimeSession(Session):
    """One InferenceSession. ONNX Runtime allows `run` from several threads; each run has a binding
    of its own.

    place: ONNX Runtime's name of the device on which `run_and_keep` leaves its outputs, "cpu" for
    plain arrays; low_memory: on a CPU, values' memory is given back after each run.
    """

    def __init__(
        self,
        graph: Graph,
        info: SessionInfo,
        session: Any,
        place: str = "cpu",
        low_memory: bool = False,
    ) -> None:
        super().__init__(graph, info)
        self._session, self._place = session, place
        self._options = None
        if low_memory:
            self._options = onnxruntime.RunOptions()
            self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._outputs = [spec.name for spec in graph.outputs]

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        if not any(isinstance(value, DeviceValue) for value in feeds.values()):
            values = self._guarded(
                lambda session: session.run(self._outputs, dict(feeds), self._options)
            )
        else:
            values = [value.numpy() for value in self._bound(feeds, "cpu")]
        return dict(zip(self._outputs, values, strict=True))

    def run_and_keep(
        self, feeds: Mapping[str, Value], host_steps: Mapping[str, HostStep] = NO_STEPS
    ) -> Mapping[str, Value]:
        """The outputs as `OrtDeviceValue`s on the session's device; plain arrays where that is the
        CPU, and for what the host changes, which goes up with the next graph's inputs."""
        if self._place == "cpu":
            return super().run_and_keep(feeds, host_steps)
        self._check(feeds)
        values = self._bound(feeds, self._place)
        kept: dict[str, Value] = {}
        for spec, value in zip(self.graph.outputs, values, strict=True):
            on_device = OrtDeviceValue(value, np.dtype(DTYPES[spec.dtype]))
            step = host_steps.get(spec.name)
            kept[spec.name] = step(on_device.numpy()) if step else on_device
        return kept

    def _bound(self, feeds: Mapping[str, Value], place: str) -> list[Any]:
        """One run through a binding: values on the device are taken from there; OrtValues on
        `place`.
        """

        def run(session: Any) -> list[Any]:
            binding = session.io_binding()
            for name, value in feeds.items():
                if isinstance(value, OrtDeviceValue):
                    binding.bind_ortvalue_input(name, value.ort)
                else:
                    array = value.numpy() if isinstance(value, DeviceValue) else value
                    binding.bind_cpu_input(name, np.ascontiguousarray(array))
            for name in self._outputs:
                binding.bind_output(name, place)
            session.run_with_iobinding(binding)
            found: list[Any] = binding.get_outputs()
            return found

        outputs: list[Any] = self._guarded(run)
        return outputs

    def _guarded(self, use: Any) -> Any:
        """`use` of the session, with ONNX Runtime's errors as ours."""
        session = self._session
        if session is None:
            raise EngineError(f"{self.graph.stage}: the session is closed; load the bundle again")
        try:
            return use(session)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                f"{self.graph.stage}: ONNX Runtime failed: {first_line(error)}"
            ) from error

    def close(self) -> None:
        self._session = None


class OnnxRuntimeEngine(Engine):
    """Opens ONNX files on the CPU or the CUDA provider."""

    name = "onnxruntime"

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        wanted = self.providers()[0][0]
        available = onnxruntime.get_available_providers()
        if wanted not in available:
            raise EngineError(
                f"this onnxruntime has no {wanted} (it has {', '.join(available)}); for a GPU:"
                f" {pip_install('gpu')}, in an environment without the extra [cpu]"
            )
        if wanted != CPU and hasattr(onnxruntime, "preload_dlls"):
            with contextlib.redirect_stdout(io.StringIO()):  # it prints what it does not find
                onnxruntime.preload_dlls(
                    directory=""
                )  # CUDA and cuDNN from pip's packages, where there are some

    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """The providers to ask for, in order, with their options; the CPU comes after them unless
        `strict`.
        """
        return [(CPU, {})] if self.options.device == "cpu" else [(CUDA, CUDA_OPTIONS)]

    def build(self, graph: Graph, progress: Progress = silent) -> Compiled:
        """The graph's own file."""
        return Compiled(graph.path, {}, 0.0, built_now=False)

    def open(self, graph: Graph, artifact: Path) -> Session:
        """Loads the graph and checks that the provider that was asked for is the one that runs."""
        if self.options.device == "cpu" and graph.precision == "fp16":
            entries = {
                "session.model_external_initializers_file_folder_path": str(
                    artifact.parent.resolve()
                )
            }
            return self._session(
                graph, self.start(graph, widened(artifact), self.providers(), entries)
            )
        return self._session(graph, self.start(graph, str(artifact), self.providers()))

    def open_in_order(self, graph: Graph, artifact: Path) -> Session:
        """`open`, with nodes that run as soon as they can, in the file's order; usually they follow
        the outputs.
        """
        return self._session(
            graph, self.start(graph, str(artifact), self.providers(), in_order=True)
        )

    def _session(self, graph: Graph, session: Any) -> Session:
        providers = tuple(session.get_providers())
        precision = graph.precision
        if self.options.device == "cpu" and precision in ("fp16", "bf16"):
            precision = "fp32"  # their weights were widened
        info = SessionInfo(
            self.name,
            onnxruntime.__version__,
            self.options.device,
            providers,
            nodes_by(session),
            precision,
        )
        return OnnxRuntimeSession(
            graph, info, session, self.options.device, self.options.low_memory
        )

    def start(
        self,
        graph: Graph,
        model: str | bytes,
        providers: list[tuple[str, dict[str, str]]],
        entries: Mapping[str, str] | None = None,
        in_order: bool = False,
    ) -> Any:
        """An InferenceSession of `model`, a path or an ONNX file's bytes. Raises EngineError.

        entries: more of ONNX Runtime's session configuration.
        """
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        # planning one block for all activations doubles SAM's memory (7.0 against 3.8 GB at full
        # size, batch 1)
        options.enable_mem_pattern = False
        # idle threads of one graph would spin on the cores that the next graph and the host need
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        if (
            not has_vnni()
        ):  # INT8 products that do not overflow; slower ones, which it would take with VNNI too
            options.add_session_config_entry("session.x64quantprecision", "1")
        options.intra_op_num_threads = self.options.threads or usable_cores()
        if in_order:
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED
        for name, value in (entries or {}).items():
            options.add_session_config_entry(name, value)
        first = providers[0][0]
        if first != CPU:
            if self.options.strict:
                options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
            else:
                providers = [
                    *providers,
                    (CPU, {}),
                ]  # shape arithmetic belongs there; what ran where is in the info
        shown = f"what was made of {graph.path}" if isinstance(model, bytes) else model
        try:
            # without fall-back a provider that cannot be loaded is an exception, though one that
            # fails later is not
            session = onnxruntime.InferenceSession(
                model, options, providers=providers, enable_fallback=False
            )
        except Exception as error:
            raise EngineError(
                f"{graph.stage}: ONNX Runtime cannot open {shown}: {first_line(error)}"
            ) from error
        running = session.get_providers()
        if running[0] != first:
            raise EngineError(
                f"{graph.stage}: {first} was asked for and did not start (running:"
                f" {', '.join(running)}); check the GPU driver, or ask for --device cpu"
            )
        return session


def nodes_by(session: Any) -> dict[str, int]:
    """How many nodes each provider got; empty where this onnxruntime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return {}
    counts: Counter[str] = Counter()
    for part in tell():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


ENGINE = OnnxRuntimeEngine
