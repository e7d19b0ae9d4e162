"""Running what OpenVINO compiled: a graph in one part or in two, for several threads at once."""

from __future__ import annotations

import queue
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ris.engines.base import DeviceValue, Graph, Session, SessionInfo, Value, first_line
from ris.engines.errors import EngineError

_SAID = 3  # lines of OpenVINO's words that are shown


def reason(error: RuntimeError) -> str:
    """OpenVINO's own words, without the places in its source."""
    lines = [line.strip() for line in str(error).splitlines()]
    # where it was, and what it was doing: the reason comes after
    places = ("Exception from", "Check '", "[", "Loading input model")
    said = [line for line in lines if line and not line.startswith(places)]
    return "; ".join(said[:_SAID]) or first_line(error)


@dataclass(frozen=True)
class Imported:
    """A compiled graph that OpenVINO has loaded."""

    parts: list[Any]
    """The compiled models, in the order in which they run: one, or two."""

    blobs: list[Any]
    """The memory that the parts were imported from; they may go on using the weights in it."""

    fixed: Mapping[str, int]
    """The axes whose length was fixed, and their lengths."""


class OpenVinoSession(Session):
    """A compiled graph, with as many requests for each part as threads that use it at once."""

    def __init__(
        self, graph: Graph, info: SessionInfo, imported: Imported, low_memory: bool
    ) -> None:
        """Takes over a compiled graph.

        Args:
            graph: The graph that was compiled.
            info: What really runs.
            imported: What OpenVINO has loaded.
            low_memory: Give the memory of values back when no request runs.

        Raises:
            EngineError: Where the compiled graph lacks one of the graph's outputs.
        """
        super().__init__(graph, info)
        self._parts, self._blobs = imported.parts, imported.blobs
        self._fixed, self._low_memory = imported.fixed, low_memory
        self._running, self._lock = 0, threading.Lock()
        self._idle: queue.SimpleQueue[list[Any]] = queue.SimpleQueue()

        given = {spec.name for spec in graph.inputs}
        wanted = {spec.name for spec in graph.outputs}
        between = {graph.bf16_from} if graph.bf16_from else set()
        # for each part its inputs and outputs, index -> name
        self._inputs = [_named(part.inputs, given | between) for part in self._parts]
        self._outputs = [_named(part.outputs, wanted | between) for part in self._parts]
        if missing := wanted - {name for part in self._outputs for name in part.values()}:
            raise EngineError(
                f"{graph.stage}: the compiled graph has no {missing.pop()!r}; compile it again"
            )
        if self.at_once > 1:  # each request runs in a thread of its own
            self._lost_by_fork = "a model that shares the cores (throughput) does not survive fork"

    @property
    def at_once(self) -> int:
        """The number of requests that run side by side."""
        return int(self._parts[-1].get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS"))

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        parts = self._parts
        values = self._given(feeds)

        with self._lock:
            self._running += 1
        try:
            requests = self._idle.get_nowait()
        except queue.Empty:
            requests = [part.create_infer_request() for part in parts]
        try:
            return self._infer(requests, values)
        except RuntimeError as error:
            raise EngineError(f"{self.graph.stage}: OpenVINO failed: {reason(error)}") from error
        finally:
            self._idle.put(requests)
            with self._lock:
                self._running -= 1
                if self._low_memory and not self._running:
                    for part in parts:
                        part.release_memory()

    def _given(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        """The inputs as contiguous arrays. Raises EngineError for more than was compiled for."""
        values = {}
        for spec in self.graph.inputs:
            value = feeds[spec.name]
            for axis, size in zip(spec.shape, value.shape, strict=True):
                if isinstance(axis, str) and size != self._fixed.get(axis, size):
                    raise EngineError(
                        f"{self.graph.stage}: compiled for one of {axis} at a time, got {size}; "
                        "load the bundle with a larger max_batch or max_expressions"
                    )
            array = value.numpy() if isinstance(value, DeviceValue) else value
            values[spec.name] = np.ascontiguousarray(array)
        return values

    def _infer(self, requests: list[Any], values: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Runs the parts one after the other; each adds its outputs to `values`."""
        for request, inputs, outputs in zip(requests, self._inputs, self._outputs, strict=True):
            fed = {index: values[name] for index, name in inputs.items()}
            request.infer(fed, share_inputs=True)
            for index, name in outputs.items():
                values[name] = request.get_output_tensor(index).data
        # the requests' own memory is written again by their next run
        return {spec.name: values[spec.name].copy() for spec in self.graph.outputs}

    def _close(self) -> None:
        self._parts, self._blobs = [], []
        self._idle = queue.SimpleQueue()


def _named(ports: list[Any], names: set[str]) -> dict[int, str]:
    """The one of `names` that each input or output of a compiled graph has, by its index."""
    return {i: name for i, port in enumerate(ports) for name in port.get_names() if name in names}
