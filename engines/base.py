"""The contract of an engine: it compiles a graph into a file and opens that file as a session."""

from __future__ import annotations

import ctypes
import os
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from ris.engines.errors import EngineError, PlanError
from ris.engines.gate import Gate

# the contract's own names, wherever they are defined
from ris.engines.values import NO_STEPS as NO_STEPS
from ris.engines.values import DeviceValue as DeviceValue
from ris.engines.values import HostStep as HostStep
from ris.engines.values import Value as Value

DTYPES = {"float32": np.float32, "float16": np.float16, "int32": np.int32}
"""The dtypes of a graph's inputs and outputs, by the name that a `TensorSpec` has."""

Progress = Callable[[str, str, float | None], None]
"""Called while an engine compiles: stage, what it does now, and the share that is done.

The share is 0 to 1, or None where it is unknown.
"""


def silent(stage: str, what: str, done: float | None) -> None:
    """A `Progress` that shows nothing."""


def first_line(error: BaseException) -> str:
    """The first line of an exception's text; the name of its class where it has no text."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph."""

    name: str
    """Its name in the graph."""

    dtype: str
    """One of `DTYPES`."""

    shape: tuple[int | str, ...]
    """The length of each axis; the name of one whose length differs from call to call: "images" or
    "expressions", as many as there are, or "tokens", one of `Graph.lengths`."""

    def mismatch(self, array: Value) -> str | None:
        """Why `array` does not fit, or None where it does."""
        fits = array.ndim == len(self.shape) and all(
            isinstance(want, str) or want == got
            for want, got in zip(self.shape, array.shape, strict=True)
        )
        if fits and array.dtype == DTYPES[self.dtype]:
            return None
        expected = f"{self.dtype} [{', '.join(map(str, self.shape))}]"
        return f"input {self.name!r} is {array.dtype} {list(array.shape)}, expected {expected}"


@dataclass(frozen=True)
class Graph:
    """A graph to run: its ONNX file, and what an engine has to know about it."""

    stage: str
    """The name of the stage; error messages begin with it."""

    path: Path
    """The ONNX file."""

    inputs: tuple[TensorSpec, ...]
    """What goes in."""

    outputs: tuple[TensorSpec, ...]
    """What comes out."""

    sha256: Mapping[str, str] = field(default_factory=dict)
    """The sha256 of every file that the graph needs, by name; empty where they are not known."""

    precision: str = "fp32"
    """What the graph is written in: "fp32", "bf16" or "fp16"."""

    fp32_islands: frozenset[str] = frozenset()
    """The names of the nodes that stay FP32 in an FP16 graph."""

    sampling: str | None = None
    """How the graph samples: "native" for GridSample nodes, "gather", or None where it does not."""

    cache: Path | None = None
    """The folder for what engines compile from the graph; None for the user's own."""

    bf16: bool = True
    """Whether bfloat16 is precise enough for the graph."""

    bf16_from: str | None = None
    """The value from which on the graph may be bfloat16; None where all of it may.

    What does not depend on that value stays FP32.
    """

    int8: bool = False
    """Whether some of the graph's products are quantised to INT8."""

    weights: str | None = None
    """What the graph's matrices are stored in where that is "int8" or "int4" and the products are
    of floating point; None else."""

    lengths: tuple[int, ...] = ()
    """The lengths that the axis "tokens" may have, ascending; empty where no input has it."""


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
    """What a user may ask of an engine.

    Every engine honours the fields from `device` to `build`. Which of the others an engine honours
    is in its `EngineSpec.options`; `create` refuses the rest.
    """

    device: str = "auto"
    """One of `DEVICE_NAMES`, or "cuda:1" for the second GPU; "auto" for the engine's first."""

    threads: int | None = None
    """CPU threads of a session; None for all cores that this process may use."""

    strict: bool = False
    """Refuse to run a node off the device, or a layer wider than its graph's precision."""

    max_batch: int = 1
    """The most images of one call, for engines that compile."""

    max_expressions: int = 8
    """The most expressions of one call, for engines that compile."""

    build: bool = True
    """Compile what is not in the cache; False refuses instead."""

    exact: bool = False
    """Take from the cache what was compiled with these very options; False: what will do."""

    workspace: int | None = None
    """Bytes that a plan may use beside its weights and values; None for the engine's own limit."""

    version_compatible: bool = False
    """Compile plans that later versions of the engine load too."""

    hardware_compatible: bool = False
    """Compile plans that later GPU generations load too."""

    strip_weights: bool = False
    """Leave the weights out of the plan, and take them from the graph when it is opened."""

    compute: str | None = None
    """What to compute in, one of `COMPUTES`. None: the graph's own; on a CPU FP32 for FP16."""

    low_memory: bool = False
    """Give the memory of a graph's values back after each run; the next run has to get it again."""

    throughput: bool = False
    """Share the cores among the threads that use a session; False: all cores for each in turn."""

    cuda_graphs: bool = True
    """Launch CUDA graphs where shapes come again, in engines that do."""

    int8_activations: bool = False
    """Round to INT8 what weights in 8 or 4 bits are multiplied with, on a CPU.

    Both CPU engines do it by themselves where they are not told otherwise. It is faster, and costs
    most where single channels stand out.
    """


