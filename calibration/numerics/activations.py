"""The activations that the products of a graph read, run after run.

Each one is looked at when it has been computed, and then dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper

from ris.calibration.numerics.qdq import Layer
from ris.calibration.numerics.ranges import copy_data
from ris.engines import EngineOptions, Graph, Session, TensorSpec
from ris.engines.onnxruntime import OnnxRuntimeEngine

AT_ONCE = 1 << 27
"""The most elements of activations that one run gives out: half a GB."""

Look = Callable[[str, NDArray[np.float32]], None]
"""Called with an activation's name and values."""

Show = Callable[[Mapping[str, NDArray], Look], None]
"""Runs a graph on inputs, by name, and calls a `Look` once per activation of a group."""


class ActivationReader:
    """A graph that shows its activations, in several runs where they are many."""

    graph: Graph
    """The graph as it was given."""

    groups: list[list[str]]
    """The activations by name, a group per run. A group of more than one holds at most `at_once`
    elements."""

    def __init__(
        self,
        graph: Graph,
        layers: Sequence[Layer],
        folder: Path,
        threads: int | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        """Writes nothing yet.

        Args:
            graph: The graph.
            layers: The products whose activations are shown.
            folder: Where temporary graphs go, and a copy of the weights if they are elsewhere.
            threads: CPU threads. None: all cores.
            at_once: The most elements of activations that one run gives out.
        """
        self.graph = graph
        self.groups = _groups(layers, at_once)
        self._inputs = {spec.name for spec in graph.inputs}
        self._folder, self._threads = folder, threads

    @contextmanager
    def opened(self, names: Sequence[str]) -> Iterator[Show]:
        """A function that takes inputs and shows the activations of a group, each once.

        One group is opened at a time, as each has a session with weights and memory of its own.
        """
        given = [name for name in names if name in self._inputs]
        inner = [name for name in names if name not in self._inputs]
        if self._folder != self.graph.path.parent:
            copy_data(self.graph.path, self._folder)
        file = self._folder / "shown.onnx"
        session = None

        def show(feeds: Mapping[str, NDArray], look: Look) -> None:
            for name in given:
                look(name, feeds[name])
            if session is not None:
                found = session.run(feeds)
                for name in inner:
                    look(name, found.pop(name))

        try:
            session = self._open(file, inner) if inner else None
            yield show
        finally:
            if session is not None:
                session.close()
            file.unlink(missing_ok=True)

    def _open(self, path: Path, names: list[str]) -> Session:
        """A session whose outputs are the activations `names`; its graph goes to `path`."""
        model = onnx.load(self.graph.path, load_external_data=False)
        del model.graph.output[:]  # the rest of the graph is not run
        model.graph.output.extend(
            helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in names
        )
        onnx.save_model(model, path)

        outputs = tuple(TensorSpec(name, "float32", ()) for name in names)
        shown = replace(self.graph, path=path, outputs=outputs)
        return OnnxRuntimeEngine(EngineOptions("cpu", self._threads)).open_in_order(shown, path)


def _groups(layers: Sequence[Layer], at_once: int) -> list[list[str]]:
    """The layers' activations in order, a new group where one would exceed `at_once` elements."""
    sizes: dict[str, int] = {}
    for layer in layers:
        for name in layer.activations:
            sizes[name] = max(sizes.get(name, 0), layer.values // len(layer.activations))

    groups: list[list[str]] = [[]]
    used = 0
    for name, size in sizes.items():
        if groups[-1] and used + size > at_once:
            groups.append([])
            used = 0
        groups[-1].append(name)
        used += size
    return groups


def largest_by_channel(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest magnitude along all axes but the last, float32 [K]."""
    flat = values.reshape(-1, values.shape[-1])
    # in place of np.abs(flat), which would copy everything
    found: NDArray[np.float32] = np.maximum(flat.max(0), -flat.min(0))
    return found
