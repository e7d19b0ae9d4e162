"""The table, the contract, and ONNX Runtime: nothing falls back unseen."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
from click.testing import CliRunner

from cuda_double import Cuda
from ris import pip_install
from ris.engines import ENGINE_NAMES, TABLE, EngineOptions, Graph, TensorSpec, create, cuda, select
from ris.engines.devices import index_of, kind_of
from ris.engines.errors import EngineError
from ris.runtime import load, open_bundle
from ris.runtime.commands.bench import run as bench_command
from ris.runtime.commands.compile import main as compile_command
from ris.runtime.commands.infer import main as infer_command


@pytest.fixture
def session(tiny_bundle):
    graph = open_bundle(tiny_bundle).graph("text_encoder")
    engine = create("onnxruntime")
    with engine.open(graph, engine.compile(graph)) as session:
        yield session


def test_auto_takes_openvino_where_it_is_known_to_be_faster(monkeypatch):
    monkeypatch.setattr("ris.engines.table.cpu_features", lambda: frozenset({"avx2", "avx512f"}))
    pytest.importorskip("openvino", reason="OpenVINO is not installed")
    assert select("auto").name == "openvino"
    assert select("auto", "cpu").name == "openvino"
    monkeypatch.setattr("ris.engines.table.cpu_features", lambda: frozenset({"avx2"}))
    assert select("auto").name == "onnxruntime"
    assert select("auto", "gpu").name == "openvino"
    assert select("openvino").name == "openvino"  # by name it is taken anywhere


def test_auto_takes_the_first_that_is_installed(monkeypatch):
    rows = tuple(row for row in TABLE if row.name != "openvino")
    monkeypatch.setattr("ris.engines.table.TABLE", rows)
    assert select("auto").name == "onnxruntime"

    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    none = f"no engine runs here: .*{re.escape(pip_install('cpu'))}"
    with pytest.raises(EngineError, match=none):
        select("auto")
    missing = "'onnxruntime' cannot run here: the package 'onnxruntime' is not installed"
    with pytest.raises(EngineError, match=missing):
        select("onnxruntime")


def test_an_unknown_engine_lists_the_valid_names():
    unknown = f"there is no engine 'tenssorrt'; this version has {', '.join(ENGINE_NAMES)}"
    with pytest.raises(EngineError, match=unknown):
        select("tenssorrt")


def test_an_unknown_device_lists_the_valid_names():
    with pytest.raises(EngineError, match="no device 'npu'; it has cpu, cuda"):
        create("onnxruntime", EngineOptions(device="npu"))


def test_devices_have_numbers_where_there_may_be_several():
    assert [kind_of(name) for name in ("cuda:1", "cuda", "gpu")] == ["cuda", "cuda", "gpu"]
    assert [index_of(name) for name in ("cuda:12", "cuda", "cpu")] == [12, 0, 0]
    valid = "there are auto, cpu, gpu, npu, cuda, and cuda:N for the GPU of that number"
    for wrong in ("cuda:", "cuda:x", "cuda:-1", "cuda:12345", "gpu:1", "tpu"):
        with pytest.raises(EngineError, match=f"there is no device '{wrong}'; {valid}"):
            select("auto", wrong)
    with pytest.raises(EngineError, match="has no device 'cuda:1'; it has cpu, gpu, npu"):
        create("openvino", EngineOptions("cuda:1"))


@pytest.mark.parametrize("command", [infer_command, compile_command, bench_command])
def test_commands_take_a_numbered_gpu_and_refuse_what_is_none(command):
    done = CliRunner().invoke(command, ["a.jpg", "--device", "cuda:one"])
    assert done.exit_code == 2
    assert "there is no device 'cuda:one'" in done.output
    assert "cuda:N" in CliRunner().invoke(command, ["--help"]).output


def test_every_row_names_a_module_with_an_engine():
    for row in TABLE:
        source = importlib.util.find_spec(row.module).loader.get_source(row.module)
        assert "\nENGINE = " in source
        if row.unusable() is None:
            assert create(row.name).options == EngineOptions(device=row.devices[0])


@pytest.mark.parametrize("name", ["tensorrt", "tensorrt-rtx"])
def test_tensorrt_says_what_to_install(name, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    package = name.replace("-", "_")
    with pytest.raises(EngineError) as caught:
        select(name)
    assert str(caught.value) == (
        f"engine {name!r} cannot run here: the package {package!r} is not installed; "
        f'pip install ".[{name}]"'
    )


def test_auto_passes_over_engines_without_a_device(monkeypatch):
    """Installed, but there is no driver: the first of the table that runs is taken."""
    rows = tuple(row for row in reversed(TABLE) if row.name != "openvino")
    monkeypatch.setattr("ris.engines.table.TABLE", rows)
    monkeypatch.setattr("ris.engines.table.driver_problem", lambda: "no CUDA driver")
    assert select("auto").name == "onnxruntime"


def test_without_cuda_python_the_driver_is_asked_itself(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)

    def missing(name):
        raise OSError("libcuda.so.1: cannot open shared object file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert cuda.driver_problem() == "no CUDA driver (libcuda.so.1 is not there); install one"


def test_a_driver_without_a_gpu_is_none(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    runtime = Cuda()
    monkeypatch.setattr(cuda, "load", lambda: runtime)
    monkeypatch.setattr(cuda, "_STATE", type(cuda._STATE)())
    assert cuda.driver_problem() is None
    assert cuda.gpu_problem(1) is None
    assert cuda.gpu_problem(2) == "there is no GPU 2: the driver sees 2, counted from 0"
    monkeypatch.setattr(cuda, "_STATE", type(cuda._STATE)())
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (0, 0))
    assert cuda.driver_problem() == "the CUDA driver sees no GPU; check CUDA_VISIBLE_DEVICES"
    monkeypatch.setattr(runtime, "cudaGetDeviceCount", lambda: (35, None))
    assert cuda.driver_problem().startswith("no CUDA driver that fits (error 35)")


def test_cuda_is_refused_where_it_is_not_there(tiny_bundle):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has onnxruntime-gpu")
    refused = f"no CUDAExecutionProvider .*{re.escape(pip_install('gpu'))}"
    with pytest.raises(EngineError, match=refused):
        load(tiny_bundle, device="cuda")


def test_a_provider_that_does_not_start_is_an_error(tiny_bundle, monkeypatch):
    """ONNX Runtime itself answers a missing provider with the CPU and a warning."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    refused = r"CUDAExecutionProvider was asked for and did not start.*--device cpu"
    with pytest.raises(EngineError, match=refused):
        load(tiny_bundle, engine="onnxruntime", device="cuda")


