"""The session's bookkeeping over doubles: buckets, copies, CUDA graphs, memory, threads, errors."""

from __future__ import annotations

import os
import threading
from dataclasses import replace

import numpy as np
import pytest
from session_doubles import buffers, feeds, open_it

from cuda_double import Refitter
from process_drill import close_under_load, end_of
from ris.engines import Graph, HostStep, TensorSpec
from ris.engines.errors import EngineError
from ris.engines.tensorrt_session import MAX_BUCKETS

pytest_plugins = ["session_doubles"]

H2D, D2H, D2D = "copy 1", "copy 2", "copy 3"


def test_runs_once_as_it_is_and_then_as_a_graph(cuda, engine, graph):
    with open_it(cuda, graph) as session:
        cuda.names()
        assert np.array_equal(session.run(feeds())["y"], np.full((1, 4), 3, np.float32))
        allocation = [*["cudaMalloc", "cudaMallocHost"] * 3, "cudaMalloc"]  # the last for scratch
        assert cuda.names() == [*allocation, H2D, H2D, "execute", D2H, "cudaStreamSynchronize"]
        assert session.run(feeds(index=5))["y"][0, 0] == 7
        capture = [
            "cudaStreamBeginCapture",
            "execute",
            "cudaStreamEndCapture",
            "cudaGraphInstantiate",
        ]
        tail = ["cudaGraphDestroy", "cudaGraphLaunch", D2H, "cudaStreamSynchronize"]
        assert cuda.names() == [H2D, H2D, *capture, *tail]
        assert session.run(feeds(fill=2.5))["y"][0, 0] == 6
        assert cuda.names() == [H2D, H2D, "cudaGraphLaunch", D2H, "cudaStreamSynchronize"]
        assert not session.notes
    assert not cuda.leaks


def test_outputs_are_the_callers_own(cuda, engine, graph):
    with open_it(cuda, graph) as session:
        first = session.run(feeds(fill=1))["y"]
        session.run(feeds(fill=9))
        assert first[0, 0] == 3


def test_a_bucket_for_each_set_of_shapes_and_no_more_than_fit(cuda, engine, graph):
    with open_it(cuda, graph) as session:
        for n in (1, 2, 1):
            assert session.run(feeds(n))["y"].shape == (n, 4)
        assert buffers(cuda) == 6
        for n in range(1, 9):
            session.run(feeds(n))
        assert buffers(cuda) == 3 * MAX_BUCKETS
        assert session.run(feeds(1))["y"].shape == (1, 4)
    assert not cuda.leaks


def test_values_stay_on_the_device_between_sessions(cuda, engine, graph):
    with open_it(cuda, graph) as encoder, open_it(cuda, graph) as decoder:
        kept = encoder.run_and_keep(feeds(2))["y"]
        assert kept.shape == (2, 4)
        assert kept.ndim == 2
        encoder.run_and_keep(feeds(2, fill=100))["y"].close()  # another image must not touch it
        cuda.names()
        assert decoder.run({"x": kept, "index": np.array([1], np.int32)})["y"][0, 0] == 7
        assert cuda.names().count(D2D) == 1
        assert np.array_equal(kept.numpy(), np.full((2, 4), 3, np.float32))
    assert len(cuda.device) == 1  # it outlives its session
    kept.close()
    kept.close()
    assert not cuda.leaks
    closed = "the value on the device was closed; encode the image again"
    with pytest.raises(EngineError, match=closed):
        kept.numpy()


def test_fp16_values_stay_on_the_device_as_they_are(cuda, engine, graph, monkeypatch):
    """Nothing is copied beyond them, and FP32 is not taken for them."""
    half = {"x": np.float16, "y": np.float16, "index": np.int32}
    specs = [replace(spec, dtype=np.dtype(half[spec.name]).name) for spec in graph.inputs]
    narrow = replace(graph, inputs=tuple(specs), outputs=(replace(specs[0], name="y"),))

    def compute(view):
        x, index = view("x", np.float16), view("index", np.int32)
        np.copyto(view("y", np.float16), (2 * x + index[0]).astype(np.float16))

    monkeypatch.setattr(engine, "_compute", compute)
    given = {"x": np.full((2, 4), 1.5, np.float16), "index": np.array([1], np.int32)}
    with open_it(cuda, narrow) as encoder, open_it(cuda, narrow) as decoder:
        kept = encoder.run_and_keep(given)["y"]
        assert kept.dtype == np.float16
        np.testing.assert_array_equal(kept.numpy(), np.full((2, 4), 4, np.float16))
        found = decoder.run({"x": kept, "index": np.array([1], np.int32)})["y"]
        np.testing.assert_array_equal(found, np.full((2, 4), 9, np.float16))
        with pytest.raises(EngineError, match=r"'x' is float32 \[2, 4\], expected float16"):
            decoder.run(given | {"x": np.ones((2, 4), np.float32)})
    kept.close()
    assert not cuda.leaks


