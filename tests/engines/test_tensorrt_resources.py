"""What a session takes of a GPU: devices by thread, memory, kernels, shapes; and its ends."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from session_doubles import feeds, open_it

from cuda_double import Runtime, TensorRt
from process_drill import end_of
from ris.engines import cuda as cuda_module
from ris.engines import cuda_memory
from ris.engines.cuda import gpu
from ris.engines.cuda_memory import DeviceMemory, PinnedArray, Pool
from ris.engines.errors import EngineError
from ris.engines.tensorrt_kernels import read_kernels, write_kernels

pytest_plugins = ["session_doubles"]


@pytest.fixture
def rtx(monkeypatch):
    strategy = type("Strategy", (), {"EAGER": "eager"})
    monkeypatch.setattr(
        TensorRt, "DynamicShapesKernelSpecializationStrategy", strategy, raising=False
    )


def test_rtx_makes_its_kernels_before_they_are_captured(cuda, engine, graph, rtx):
    with open_it(cuda, graph) as session:
        session.run(feeds())
    [config] = engine._configs
    assert config.dynamic_shapes_kernel_specialization_strategy == "eager"
    assert config._strategy == TensorRt.ExecutionContextAllocationStrategy.USER_MANAGED


def test_tensorrt_has_no_kernels_to_make(cuda, engine, graph, tmp_path):
    with open_it(cuda, graph, kernels=tmp_path / "kernels.bin") as session:
        session.run(feeds())
    assert engine._configs == [TensorRt.ExecutionContextAllocationStrategy.USER_MANAGED]
    assert not list(tmp_path.glob("kernels*"))


def test_rtx_finds_the_kernels_of_the_process_before(cuda, engine, graph, rtx, tmp_path):
    file = tmp_path / "below" / "kernels.bin"
    for n in (1, 2):
        with open_it(cuda, graph, kernels=file) as session:
            session.run(feeds(n))
    assert read_kernels(file) == b"a kernela kernel"
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("changed", ["content", "key", "name", "writable", "cut"])
def test_kernels_that_nobody_vouches_for_are_not_loaded(tmp_path, monkeypatch, changed):
    file = tmp_path / "kernels.bin"
    write_kernels(file, b"kernels")
    assert read_kernels(file) == b"kernels"
    if changed == "content":
        file.write_bytes(file.read_bytes().replace(b"kernels", b"kernelz"))
    elif changed == "key":
        other = tmp_path / "key"
        other.write_bytes(bytes(32))
        other.chmod(0o600)
        monkeypatch.setenv("RIS_PLAN_KEY", str(other))
    elif changed == "name":
        file = file.rename(tmp_path / "others.bin")
    elif changed == "writable":
        file.chmod(0o666)
    else:
        file.write_bytes(b"{")
    assert read_kernels(file) is None


def test_a_version_compatible_plan_may_run_its_own_code_and_no_other(cuda, engine, graph):
    for allowed in (False, True):
        with open_it(cuda, graph, has_host_code=allowed):
            assert Runtime.made[-1].engine_host_code_allowed is allowed


def test_a_gpu_is_known_by_more_than_its_compute_capability(cuda):
    assert gpu(cuda, 1).key == "sm_90, NVIDIA Double, 132 SMs, 140 GiB"
    cuda.properties = type("Slice", (type(cuda.properties),), {"multiProcessorCount": 16})()
    assert gpu(cuda, 1).key == "sm_90, NVIDIA Double, 16 SMs, 140 GiB"


def test_every_thread_that_enters_makes_the_sessions_gpu_its_own(cuda, engine, graph):
    """The double refuses streams and memory of a GPU that is not the thread's current one."""
    wrong = []

    def work():
        kept = session.run_and_keep(feeds(2))["y"]
        y = session.run({"x": kept, "index": np.array([1], np.int32)})["y"]
        wrong.extend([] if (y == 7).all() and (kept.numpy() == 3).all() else [y])
        wrong.extend([cuda.current] if cuda.current else [])  # the caller's is as it was

    session = open_it(cuda, graph, device="cuda:1")
    threads = [threading.Thread(target=work, name=f"asker {i}") for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    closing = threading.Thread(target=session.close)
    closing.start()
    closing.join()
    assert not wrong
    assert {f"asker {i}" for i in range(3)} <= cuda.threads
    assert set(cuda.on.values()) == {1}
    assert not cuda.leaks


def test_a_gpu_that_is_not_there(cuda, engine, graph):
    with pytest.raises(EngineError, match="cudaSetDevice failed: error 101"):
        open_it(cuda, graph, device="cuda:2")


def test_values_of_another_gpu_are_refused(cuda, engine, graph):
    with open_it(cuda, graph) as first, open_it(cuda, graph, device="cuda:1") as second:
        kept = first.run_and_keep(feeds())["y"]
        with pytest.raises(EngineError, match="input 'x' lies on another device"):
            second.run({"x": kept, "index": np.array([1], np.int32)})
        kept.close()
    assert not cuda.leaks


def test_one_scratch_block_serves_all_sets_of_shapes(cuda, engine, graph):
    def scratch():
        return sorted(len(block) for block in cuda.device.values() if len(block) > 512)

    with open_it(cuda, graph) as session:
        for _ in range(2):
            session.run(feeds(3))
        assert scratch() == [4096]
        for n in (1, 2, 3):
            assert session.run(feeds(n, fill=n))["y"][0, 0] == 2 * n + 1
        assert scratch() == [4096]
        cuda.names()
        assert session.run(feeds(8))["y"][0, 0] == 3
        assert scratch() == [4096, 8192]  # the old one is in the pool
        # its graph has the old block, so it is captured anew
        assert session.run(feeds(3))["y"][0, 0] == 3
        assert "cudaStreamBeginCapture" in cuda.names()
    assert not cuda.leaks


def test_scratch_memory_that_cannot_be_had_leaves_the_session_usable(cuda, engine, graph):
    with open_it(cuda, graph) as session:
        session.run(feeds(1))
        for n in (4, 8):
            cuda.fail["cudaMalloc"] = 2
            with pytest.raises(EngineError, match="cudaMalloc failed"):
                session.run(feeds(n))
            cuda.fail.clear()
            assert session.run(feeds(1))["y"][0, 0] == 3
    assert not cuda.leaks


def test_outputs_come_from_a_pool(cuda, engine, graph):
    with open_it(cuda, graph) as session:
        for _ in range(3):
            session.run_and_keep(feeds())["y"].close()
        cuda.names()
        for _ in range(5):
            session.run_and_keep(feeds())["y"].close()
        assert not {"cudaMalloc", "cudaFree"} & set(cuda.names())
    assert not cuda.leaks


def test_the_pool_keeps_no_more_than_it_may_and_makes_room(cuda, monkeypatch):
    monkeypatch.setattr("ris.engines.cuda_memory.IDLE", 1024)
    pool = Pool(cuda, 0)
    pool.enter()
    blocks = [DeviceMemory(pool, 500) for _ in range(4)]
    for block in blocks:
        block.close()
        block.close()
    assert len(cuda.device) == 2
    limit, allocate = 3, cuda.cudaMalloc
    cuda.cudaMalloc = lambda size: allocate(size) if len(cuda.device) < limit else (2, None)
    other = [DeviceMemory(pool, 4000) for _ in range(3)]  # what was kept gives way
    assert len(cuda.device) == 3
    for block in other:
        block.close()
    pool.leave()
    assert not cuda.device


def test_nothing_is_freed_while_a_graph_is_captured(cuda, engine, graph):
    """The double refuses it, as CUDA does; Python may collect values at any moment."""
    with open_it(cuda, graph) as session, open_it(cuda, graph) as other:
        kept = [other.run_and_keep(feeds())["y"] for _ in range(2)]
        pinned = [PinnedArray(cuda, (4,), np.dtype(np.float32))]
        other.close()
        session.run(feeds())
        context = next(iter(session._buckets.values())).context
        execute = context.execute_async_v3

        def collect(stream):
            assert cuda.capturing
            kept.clear()
            pinned.pop()
            return execute(stream)

        context.execute_async_v3 = collect
        session._plan.pool.leave()  # so that nothing is kept for later
        assert session.run(feeds())["y"][0, 0] == 3
        session._plan.pool.enter()
        assert not kept
        assert not pinned
        assert not session.notes
    assert not cuda.leaks


def test_a_capture_holds_back_what_its_own_thread_frees_and_no_other(cuda):
    freed = []

    def free_here():
        cuda_memory._captures.then(lambda: freed.append("there"))

    with cuda_memory.capturing():
        cuda_memory._captures.then(lambda: freed.append("here"))
        other = threading.Thread(target=free_here)
        other.start()
        other.join()
        assert freed == ["there"]
    assert freed == ["there", "here"]


def test_a_value_that_is_closed_while_it_is_read_lives_as_long(cuda, engine, graph):
    with open_it(cuda, graph) as encoder, open_it(cuda, graph) as decoder:
        kept = encoder.run_and_keep(feeds(2))["y"]
        run = engine._compute

        def closing(view):
            kept.close()
            taken = encoder._plan.pool.get(32)  # would be its block if that were free
            ctypes.memset(taken, 0xFF, 32)
            run(view)
            encoder._plan.pool.give(taken, 32)

        engine._compute = closing
        index = np.array([1], np.int32)
        assert decoder.run({"x": kept, "index": index})["y"][0, 0] == 7
    assert not cuda.leaks


def test_expressions_are_padded_to_powers_of_two(cuda, engine, graph):
    seen = []
    run = engine._compute

    def compute(view):
        seen.append(view("index", np.int32).copy())
        run(view)

    engine._compute = compute
    with open_it(cuda, graph) as session:
        for count in range(1, 9):
            index = np.arange(5, 5 + count, dtype=np.int32)
            session.run({"x": np.ones((1, 4), np.float32), "index": index})
        assert [len(index) for index in seen] == [1, 2, 4, 4, 8, 8, 8, 8]
        assert seen[4].tolist() == [5, 6, 7, 8, 9, 9, 9, 9]  # valid where a graph looks up rows
        assert len(session._buckets) == 4
    engine._largest["index"] = (6,)
    seen.clear()
    with open_it(cuda, graph) as session:
        session.run({"x": np.ones((1, 4), np.float32), "index": np.zeros(5, np.int32)})
    assert len(seen[0]) == 6
    assert not cuda.leaks


def test_what_padding_adds_is_never_seen(cuda, engine, graph):
    rows = [replace(spec, shape=("expressions", 4)) for spec in (graph.inputs[0], *graph.outputs)]
    graph = replace(graph, inputs=(rows[0], graph.inputs[1]), outputs=(rows[1],))
    x = np.arange(12, dtype=np.float32).reshape(3, 4)
    fed = {"x": x, "index": np.array([1, 1, 1], np.int32)}
    with open_it(cuda, graph) as session:
        for _ in range(3):
            assert np.array_equal(session.run(fed)["y"], 2 * x + 1)
            kept = session.run_and_keep(fed)["y"]
            assert kept.shape == (3, 4)
            assert np.array_equal(kept.numpy(), 2 * x + 1)
            again = session.run(fed | {"x": kept})["y"]  # from the device, padded there
            assert np.array_equal(again, 4 * x + 3)
            kept.close()
    assert not cuda.leaks


def test_without_cuda_graphs_where_they_are_not_wanted(cuda, engine, graph):
    with open_it(cuda, graph, cuda_graphs=False) as session:
        for _ in range(3):
            session.run(feeds())
        assert not session.notes
    assert "cudaGraphLaunch" not in cuda.names()


AT_THE_END = """
import atexit
atexit.register(lambda: print("leaks", len(cuda.leaks)))  # first here, so the last to be called
from cuda_double import Cuda, ICudaEngine, TensorRt
from session_doubles import feeds, open_it
from ris.engines import Graph, TensorSpec
cuda = Cuda()
specs = TensorSpec("x", "float32", ("images", 4)), TensorSpec("index", "int32", ("expressions",))
graph = Graph("fusion", None, specs, (TensorSpec("y", "float32", ("images", 4)),))
TensorRt.engine = ICudaEngine(cuda)
session = open_it(cuda, graph)
session.run_and_keep(feeds())["y"].close()
"""


def test_a_program_that_ends_gives_everything_back_before_python_does():
    tests = Path(__file__).parent.parent
    paths = [str(tests), os.environ.get("PYTHONPATH", "")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, paths))}
    command = [sys.executable, "-c", AT_THE_END]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "leaks 0\n"


def test_the_child_of_a_fork_frees_nothing_and_is_told(cuda, engine, graph, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    monkeypatch.setattr(cuda_module, "load", lambda: cuda)
    monkeypatch.setattr(cuda_module, "_STATE", type(cuda_module._STATE)())
    assert cuda_module.driver_problem() is None
    session = open_it(cuda, graph)
    kept = session.run_and_keep(feeds())["y"]
    pinned = PinnedArray(cuda, (4,), np.dtype(np.float32))
    cuda.names()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            pinned.close()
            with pytest.raises(EngineError, match="forked from; encode the image in the process"):
                kept.numpy()
            kept.close()
            assert not cuda.names()
            problem = cuda_module.driver_problem()
            assert "the child of a fork, and its parent has used CUDA" in problem
            assert cuda_module.gpu_problem(1) == problem
            code = len(cuda.names())
        finally:
            os._exit(code)
    assert end_of(pid) == "well"
    pinned.close()
    kept.close()
    session.close()
    assert not cuda.leaks
