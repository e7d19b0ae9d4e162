"""Models in programs that close them at any moment, fork, or end with threads that still ask."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from process_drill import WAYS, WITH_THROUGHPUT
from ris.engines import HostStep
from ris.runtime import EngineError, load

DRILL = Path(__file__).parent.parent / "process_drill.py"
ENGINES = ["onnxruntime", "openvino"]
THROUGHPUT = "openvino:throughput"


def drill(what, engine, bundle):
    pytest.importorskip(engine.partition(":")[0])
    command = [sys.executable, DRILL, what, engine, bundle]
    return subprocess.run(command, capture_output=True, text=True, timeout=900)


@pytest.fixture(scope="module")
def after_fork(tiny_bundle):
    """What became of each way to go on after a fork, by engine; "" where it was not reached."""
    found: dict[str, dict[str, str]] = {}

    def of(engine: str, way: str) -> str:
        if engine not in found:
            ran = drill("fork", engine, tiny_bundle)
            lines = [line.split(" ", 1) for line in ran.stdout.splitlines()]
            found[engine] = dict(lines) | {"": ran.stderr}
        return found[engine].get(way) or found[engine][""]

    return of


@pytest.mark.parametrize("engine", ENGINES)
def test_closing_while_eight_threads_ask_ends_in_answers_and_sentences(tiny_bundle, engine):
    ran = drill("close", engine, tiny_bundle)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("engine", ENGINES)
def test_a_model_from_before_a_fork(after_fork, engine, way):
    assert after_fork(engine, way) == "well"


@pytest.mark.parametrize("way", WITH_THROUGHPUT)
def test_a_model_with_throughput_from_before_a_fork(after_fork, way):
    assert after_fork(THROUGHPUT, way) == "well"


@pytest.mark.parametrize("engine", ENGINES)
def test_a_program_may_end_while_daemon_threads_ask(tiny_bundle, engine):
    ran = drill("end", engine, tiny_bundle)
    assert ran.returncode == 0, ran.stderr


def test_a_question_that_has_begun_is_answered_whole(tiny_bundle, picture):
    model = load(tiny_bundle)
    expected = model.segment(picture, "left man").logits
    session, answers = model.open_sessions["clip_image_encoder"], []
    inside, leave, right = threading.Event(), threading.Event(), session._run

    def slow(feeds):
        inside.set()
        assert leave.wait(10)
        return right(feeds)

    session._run = slow
    asking = threading.Thread(target=lambda: answers.append(model.segment(picture, "left man")))
    asking.start()
    assert inside.wait(10)
    closing = threading.Thread(target=model.close)
    closing.start()
    time.sleep(0.05)
    with pytest.raises(EngineError, match="the model is closed; load the bundle again"):
        model.encode_image(picture)
    assert closing.is_alive()

    leave.set()
    asking.join(20)
    closing.join(20)
    assert (answers[0].logits == expected).all()
    assert not model.open_sessions


def test_a_run_may_close_its_own_session(tiny_bundle):
    model = load(tiny_bundle)
    session, closed = model.open_sessions["text_encoder"], []

    def close(maps):
        session.close()
        closed.append(len(closed))
        return maps

    feeds = {"input_ids": np.zeros((1, session.graph.inputs[0].shape[1]), np.int32)}
    size = session.run(feeds)["text_features"].shape[-2:]
    found = session.run_and_keep(feeds, {"text_features": HostStep(close, size)})
    assert found["text_features"].shape[0] == 1
    assert closed == [0]
    with pytest.raises(EngineError, match="text_encoder: the session is closed"):
        session.run(feeds)
    model.close()