def test_a_forgotten_value_gives_its_memory_back(cuda, engine, graph):
    with open_it(cuda, graph) as session:
        session.run_and_keep(feeds())
        session.run_and_keep(feeds())
        assert buffers(cuda) == 4  # the second took what the first gave back
    assert not cuda.leaks


def test_closing_while_eight_threads_run_ends_in_answers_and_sentences(cuda, engine, graph):
    for _ in range(20):
        session = open_it(cuda, graph)
        sentence = "fusion: the session is closed; load the bundle again"
        close_under_load(session, lambda s=session: s.run(feeds())["y"].tobytes(), sentence)
        assert not cuda.leaks


def test_a_fork_leaves_the_device_to_the_parent(cuda, engine, graph):
    session = open_it(cuda, graph)
    kept = session.run_and_keep(feeds())["y"]
    cuda.names()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            why = "fusion: a model on a GPU does not survive fork; load the bundle in the process"
            with pytest.raises(EngineError, match=why):
                session.run(feeds())
            kept.close()
            session.close()
            code = len(cuda.names())
        finally:
            os._exit(code)
    assert end_of(pid) == "well"
    assert session.run(feeds())["y"][0, 0] == 3
    kept.close()
    session.close()
    assert not cuda.leaks


def test_without_capture_it_goes_on_and_says_so(cuda, engine, graph):
    engine._no_capture = True
    with open_it(cuda, graph) as session:
        for index in range(3):
            assert session.run(feeds(index=index))["y"][0, 0] == 2 + index
        assert len(session.notes) == 1
        assert "no CUDA graph: fusion: TensorRT failed" in session.notes[0]
        assert "cudaGraphLaunch" not in cuda.names()
    assert not cuda.leaks


@pytest.mark.parametrize("name", ["cudaStreamEndCapture", "cudaGraphInstantiate"])
def test_a_graph_that_cannot_be_made(cuda, engine, graph, name):
    cuda.fail[name] = 900
    with open_it(cuda, graph) as session:
        for _ in range(3):
            assert session.run(feeds())["y"][0, 0] == 3
        assert len(session.notes) == 1
    assert not cuda.leaks


@pytest.mark.parametrize(
    ("name", "left"), [("cudaMalloc", 0), ("cudaMallocHost", 0), ("copy 1", 3)]
)
def test_failures_are_errors_in_cudas_words_and_leak_nothing(cuda, engine, graph, name, left):
    with open_it(cuda, graph) as session:
        cuda.fail[name] = 2
        with pytest.raises(EngineError, match=r"cuda\w+ failed: error 2; see nvidia-smi"):
            session.run(feeds())
        assert len(cuda.pinned) == left
        cuda.fail.clear()
        assert session.run(feeds())["y"][0, 0] == 3
    assert not cuda.leaks


def test_a_second_stream_that_cannot_be_made_takes_the_first_with_it(cuda, engine, graph):
    cuda.most_streams = 1
    with pytest.raises(EngineError, match="cudaStreamCreateWithFlags failed: error 2"):
        open_it(cuda, graph)
    assert not cuda.leaks


def test_tensorrts_own_failures(cuda, engine, graph):
    with open_it(cuda, graph) as session:
        engine._fails = True
        with pytest.raises(EngineError, match="fusion: TensorRT failed: it gave no reason"):
            session.run(feeds())
        engine._contexts = False
        with pytest.raises(EngineError, match="no execution context"):
            session.run(feeds(2))
        engine._contexts, engine._shapes_known = True, False
        with pytest.raises(EngineError, match="cannot tell the shape of y"):
            session.run(feeds(3))
    assert not cuda.leaks


def test_shapes_beyond_the_profile_name_the_limit(cuda, engine, graph):
    beyond = r"'x' is \[9, 4\], the plan takes up to \[8, 4\]; .*--max-batch"
    with open_it(cuda, graph) as session, pytest.raises(EngineError, match=beyond):
        session.run(feeds(9))
    assert not cuda.leaks


def test_feeds_are_checked_before_anything_happens(cuda, engine, graph):
    with open_it(cuda, graph) as session:
        cuda.names()
        wrong = "input 'index' is missing; input 'x' is float64"
        for run in (session.run, session.run_and_keep):
            with pytest.raises(EngineError, match=wrong):
                run({"x": np.zeros((1, 4))})
        assert not cuda.names()


def test_a_closed_session(cuda, engine, graph):
    session = open_it(cuda, graph)
    session.run(feeds())
    session.close()
    session.close()
    assert not cuda.leaks
    with pytest.raises(EngineError, match="fusion: the session is closed"):
        session.run(feeds())


def test_calls_from_several_threads_take_turns(cuda, engine, graph):
    wrong = []

    def work(index):
        for n in (1, 2, 3):
            y = session.run(feeds(n, index))["y"]
            wrong.extend([] if (y == 2 + index).all() else [y])

    with open_it(cuda, graph) as session:
        threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong
    assert not cuda.leaks


