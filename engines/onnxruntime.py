"""ONNX Runtime: the portable default.

Providers are explicit, and checked after a session is created: nothing falls back unseen. ONNX
Runtime reads the bundle's graphs as they are, so there is nothing to compile. On a GPU, values are
bound rather than passed, and what the next graph needs stays there. Only the CPU has been run so
far.
"""

from __future__ import annotations

import contextlib
import io
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from ris import pip_install
from ris.engines import cuda
from ris.engines.base import (
    DTYPES,
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
from ris.engines.devices import index_of, kind_of
from ris.engines.errors import EngineError
from ris.engines.linked import linked_weights
from ris.engines.onnx_int8 import int8_elements, mostly_int8
from ris.engines.onnx_widen import widened
from ris.engines.processor import has_vnni, usable_cores

CPU, CUDA = "CPUExecutionProvider", "CUDAExecutionProvider"

CUDA_OPTIONS = {
    # what is FP32 is so for its precision, and TF32 keeps 10 bits of it
    "use_tf32": "0",
    # the default, an exhaustive search, takes a minute at full size
    "cudnn_conv_algo_search": "HEURISTIC",
    "arena_extend_strategy": "kSameAsRequested",
}
"""The options of the CUDA provider, but for the number of the GPU."""

MOST_WIDENED = 4 << 30
"""The most bytes that weights in 8 bits are widened to when a session is opened."""

# how weights in 8 or 4 bits are multiplied; by itself it takes 4
_ACCURACY, _IN_FP32, _IN_INT8 = "session.qdq_matmulnbits_accuracy_level", "1", "4"
# DequantizeLinear is then a constant, and is computed
_WIDENED_ONCE = {"session.disable_quant_qdq": "1"}
# or stays a node that makes FP32 of a matrix, whose memory the next one takes
_IN_EACH_RUN = {"optimization.disable_specified_optimizers": "QDQSelectorActionTransformer"}

_DESCRIPTORS = Path("/proc/self/fd")

# versions without it do not refuse weights outside of the graph's folder
_FROM_MEMORY = "add_external_initializers_from_files_in_memory"


class OrtDeviceValue(DeviceValue):
    """An OrtValue, on whichever device it lies."""

    def __init__(self, value: Any, dtype: np.dtype) -> None:
        self._value: Any = value
        self.shape, self.dtype = tuple(value.shape()), dtype

    @property
    def ort(self) -> Any:
        """The OrtValue.

        Raises:
            EngineError: After `close`.
        """
        if self._value is None:
            raise EngineError("the value on the device was closed; encode the image again")
        return self._value

    def numpy(self) -> np.ndarray:
        array: np.ndarray = self.ort.numpy()
        return array

    def close(self) -> None:
        self._value = None


class OnnxRuntimeSession(Session):
    """One InferenceSession.

    ONNX Runtime allows `run` from several threads; each run has a binding of its own.
    """

    def __init__(
        self,
        graph: Graph,
        info: SessionInfo,
        session: Any,
        place: str = "cpu",
        low_memory: bool = False,
    ) -> None:
        """Takes over an InferenceSession.

        Args:
            graph: The graph that it runs.
            info: What really runs.
            session: The InferenceSession.
            place: The device on which `run_and_keep` leaves its outputs, such as "cuda:1"; "cpu"
                for plain arrays.
            low_memory: On a CPU, give the memory of values back after each run.
        """
        super().__init__(graph, info)
        self._session, self._place = session, place
        self._options = None
        if low_memory:
            self._options = onnxruntime.RunOptions()
            self._options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
        self._outputs = [spec.name for spec in graph.outputs]

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        if any(isinstance(value, DeviceValue) for value in feeds.values()):
            values = [value.numpy() for value in self._bound(feeds, "cpu")]
        else:
            values = self._guarded(
                lambda session: session.run(self._outputs, dict(feeds), self._options)
            )
        return dict(zip(self._outputs, values, strict=True))

    def _run_and_keep(
        self, feeds: Mapping[str, Value], host_steps: Mapping[str, HostStep]
    ) -> Mapping[str, Value]:
        """Runs the graph once and leaves its outputs on the session's device.

        Outputs are plain arrays where that is the CPU, and so is what the host changes: it goes to
        the device with the next graph's inputs.
        """
        if self._place == "cpu":
            return super()._run_and_keep(feeds, host_steps)
        values = self._bound(feeds, self._place)

        kept: dict[str, Value] = {}
        for spec, value in zip(self.graph.outputs, values, strict=True):
            on_device = OrtDeviceValue(value, np.dtype(DTYPES[spec.dtype]))
            step = host_steps.get(spec.name)
            kept[spec.name] = step(on_device.numpy()) if step else on_device
        return kept

    def _bound(self, feeds: Mapping[str, Value], place: str) -> list[Any]:
        """Runs the graph once through a binding, which takes values on the device from there.

        The outputs are OrtValues on `place`, in the graph's order.
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
                binding.bind_output(name, kind_of(place), index_of(place))
            session.run_with_iobinding(binding)
            found: list[Any] = binding.get_outputs()
            return found

        return self._guarded(run)

    def _guarded(self, use: Callable[[Any], list[Any]]) -> list[Any]:
        """What `use` makes of the InferenceSession, with ONNX Runtime's errors as EngineError."""
        try:
            return use(self._session)
        except EngineError:
            raise
        except Exception as error:
            raise EngineError(
                f"{self.graph.stage}: ONNX Runtime failed: {first_line(error)}"
            ) from error

    def _close(self) -> None:
        self._session = None


class OnnxRuntimeEngine(Engine):
    """Opens ONNX files on the CPU or the CUDA provider."""

    name = "onnxruntime"
    """The engine's name in the table."""

    def __init__(self, options: EngineOptions) -> None:
        """Checks that this onnxruntime has the provider.

        Raises:
            EngineError: Where it does not.
        """
        super().__init__(options)
        wanted = self.providers()[0][0]
        if problem := provider_problem(wanted):
            raise EngineError(problem)
        if wanted != CPU:
            index = index_of(options.device)
            # ONNX Runtime itself says of the first GPU what is wrong
            if index and (problem := cuda.gpu_problem(index)):
                raise EngineError(problem)
            cuda.note_use()
        if wanted != CPU and hasattr(onnxruntime, "preload_dlls"):
            # it loads CUDA and cuDNN from pip's packages, and prints what it does not find
            with contextlib.redirect_stdout(io.StringIO()):
                onnxruntime.preload_dlls(directory="")

    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """The providers to ask for, in order, with their options.

        The CPU comes after them unless `EngineOptions.strict` is set.
        """
        return [(CPU, {})] if self.options.device == "cpu" else [(CUDA, self.cuda_options())]

    def cuda_options(self) -> dict[str, str]:
        """The options of the CUDA provider."""
        return {"device_id": str(index_of(self.options.device)), **CUDA_OPTIONS}

    def build(self, graph: Graph, progress: Progress = silent, *, anew: bool = False) -> Compiled:
        """The graph's own file."""
        return Compiled(graph.path, {}, 0.0, built_now=False)

    def open(self, graph: Graph, artifact: Path) -> Session:
        """A session that runs the ONNX file, on the provider that was asked for.

        Raises:
            EngineError: Where the file cannot be loaded or the provider does not start.
        """
        with _named_in_utf8(artifact) as file:
            of_artifact = replace(graph, path=file)
            entries = self._weight_entries(of_artifact)
            if self.options.device == "cpu" and graph.precision == "fp16":
                # where the data file is, which the bytes do not name
                folder = file.parent.resolve() if file == artifact else file.parent
                entries["session.model_external_initializers_file_folder_path"] = str(folder)
                session = self.start(of_artifact, widened(file), self.providers(), entries)
            else:
                session = self.start(of_artifact, str(file), self.providers(), entries)
        return self._session(graph, session)

    def open_in_order(self, graph: Graph, artifact: Path) -> Session:
        """`open`, with nodes that run as soon as they can, in the order of the file.

        Usually nodes run in the order in which the outputs need them.

        Raises:
            EngineError: As in `open`.
        """
        with _named_in_utf8(artifact) as file:
            of_artifact = replace(graph, path=file)
            entries = self._weight_entries(of_artifact)
            session = self.start(of_artifact, str(file), self.providers(), entries, in_order=True)
        return self._session(graph, session)

    def _session(self, graph: Graph, session: Any) -> Session:
        """A session over an InferenceSession."""
        info = SessionInfo(
            engine=self.name,
            version=onnxruntime.__version__,
            device=self.options.device,
            providers=tuple(session.get_providers()),
            nodes=nodes_by(session),
            precision=self._computes(graph),
            weights=graph.weights,
            activations="int8" if graph.weights and self._int8_activations() else None,
        )
        return OnnxRuntimeSession(
            graph, info, session, self.options.device, self.options.low_memory
        )

    def _int8_activations(self) -> bool:
        return self.options.device == "cpu" and self.options.int8_activations

    def _weight_entries(self, graph: Graph) -> dict[str, str]:
        """What a session is told of weights in 8 or 4 bits, on the CPU."""
        if graph.weights is None or self.options.device != "cpu":
            return {}
        if self._int8_activations():
            return {_ACCURACY: _IN_INT8}
        if graph.weights == "int8":
            # its kernel for 8 bits that rounds no activations is slower than one of FP32, so the
            # weights are widened: once, or in each run where they are many
            many = int8_elements(graph.path) * 4 > MOST_WIDENED
            return _IN_EACH_RUN if many else _WIDENED_ONCE
        return {_ACCURACY: _IN_FP32}

    def _computes(self, graph: Graph) -> str:
        """What most of the graph's products compute in."""
        on_cpu = self.options.device == "cpu"
        if on_cpu and graph.int8 and mostly_int8(graph.path):
            return "int8"  # there are kernels for it on the CPU alone
        # bfloat16 weights stand behind casts to FP32; FP16 ones are widened on the CPU
        wide = graph.precision == "bf16" or on_cpu
        return "fp32" if wide else graph.precision

    def start(
        self,
        graph: Graph,
        model: str | bytes,
        providers: list[tuple[str, dict[str, str]]],
        entries: Mapping[str, str] | None = None,
        in_order: bool = False,
    ) -> Any:
        """An InferenceSession whose first provider is the one that was asked for.

        Args:
            graph: The graph that it is for; its path is where the model's data files lie.
            model: The path of an ONNX file, or its bytes.
            providers: The providers in order, with their options; the CPU is added here.
            entries: More of ONNX Runtime's session configuration.
            in_order: Run nodes as soon as they can, in the order of the file.

        Raises:
            EngineError: Where ONNX Runtime cannot open the model, or starts another provider.
        """
        options = self._session_options(entries or {}, in_order)
        if graph.weights is None and not has_vnni():
            # INT8 products that do not overflow, but are slower; with VNNI it would take them too.
            # Of narrow weights there are none, and it would break their groups (1.31)
            options.add_session_config_entry("session.x64quantprecision", "1")
        first = providers[0][0]
        if first != CPU and self.options.strict:
            options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        elif first != CPU:
            # shape arithmetic belongs there; what ran where is in the session's info
            providers = [*providers, (CPU, {})]

        try:
            weights = linked_weights(graph)
            if weights and hasattr(options, _FROM_MEMORY):
                sizes = [data.nbytes for data in weights.values()]
                getattr(options, _FROM_MEMORY)(list(weights), list(weights.values()), sizes)
            # without fall-back a provider that cannot be loaded is an exception, though one that
            # fails later is not
            session = onnxruntime.InferenceSession(
                model, options, providers=providers, enable_fallback=False
            )
        except Exception as error:
            shown = f"what was made of {graph.path}" if isinstance(model, bytes) else model
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

    def _session_options(self, entries: Mapping[str, str], in_order: bool) -> Any:
        """The SessionOptions, with `entries` added to the configuration."""
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # errors alone
        # planning one block for all activations doubles SAM's memory (7.0 against 3.8 GB at full
        # size, batch 1)
        options.enable_mem_pattern = False
        options.intra_op_num_threads = self.options.threads or usable_cores()
        if in_order:
            options.execution_order = onnxruntime.ExecutionOrder.PRIORITY_BASED

        # idle threads of one graph would spin on the cores that the next graph and the host need
        options.add_session_config_entry("session.force_spinning_stop", "1")
        # without it `nodes_by` finds nothing
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        for name, value in entries.items():
            options.add_session_config_entry(name, value)
        return options


@contextlib.contextmanager
def _named_in_utf8(file: Path) -> Iterator[Path]:
    """The file under a name that is UTF-8, as ONNX Runtime's bindings want it.

    In a locale without UTF-8, and of a name in another encoding, Python has what it cannot decode
    as surrogates. During the block the folder is then named by its descriptor, where there is such
    a name.
    """
    descriptor = None if _is_utf8(file) else _descriptor(file.parent)
    if descriptor is None:
        yield file
        return
    try:
        yield _DESCRIPTORS / str(descriptor) / file.name
    finally:
        os.close(descriptor)


def _is_utf8(file: Path) -> bool:
    try:
        str(file).encode()
    except UnicodeEncodeError:
        return False
    return True


def _descriptor(folder: Path) -> int | None:
    """The folder, opened; None where it cannot be, or a descriptor is no name here."""
    if _DESCRIPTORS.is_dir():
        with contextlib.suppress(OSError):
            return os.open(folder, os.O_RDONLY)
    return None


def provider_problem(name: str) -> str | None:
    """Why this onnxruntime does not have a provider, or None where it does."""
    available = onnxruntime.get_available_providers()
    if name in available:
        return None
    return (
        f"this onnxruntime has no {name} (it has {', '.join(available)}); for a GPU:"
        f" {pip_install('gpu')}, in an environment without the extra [cpu]"
    )


def nodes_by(session: Any) -> dict[str, int]:
    """The number of nodes of each provider; empty where this onnxruntime does not tell."""
    tell = getattr(session, "get_provider_graph_assignment_info", None)
    if tell is None:
        return {}
    counts: Counter[str] = Counter()
    for part in tell():
        counts[part.ep_name] += len(part.get_nodes())
    return dict(counts)


ENGINE = OnnxRuntimeEngine
