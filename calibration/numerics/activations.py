"""What the products of a graph read, run after run: each activation is looked at where it arises
and then dropped.
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

AT_ONCE = 1 << 27  # elements of activations that one run hands out: half a GB
Look = Callable[[str, NDArray[np.float32]], None]
"""Called with an activation's name and values."""


class ActivationReader:
    """A graph that shows its activations: in as many runs as it takes to hold no more than
    `at_once` elements.

    folder: for temporary graphs, and a copy of the weights where they lie elsewhere.
    """

    def __init__(
        self,
        graph: Graph,
        layers: Sequence[Layer],
        folder: Path,
        threads: int | None = None,
        at_once: int = AT_ONCE,
    ) -> None:
        sizes: dict[str, int] = {}
        for layer in layers:
            for name in layer.activations:
                sizes[name] = max(sizes.get(name, 0), layer.values // len(layer.activations))
        self._inputs = {spec.name for spec in graph.inputs}
        self.groups: list[list[str]] = [[]]
        used = 0
        for name, size in sizes.items():
            if self.groups[-1] and used + size > at_once:
                self.groups.append([])
                used = 0
            self.groups[-1].append(name)
            used += size
        self._graph, self._folder, self._threads = graph, folder, threads

    @contextmanager
    def opened(self) -> Iterator[Callable[[Mapping[str, NDArray], Look], None]]:
        """A function that takes inputs and shows every activation once."""
        sessions: list[Session] = []
        files: list[Path] = []
        if self._folder != self._graph.path.parent:
            copy_data(self._graph.path, self._folder)
        try:
            for number, names in enumerate(self.groups):
                inner = [name for name in names if name not in self._inputs]
                if inner:
                    files.append(self._folder / f"shown-{number}.onnx")
                    sessions.append(self._open(files[-1], inner))

            def show(feeds: Mapping[str, NDArray], look: Look) -> None:
                for name in feeds.keys() & {n for names in self.groups for n in names}:
                    look(name, feeds[name])
                for session in sessions:
                    found = session.run(feeds)
                    for spec in session.graph.outputs:
                        look(spec.name, found.pop(spec.name))

            yield show
        finally:
            for session in sessions:
                session.close()
            for file in files:
                file.unlink(missing_ok=True)

    def _open(self, path: Path, names: list[str]) -> Session:
        model = onnx.load(self._graph.path, load_external_data=False)
        del model.graph.output[:]  # the rest of the graph is not run
        model.graph.output.extend(
            helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names
        )
        onnx.save_model(model, path)
        shown = replace(
            self._graph, path=path, outputs=tuple(TensorSpec(n, "float32", ()) for n in names)
        )
        return OnnxRuntimeEngine(EngineOptions("cpu", self._threads)).open_in_order(shown, path)


def largest_by_channel(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """The largest magnitude along all axes but the last, float32 [K]."""
    flat = values.reshape(-1, values.shape[-1])
    found: NDArray[np.float32] = np.maximum(flat.max(0), -flat.min(0))
    return found
