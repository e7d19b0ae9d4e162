"""A bundle whose graphs are in memory one at a time, to check one that is larger than that."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ris.engines import Engine, Graph, Session, Value
from ris.runtime.bundle import Bundle
from ris.runtime.loading import settle_for
from ris.runtime.model import Model


def open_by_turns(bundle: Bundle) -> Model:
    """The bundle on ONNX Runtime; a graph is opened for each of its runs, and closed after it.

    Raises EngineError where a graph cannot be opened.
    """
    settled, together = settle_for(bundle, engine="onnxruntime")
    sessions = {
        stage: _Turns(settled.engines[stage], bundle.graph(stage)) for stage in bundle.stages
    }
    return Model(bundle, sessions, together, overlap=False, choice=settled.choice)


class _Turns(Session):
    """A graph that is open while it runs."""

    def __init__(self, engine: Engine, graph: Graph) -> None:
        with engine.load(graph) as session:
            super().__init__(graph, session.info)
        self._engine = engine

    def _run(self, feeds: Mapping[str, Value]) -> dict[str, np.ndarray]:
        with self._engine.load(self.graph) as session:
            return session.run(feeds)

    def _close(self) -> None:
        """There is nothing open between runs."""
