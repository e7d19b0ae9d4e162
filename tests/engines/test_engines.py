"""The table, the contract, and ONNX Runtime: nothing falls back unseen."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from ris.engines import ENGINE_NAMES, TABLE, EngineOptions, Graph, TensorSpec, create, select
from ris.engines.errors import EngineError
from ris.runtime import load, open_bundle


@pytest.fixture
def session(tiny_bundle):
    graph = open_bundle(tiny_bundle).graph("text_encoder")
    engine = create()
    with engine.open(graph, engine.compile(graph)) as session:
        yield session


def test_auto_takes_the_first_that_is_installed(monkeypatch):
    assert select("auto").name == "onnxruntime"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r'no engine is installed: .*pip install "ris-runtime\[cpu\]"'):
        select("auto")
    with pytest.raises(EngineError, match=r"'onnxruntime' cannot run here: the package 'onnxruntime' is not installed"):
        select("onnxruntime")


def test_an_unknown_engine_lists_the_valid_names():
    with pytest.raises(
        EngineError, match=f"there is no engine 'tenssorrt'; this version has {', '.join(ENGINE_NAMES)}"
    ):
        select("tenssorrt")


def test_an_unknown_device_lists_the_valid_names():
    with pytest.raises(EngineError, match="no device 'npu'; it has cpu, cuda"):
        create("onnxruntime", EngineOptions(device="npu"))


def test_every_row_names_a_module_with_an_engine():
    for row in TABLE:
        assert create(row.name).options == EngineOptions()


def test_cuda_is_refused_where_it_is_not_there(tiny_bundle):
    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("this machine has onnxruntime-gpu")
    with pytest.raises(EngineError, match=r"no CUDAExecutionProvider .*ris-runtime\[gpu\]"):
        load(tiny_bundle, device="cuda")


def test_a_provider_that_does_not_start_is_an_error(tiny_bundle, monkeypatch):
    """ONNX Runtime itself answers a missing provider with the CPU and a warning."""
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    with pytest.raises(EngineError, match=r"CUDAExecutionProvider was asked for and did not start.*--device cpu"):
        load(tiny_bundle, device="cuda")


def test_an_engine_that_cannot_run_a_precision_says_so(tiny_fp16_bundle, monkeypatch):
    fp32_only = replace(TABLE[0], precisions=("fp32",))
    monkeypatch.setattr("ris.engines.table.TABLE", (fp32_only,))
    with pytest.raises(EngineError, match="'onnxruntime' does not run fp16 graphs"):
        load(tiny_fp16_bundle)


def test_a_session_says_what_runs(session):
    assert session.info.engine == "onnxruntime"
    assert session.info.version == onnxruntime.__version__
    assert session.info.providers == ("CPUExecutionProvider",)


@pytest.mark.parametrize(("feeds", "message"), [
    ({}, "input 'input_ids' is missing"),
    ({"ids": np.zeros((1, 35), np.int32)}, "input 'input_ids' is missing; there is no input 'ids'"),
    ({"input_ids": np.zeros((1, 35), np.int64)}, r"int64 \[1, 35\], expected int32 \[expressions, 35\]"),
    ({"input_ids": np.zeros((1, 34), np.int32)}, r"int32 \[1, 34\], expected"),
    ({"input_ids": np.zeros(35, np.int32)}, r"int32 \[35\], expected"),
])  # fmt: skip
def test_wrong_feeds_are_named(session, feeds, message):
    with pytest.raises(EngineError, match=f"text_encoder: .*{message}"):
        session.run(feeds)


def test_a_failure_inside_the_engine_is_one_line(session):
    with pytest.raises(EngineError, match="text_encoder: ONNX Runtime failed") as caught:
        session.run({"input_ids": np.full((1, 35), 10**6, np.int32)})  # no such row in the embedding
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
        create().open(graph, path)