def test_a_plan_that_does_not_load_is_an_error_in_tensorrts_words(cuda, engine, graph):
    refused = "fusion: tensorrt 10.16 cannot load the plan: Error Code 6: the plan is of"
    with pytest.raises(EngineError, match=refused):
        open_it(cuda, graph, b"bad")
    assert not cuda.calls


def test_a_plan_of_another_graph(cuda, engine, graph):
    other = Graph(graph.stage, graph.path, graph.inputs[:1], graph.outputs)
    with pytest.raises(EngineError, match="the plan has the values x, index, y, expected x, y"):
        open_it(cuda, other)


def test_a_stripped_plan_takes_its_weights_from_the_graph(cuda, engine, graph, monkeypatch):
    open_it(cuda, graph, refit=graph.path).close()
    monkeypatch.setattr(Refitter, "lacks", ("w1", "w2"))
    with pytest.raises(EngineError, match=r"cannot take its weights from .*fusion.onnx: w1, w2"):
        open_it(cuda, graph, refit=graph.path)


@pytest.fixture
def maps_graph(engine, tmp_path):
    """The same with maps: x and y [images, 5, 2, 3]."""
    engine._largest["x"] = (8, 5, 2, 3)
    shape = "images", 5, 2, 3
    inputs = TensorSpec("x", "float32", shape), TensorSpec("index", "int32", ("expressions",))
    return Graph("fusion", tmp_path / "fusion.onnx", inputs, (TensorSpec("y", "float32", shape),))


def maps_feeds(images=1):
    x = np.random.default_rng(images).normal(size=(images, 5, 2, 3)).astype(np.float32)
    return {"x": x, "index": np.array([1], np.int32)}


def doubled(maps):
    return 10 * np.concatenate([maps, maps], 1)


def test_what_the_host_changes_travels_in_portions(cuda, maps_graph):
    step = HostStep(doubled, (4, 3))
    with open_it(cuda, maps_graph) as session:
        for images in (1, 2, 1):
            fed = maps_feeds(images)
            kept = session.run_and_keep(fed, {"y": step})["y"]
            whole = 2 * fed["x"] + 1
            assert kept.shape == (images, 5, 4, 3)
            assert np.array_equal(kept.numpy(), 10 * np.concatenate([whole, whole], 2))
            kept.close()
        cuda.names()
        kept = session.run_and_keep(maps_feeds(2), {"y": step})["y"]
        down, up = [D2H, "cudaEventRecord"], ["cudaEventSynchronize", H2D]
        running = ("cudaGraph", "cudaStreamBeginCapture", "cudaStreamEndCapture", "execute")
        asked = [name for name in cuda.names() if not name.startswith(running)]
        # 10 maps in portions of 3, 3, 3 and 1; all are on their way before the host waits for one
        assert asked == [H2D, H2D, *down * 4, *up * 4, *["cudaStreamSynchronize"] * 2]
        kept.close()
    assert not cuda.leaks


def test_a_single_map_of_the_same_size(cuda, engine, graph):
    with open_it(cuda, graph) as session:
        kept = session.run_and_keep(feeds(3), {"y": HostStep(lambda maps: -maps, (3, 4))})["y"]
        assert np.array_equal(kept.numpy(), np.full((3, 4), -3, np.float32))
        kept.close()
    assert not cuda.leaks


def test_a_step_that_fails_leaves_nothing_behind(cuda, maps_graph):
    def fails(maps):
        raise ValueError("no")

    with open_it(cuda, maps_graph) as session:
        with pytest.raises(ValueError, match="no"):
            session.run_and_keep(maps_feeds(), {"y": HostStep(fails, (4, 3))})
        before = len(cuda.device)
        for name in ("cudaEventRecord", "cudaEventSynchronize", "copy 1", "copy 2"):
            cuda.fail[name] = 2
            with pytest.raises(EngineError, match="failed: error 2"):
                session.run_and_keep(maps_feeds(), {"y": HostStep(doubled, (4, 3))})
            cuda.fail.clear()
        assert len(cuda.device) == before
        kept = session.run_and_keep(maps_feeds(), {"y": HostStep(doubled, (4, 3))})["y"]
        whole = 2 * maps_feeds()["x"] + 1
        assert np.array_equal(kept.numpy(), 10 * np.concatenate([whole, whole], 2))
        kept.close()
    assert not cuda.leaks


def test_events_that_cannot_be_made(cuda, maps_graph):
    with open_it(cuda, maps_graph) as session:
        cuda.fail["cudaEventCreateWithFlags"] = 2
        with pytest.raises(EngineError, match="cudaEventCreateWithFlags failed"):
            session.run_and_keep(maps_feeds(), {"y": HostStep(doubled, (4, 3))})
    assert not cuda.leaks