@dataclass(frozen=True)
class SessionInfo:
    """What really runs a graph."""

    engine: str
    """The engine's name in the table."""

    version: str
    """The engine's version."""

    device: str
    """The device, as `EngineOptions.device` names it."""

    providers: tuple[str, ...]
    """What executes the nodes, in the engine's own names and in its order."""

    nodes: Mapping[str, int] = field(default_factory=dict)
    """The number of the graph's nodes by provider; empty where the engine does not tell."""

    precision: str | None = None
    """What most of the matrix products and convolutions compute in; None where it is unknown."""

    weights: str | None = None
    """What the matrices are stored in where that is "int8" or "int4"; None else."""

    activations: str | None = None
    """What such matrices are multiplied with: "int8" where it is rounded to that before; None where
    it is not, or there are no such matrices."""

    @property
    def computes(self) -> str:
        """The precision for people, with that of the weights and of what they are multiplied with.

        For instance "fp32, int4 weights". Empty where nothing is known.
        """
        parts = [self.precision or ""]
        parts += [f"{self.weights} weights"] if self.weights else []
        parts += [f"{self.activations} activations"] if self.activations else []
        return ", ".join(filter(None, parts))

    @property
    def where(self) -> str:
        """The providers and their nodes, for people.

        For instance "CUDAExecutionProvider 812 nodes, CPUExecutionProvider 9".
        """
        counted = [f"{name} {self.nodes[name]}" for name in self.providers if name in self.nodes]
        return ", ".join([f"{counted[0]} nodes", *counted[1:]] if counted else self.providers)


class Session(ABC):
    """An opened graph.

    `run` may be called from several threads at once. Close a session, or use it in a `with` block.

    The child of a fork does not have the engine's threads. On a CPU a session that needs no thread
    of its own to run still runs there, on one core. The engine's objects are never destroyed in the
    child, because their destructors would wait for those threads.
    """

    graph: Graph
    """The graph that was opened."""

    info: SessionInfo
    """What really runs it."""

    notes: list[str]
    """What the user should know, such as why there is no CUDA graph."""

    def __init__(self, graph: Graph, info: SessionInfo) -> None:
        self.graph, self.info, self.notes = graph, info, []
        self._gate = Gate(f"{graph.stage}: the session is closed; load the bundle again")
        # why the child of a fork cannot run it, empty where it can
        self._lost_by_fork = (
            "" if info.device == "cpu" else "a model on a GPU does not survive fork"
        )
        self._inherited, self._unusable = False, ""
        _SESSIONS.add(self)

    def run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        """Runs the graph once.

        Args:
            feeds: The inputs by name.

        Returns:
            The outputs by name.

        Raises:
            EngineError: For an input that is missing, unknown or does not fit, after `close`, where
                the engine itself fails, and in the child of a fork that lost what it needs.
        """
        self._check(feeds)
        with self._gate:
            return self._run(feeds)

    def run_and_keep(
        self, feeds: Mapping[str, Value], host_steps: Mapping[str, HostStep] = NO_STEPS
    ) -> Mapping[str, Value]:
        """Runs the graph once and leaves its outputs on the device.

        On a CPU the outputs are plain arrays.

        Args:
            feeds: The inputs by name.
            host_steps: By output name: what the host makes of that output before it is returned.

        Returns:
            The outputs by name, for sessions of the same engine.

        Raises:
            EngineError: As in `run`.
        """
        self._check(feeds)
        with self._gate:
            return self._run_and_keep(feeds, host_steps)

    def close(self) -> None:
        """Waits for runs that have begun, then gives the memory back; may be called twice.

        A run's own thread may close as well; the memory is then given back after that run.
        """
        self._gate.close(_leave if self._inherited else self._close)

    def _check(self, feeds: Mapping[str, Value]) -> None:
        """Raises EngineError for an input that is missing, unknown or does not fit.

        Does so as well where a fork has made the session unusable.
        """
        if self._unusable:
            raise EngineError(f"{self.graph.stage}: {self._unusable}")
        names = {spec.name for spec in self.graph.inputs}
        problems = [f"input {name!r} is missing" for name in sorted(names - set(feeds))]
        problems += [f"there is no input {name!r}" for name in sorted(set(feeds) - names)]
        for spec in self.graph.inputs:
            if spec.name in feeds and (reason := spec.mismatch(feeds[spec.name])):
                problems.append(reason)

        if problems:
            raise EngineError(f"{self.graph.stage}: {'; '.join(problems)}")

    @abstractmethod
    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        """`run` after its checks."""

    def _run_and_keep(
        self, feeds: Mapping[str, Value], host_steps: Mapping[str, HostStep]
    ) -> Mapping[str, Value]:
        """`run_and_keep` after its checks."""
        found = self._run(feeds)
        return {
            name: host_steps[name](value) if name in host_steps else value
            for name, value in found.items()
        }

    @abstractmethod
    def _close(self) -> None:
        """Gives the session's memory back; called once, when nothing runs."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        at: TracebackType | None,
    ) -> None:
        self.close()

    def _after_fork(self, busy: bool) -> None:
        """Keeps the engine's objects in the child of a fork.

        busy: whether another thread of the parent was inside a session.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self))  # to the very end of the interpreter
        self._inherited = True
        why = self._lost_by_fork
        if busy and not why:
            why = "the process was forked while the model was answering"
        self._unusable = why and f"{why}; load the bundle in the process that asks"


