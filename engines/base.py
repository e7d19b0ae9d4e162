"""The contract of an engine: it compiles a graph into an artifact on disk and opens that as a
session.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ris.engines.errors import EngineError

DTYPES = {"float32": np.float32, "int32": np.int32}

Progress = Callable[[str, str, float | None], None]
"""Called while an engine compiles: stage, what is going on, and how much of it is done (0 to 1,
None: unknown).
"""


def silent(stage: str, what: str, done: float | None) -> None:
    """The Progress of those who do not look."""


def first_line(error: BaseException) -> str:
    """An exception for a one-line message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


class DeviceValue(ABC):
    """An array that stayed on the device: what a session gives for `keep`, and what another one of
    the same engine takes as it is. It has the device memory to itself and gives it back when it is
    closed or forgotten.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @abstractmethod
    def numpy(self) -> np.ndarray:
        """A copy on the host. Raises EngineError where the copy fails or the value is closed."""

    @abstractmethod
    def close(self) -> None:
        """Gives the device memory back; may be called twice."""


Value = np.ndarray | DeviceValue


@dataclass(frozen=True)
class HostStep:
    """What the host makes of an output before another graph takes it, map by map, so that a device
    can send and fetch some maps while the host works on others.

    function: float32 [n, h, w] -> [n, *size], each map on its own; size: (H, W).
    """

    function: Callable[[np.ndarray], np.ndarray]
    size: tuple[int, int]

    def __call__(self, value: np.ndarray) -> np.ndarray:
        """value [..., h, w] -> [..., H, W]."""
        return self.function(value.reshape(-1, *value.shape[-2:])).reshape(
            *value.shape[:-2], *self.size
        )


NO_STEPS: Mapping[str, HostStep] = {}


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: name, dtype ("float32" or "int32"), shape with named dynamic
    axes.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def mismatch(self, array: Value) -> str | None:
        """Why `array` does not fit, or None where it does."""
        expected = f"{self.dtype} [{', '.join(map(str, self.shape))}]"
        fits = array.ndim == len(self.shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip(self.shape, array.shape, strict=True)
        )
        if fits and array.dtype == DTYPES[self.dtype]:
            return None
        return f"input {self.name!r} is {array.dtype} {list(array.shape)}, expected {expected}"


@dataclass(frozen=True)
class Graph:
    """A graph to run: its stage name, its ONNX file, and what goes in and out.

    sha256: of every file it needs, by name, empty where nobody has computed them; precision:
    "fp32", "bf16" or "fp16"; fp32_islands: the nodes of an FP16 graph that stay FP32, by name;
    sampling: "native" where it has GridSample nodes, "gather" or None; cache: the folder for what
    engines compile from it, None for the user's own; bf16: whether bfloat16 will do for it;
    bf16_from: the value from which on it will, all that does not depend on it staying FP32, None
    for the whole graph; int8: some of its products are quantised to INT8.
    """

    stage: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    sha256: Mapping[str, str] = field(default_factory=dict)
    precision: str = "fp32"
    fp32_islands: frozenset[str] = frozenset()
    sampling: str | None = None
    cache: Path | None = None
    bf16: bool = True
    bf16_from: str | None = None
    int8: bool = False


def require_gathers(graph: Graph, engine: str) -> None:
    """Raises EngineError for a graph with GridSample nodes.

    Several versions of TensorRT compute them wrongly. The engines that compile with it call this
    for each graph, and `ris.runtime` for a whole bundle before anything is compiled.
    """
    if graph.sampling == "native":
        raise EngineError(
            f"engine {engine!r} does not run GridSample nodes reliably, and the {graph.stage} in"
            f" {graph.path} has some; export the bundle again with --engine {engine} or"
            " --grid-sample gather"
        )


@dataclass(frozen=True)
class EngineOptions:
    """What a user may ask of any engine.

    device: "cpu", "cuda", or "auto" for the engine's first; threads: CPU threads per session, None
    for all cores; strict: refuse to run any node of a graph off the device that was asked for.

    For engines that compile: max_batch, max_expressions: the most images and expressions of one
    call; build: compile what is not in the cache, False to refuse instead; workspace: bytes a plan
    may use beyond its weights and values, None for the engine's own limit; version_compatible: also
    runs on later versions of the engine; hardware_compatible: also runs on later GPU generations;
    strip_weights: leave the weights out of the plan and take them from the graph.

    For engines that choose the precision themselves: compute: "fp32", "bf16" or "fp16", None for
    the graph's own. low_memory: give the memory of a graph's values back after each run; the next
    run has to get it again. throughput: share the cores among the requests of several threads, in
    place of all cores for each in turn.
    """

    device: str = "auto"
    threads: int | None = None
    strict: bool = False
    max_batch: int = 1
    max_expressions: int = 8
    build: bool = True
    workspace: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    strip_weights: bool = False
    compute: str | None = None
    low_memory: bool = False
    throughput: bool = False


@dataclass(frozen=True)
class SessionInfo:
    """What really runs: engine and version, device, execution providers in order, and how many of
    the graph's nodes each of them got, where the engine tells; precision: what most of its matrix
    products and convolutions compute in, None where the engine does not tell.
    """

    engine: str
    version: str
    device: str
    providers: tuple[str, ...]
    nodes: Mapping[str, int] = field(default_factory=dict)
    precision: str | None = None

    @property
    def where(self) -> str:
        """The providers for people, with their nodes: "CUDAExecutionProvider 812 nodes,
        CPUExecutionProvider 9".
        """
        counted = [f"{name} {self.nodes[name]}" for name in self.providers if name in self.nodes]
        return ", ".join([f"{counted[0]} nodes", *counted[1:]] if counted else self.providers)


class Session(ABC):
    """An opened graph. `run` may be called from several threads at once; close it, or use it in a
    `with` block.
    """

    def __init__(self, graph: Graph, info: SessionInfo) -> None:
        self.graph = graph
        self.info = info

    def run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        """Runs the graph once: values by input name in, arrays by output name out.

        Raises EngineError for a missing, unknown or misshapen input, after `close`, and where the
        engine itself fails.
        """
        self._check(feeds)
        return self._run(feeds)

    def run_and_keep(
        self, feeds: Mapping[str, Value], host_steps: Mapping[str, HostStep] = NO_STEPS
    ) -> Mapping[str, Value]:
        """`run`, but outputs may stay on the device, for sessions of the same engine. Plain arrays
        on a CPU.

        host_steps: by output name; such an output is what the step makes of it.
        """
        found = self.run(feeds)
        return {
            name: host_steps[name](value) if name in host_steps else value
            for name, value in found.items()
        }

    def _check(self, feeds: Mapping[str, Value]) -> None:
        """Raises EngineError for a missing, unknown or misshapen input."""
        names = {spec.name for spec in self.graph.inputs}
        problems = [f"input {name!r} is missing" for name in sorted(names - set(feeds))]
        problems += [f"there is no input {name!r}" for name in sorted(set(feeds) - names)]
        problems += [
            m
            for spec in self.graph.inputs
            if spec.name in feeds and (m := spec.mismatch(feeds[spec.name]))
        ]
        if problems:
            raise EngineError(f"{self.graph.stage}: {'; '.join(problems)}")

    @abstractmethod
    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        """`run` behind its checks."""

    @abstractmethod
    def close(self) -> None:
        """Gives the session's memory back; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()


@dataclass(frozen=True)
class Compiled:
    """What came of a graph. report: what the engine said about it, as JSON, empty where nothing is
    compiled; seconds: that the build took, whenever it was; built_now: not from the cache.
    """

    artifact: Path
    report: Mapping[str, Any]
    seconds: float
    built_now: bool


class Engine(ABC):
    """One way to run graphs. Made by `ris.engines.create`, never by name elsewhere."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    @abstractmethod
    def build(self, graph: Graph, progress: Progress = silent) -> Compiled:
        """The artifact to open: made from the graph, or the graph's own file where the engine reads
        ONNX as it is.

        Raises EngineError where the graph does not compile, and where it would have to under
        `build=False`.
        """

    def compile(self, graph: Graph, progress: Progress = silent) -> Path:
        """`build`'s artifact alone."""
        return self.build(graph, progress).artifact

    @abstractmethod
    def open(self, graph: Graph, artifact: Path) -> Session:
        """A session over the artifact. Raises EngineError where it cannot be loaded or the device
        is not there.
        """
