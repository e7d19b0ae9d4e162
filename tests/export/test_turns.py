"""A large bundle is checked with one of its graphs in memory at a time."""

from __future__ import annotations

from conftest import REPO
from ris.engines.onnxruntime import OnnxRuntimeEngine
from ris.export.turns import open_by_turns
from ris.runtime import open_bundle
from ris.runtime.loading import open_model
from ris.runtime.parity import check_model, load_golden

DEMO = REPO / "runtime" / "demo-bundle"


def test_it_answers_as_the_graphs_opened_together_and_never_has_two_open(monkeypatch):
    bundle = open_bundle(DEMO)
    golden = load_golden(bundle)
    with open_model(bundle, engine="onnxruntime") as model:
        together = check_model(model, golden)

    opened, most = [], []
    honest = OnnxRuntimeEngine.load

    def load(engine, graph, *others):
        session = honest(engine, graph, *others)
        opened.append(graph.stage)
        most.append(len(opened))
        close = session.close

        def closed():
            opened.remove(graph.stage)
            close()

        session.close = closed
        return session

    monkeypatch.setattr(OnnxRuntimeEngine, "load", load)
    with open_by_turns(bundle) as model:
        assert check_model(model, golden) == together
    assert not opened
    assert max(most) == 1
    assert len(most) > 2 * len(bundle.stages)  # for its name, and for each run