_SESSIONS: weakref.WeakSet[Session] = weakref.WeakSet()


def _leave() -> None:
    """Gives nothing back."""


def _after_fork() -> None:
    # what one session's threads have locked may be the engine's own, for all sessions
    busy = any(session._gate.abandoned for session in _SESSIONS)
    for session in list(_SESSIONS):
        session._after_fork(busy)


# after that of the gates, which is registered first
os.register_at_fork(after_in_child=_after_fork)


@dataclass(frozen=True)
class Compiled:
    """A compiled graph on disk, and what is known about its build."""

    artifact: Path
    """The file that `Engine.open` takes."""

    report: Mapping[str, Any]
    """What the engine said about the build, as JSON; empty where nothing is compiled."""

    seconds: float
    """How long the build took, now or when it was made."""

    built_now: bool
    """Whether it was built by this call; False where it came from the cache."""


class Engine(ABC):
    """One way to run graphs, made by `ris.engines.create`."""

    options: EngineOptions
    """What the user asked for."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    @property
    def here(self) -> tuple[str, str]:
        """Its whole version and the device's features: what a measurement of it depends on."""
        return "", self.options.device

    def computes(self) -> list[str]:
        """What it can be asked to compute in; empty where it leaves the precision to the graph."""
        return []

    def gain(self, compute: str) -> float:
        """How many times as fast as in FP32 it multiplies in `compute` here.

        0 where it does not, and where it leaves the precision to the graph.
        """
        return 0.0

    @abstractmethod
    def build(self, graph: Graph, progress: Progress = silent, *, anew: bool = False) -> Compiled:
        """The file to open: compiled from the graph, or the graph's own file.

        The graph's own file serves an engine that reads ONNX as it is.

        Args:
            graph: The graph.
            progress: Called while it compiles.
            anew: Compile also what is in the cache, and replace it.

        Raises:
            EngineError: Where the graph does not compile, and where it would have to be compiled
                although `EngineOptions.build` is False.
        """

    def compile(self, graph: Graph, progress: Progress = silent) -> Path:
        """The artifact of `build` alone."""
        return self.build(graph, progress).artifact

    @abstractmethod
    def open(self, graph: Graph, artifact: Path) -> Session:
        """A session that runs the artifact.

        Raises:
            PlanError: Where the artifact does not load, and may when it is compiled again.
            EngineError: Where the device is not there, or the graph itself cannot be loaded.
        """

    def load(self, graph: Graph, progress: Progress = silent) -> Session:
        """A session that runs the graph, compiled where need be.

        What the cache has and does not load is compiled again, once.

        Raises:
            EngineError: As in `build` and `open`.
        """
        compiled = self.build(graph, progress)
        try:
            session = self.open(graph, compiled.artifact)
        except PlanError as error:
            if compiled.built_now or not self.options.build:
                raise
            progress(graph.stage, f"not used: {error}", None)
            compiled = self.build(graph, progress, anew=True)
            session = self.open(graph, compiled.artifact)
        session.notes += compiled.report.get("notes", [])
        return session

    def most_compiled(self, graph: Graph) -> int | None:
        """The most expressions that what is compiled already takes; 0 where nothing is.

        None where it takes any number, and for an engine that compiles nothing.
        """
        return None
