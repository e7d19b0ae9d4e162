"""The contract of an engine: it compiles a graph into an artifact on disk and opens that as a session."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from ris.engines.errors import EngineError

DTYPES = {"float32": np.float32, "int32": np.int32}


def first_line(error: BaseException) -> str:
    """An exception for a one-line message."""
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: name, dtype ("float32" or "int32"), shape with named dynamic axes."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def mismatch(self, array: np.ndarray) -> str | None:
        """Why `array` does not fit, or None where it does."""
        expected = f"{self.dtype} [{', '.join(map(str, self.shape))}]"
        fits = array.ndim == len(self.shape) and all(
            isinstance(want, str) or want == got for want, got in zip(self.shape, array.shape, strict=True)
        )
        if fits and array.dtype == DTYPES[self.dtype]:
            return None
        return f"input {self.name!r} is {array.dtype} {list(array.shape)}, expected {expected}"


@dataclass(frozen=True)
class Graph:
    """A graph to run: its stage name, its ONNX file, and what goes in and out."""

    stage: str
    path: Path
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class EngineOptions:
    """What a user may ask of any engine.

    device: "cpu" or "cuda"; threads: CPU threads per session, None for all cores; strict: refuse to run any node of a
    graph off the device that was asked for.
    """

    device: str = "cpu"
    threads: int | None = None
    strict: bool = False


@dataclass(frozen=True)
class SessionInfo:
    """What really runs: engine and version, device, execution providers in order."""

    engine: str
    version: str
    device: str
    providers: tuple[str, ...]


class Session(ABC):
    """An opened graph. `run` may be called from several threads at once; close it, or use it in a `with` block."""

    def __init__(self, graph: Graph, info: SessionInfo) -> None:
        self.graph = graph
        self.info = info

    def run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the graph once: arrays by input name in, arrays by output name out.

        Raises EngineError for a missing, unknown or misshapen input, after `close`, and where the engine itself fails.
        """
        names = {spec.name for spec in self.graph.inputs}
        problems = [f"input {name!r} is missing" for name in sorted(names - set(feeds))]
        problems += [f"there is no input {name!r}" for name in sorted(set(feeds) - names)]
        problems += [m for spec in self.graph.inputs if spec.name in feeds and (m := spec.mismatch(feeds[spec.name]))]
        if problems:
            raise EngineError(f"{self.graph.stage}: {'; '.join(problems)}")
        return self._run(feeds)

    @abstractmethod
    def _run(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """`run` behind its checks."""

    @abstractmethod
    def close(self) -> None:
        """Gives the session's memory back; may be called twice."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


class Engine(ABC):
    """One way to run graphs. Made by `ris.engines.create`, never by name elsewhere."""

    def __init__(self, options: EngineOptions) -> None:
        self.options = options

    @abstractmethod
    def compile(self, graph: Graph) -> Path:
        """The artifact to open: made from the graph, or the graph's own file where the engine reads ONNX as it is."""

    @abstractmethod
    def open(self, graph: Graph, artifact: Path) -> Session:
        """A session over the artifact. Raises EngineError where it cannot be loaded or the device is not there."""