def test_an_engine_that_cannot_run_a_precision_says_so(tiny_fp16_bundle, monkeypatch):
    fp32_only = replace(select("onnxruntime"), precisions=("fp32",))
    monkeypatch.setattr("ris.engines.table.TABLE", (fp32_only,))
    with pytest.raises(EngineError, match="'onnxruntime' does not run fp16 graphs"):
        load(tiny_fp16_bundle)


def test_a_session_says_what_runs(session):
    assert session.info.engine == "onnxruntime"
    assert session.info.version == onnxruntime.__version__
    assert session.info.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize(
    ("feeds", "message"),
    [
        ({}, "input 'input_ids' is missing"),
        (
            {"ids": np.zeros((1, 35), np.int32)},
            "input 'input_ids' is missing; there is no input 'ids'",
        ),
        (
            {"input_ids": np.zeros((1, 35), np.int64)},
            r"int64 \[1, 35\], expected int32 \[expressions, 35\]",
        ),
        ({"input_ids": np.zeros((1, 34), np.int32)}, r"int32 \[1, 34\], expected"),
        ({"input_ids": np.zeros(35, np.int32)}, r"int32 \[35\], expected"),
    ],
)
def test_wrong_feeds_are_named(session, feeds, message):
    with pytest.raises(EngineError, match=f"text_encoder: .*{message}"):
        session.run(feeds)


def test_a_failure_inside_the_engine_is_one_line(session):
    ids = np.full((1, 35), 10**6, np.int32)  # no such row in the embedding
    with pytest.raises(EngineError, match="text_encoder: ONNX Runtime failed") as caught:
        session.run({"input_ids": ids})
    assert "\n" not in str(caught.value)


def test_a_closed_session(session):
    session.close()
    with pytest.raises(EngineError, match="closed"):
        session.run({"input_ids": np.zeros((1, 35), np.int32)})


def test_a_file_that_is_no_graph(tmp_path):
    path = tmp_path / "a.onnx"
    path.write_bytes(b"not onnx")
    graph = Graph("fusion", path, (TensorSpec("x", "float32", (1,)),), ())
    with pytest.raises(EngineError, match=r"fusion: ONNX Runtime cannot open .*a\.onnx"):
        create("onnxruntime").open(graph, path)
