"""ONNX Runtime beyond the CPU: bindings run for real, on the CPU; providers run over a double."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from cuda_double import Cuda
from ris.engines import EngineOptions, HostStep, create, cuda, processor, select
from ris.engines.base import SessionInfo
from ris.engines.errors import EngineError
from ris.engines.onnxruntime import CPU, CUDA, OnnxRuntimeSession, OrtDeviceValue
from ris.engines.onnxruntime_tensorrt import TENSORRT
from ris.runtime import open_bundle


@pytest.fixture
def graph(tiny_supplement_bundle):
    return open_bundle(tiny_supplement_bundle).graph("text_encoder")


def test_bound_values_give_what_arrays_give(tiny_bundle):
    """SAM's embeddings stay an OrtValue between two graphs."""
    bundle = open_bundle(tiny_bundle)
    engine = create("onnxruntime")
    rng = np.random.default_rng(0)
    encoder_graph, decoder_graph = bundle.graph("sam_image_encoder"), bundle.graph("mask_decoder")
    with (
        engine.open(encoder_graph, encoder_graph.path) as sam,
        engine.open(decoder_graph, decoder_graph.path) as decoder,
    ):
        image = rng.normal(size=(1, 3, 256, 256)).astype(np.float32)
        plain = sam.run({"image": image})["image_embeddings"]
        [kept] = sam._bound({"image": image}, "cpu")
        value = OrtDeviceValue(kept, np.dtype(np.float32))
        np.testing.assert_array_equal(value.numpy(), plain)
        size = plain.shape[1:]
        feeds = {
            "dense_prompt": rng.normal(size=(2, *size)).astype(np.float32),
            "sparse_prompt": rng.normal(size=(2, 1, size[0])).astype(np.float32),
            "image_index": np.zeros(2, np.int32),
        }
        want = decoder.run({"image_embeddings": plain, **feeds})["mask_logits"]
        got = decoder.run({"image_embeddings": value, **feeds})["mask_logits"]
        np.testing.assert_array_equal(got, want)
        with pytest.raises(EngineError, match=r"float32 \[1, 64, 16, 16\], expected"):
            decoder.run({"image_embeddings": value, **feeds, "sparse_prompt": value})
        value.close()
        value.close()
        with pytest.raises(EngineError, match="closed; encode the image again"):
            decoder.run({"image_embeddings": value, **feeds})


def test_a_session_tells_which_provider_got_how_many_nodes(graph):
    engine = create("onnxruntime")
    with engine.open(graph, graph.path) as session:
        assert session.info.nodes[CPU] > 50
        assert session.info.where == f"{CPU} {session.info.nodes[CPU]} nodes"
    both = SessionInfo("onnxruntime", "1", "cuda", (CUDA, CPU), {CUDA: 812, CPU: 9})
    assert both.where == "CUDAExecutionProvider 812 nodes, CPUExecutionProvider 9"
    uncounted = SessionInfo("onnxruntime", "1", "cuda", (CUDA, CPU))
    assert uncounted.where == "CUDAExecutionProvider, CPUExecutionProvider"


class Recorded:
    """An InferenceSession that starts whatever it is asked for, on the CPU."""

    made: list
    starts = True
    writes_context = True

    def __init__(self, model, options, providers, enable_fallback):
        assert not enable_fallback
        self.model, self.options, self.asked = model, options, providers
        Recorded.made.append(self)
        if Recorded.writes_context and (path := self.entry("ep.context_file_path")):
            with open(path, "wb") as file:
                file.write(b"context of " + str(model).encode())

    def entry(self, name):
        try:
            return self.options.get_session_config_entry(name)
        except RuntimeError:
            return None

    def get_providers(self):
        return [name for name, _ in self.asked] if Recorded.starts else [CPU]

    def get_provider_graph_assignment_info(self):
        return []


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """A machine whose onnxruntime has both providers."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [TENSORRT, CUDA, CPU])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda directory: None)
    monkeypatch.setattr(onnxruntime, "InferenceSession", Recorded)
    monkeypatch.setattr(cuda, "driver_problem", lambda: None)
    monkeypatch.setattr(cuda, "gpu_problem", lambda index: None)
    monkeypatch.setattr(cuda, "load", Cuda)
    monkeypatch.setattr(cuda, "_STATE", type(cuda._STATE)())  # no driver is used really
    monkeypatch.setattr("ris.engines.table.driver_problem", lambda: None)
    monkeypatch.setattr(Recorded, "made", [], raising=False)
    monkeypatch.setattr(Recorded, "starts", True)
    monkeypatch.setattr(Recorded, "writes_context", True)
    return Recorded


def test_cuda_is_asked_for_with_its_options(gpu, graph):
    create("onnxruntime", EngineOptions("cuda")).open(graph, graph.path)
    [session] = gpu.made
    assert [name for name, _ in session.asked] == [CUDA, CPU]
    assert session.asked[0][1]["use_tf32"] == "0"
    assert session.entry("session.disable_cpu_ep_fallback") is None


def test_the_number_of_the_gpu_goes_to_the_providers(gpu, graph, tmp_path):
    graph = replace(graph, cache=tmp_path / "engines")
    session = create("onnxruntime", EngineOptions("cuda:1")).open(graph, graph.path)
    assert (session.info.device, gpu.made[-1].asked[0][1]["device_id"]) == ("cuda:1", "1")
    create("onnxruntime-tensorrt", EngineOptions("cuda:1")).build(graph)
    ids = [options.get("device_id") for _, options in gpu.made[-1].asked]
    assert ids == ["1", "1", None]


def test_auto_takes_the_first_engine_that_has_cuda_here(gpu, monkeypatch):
    assert select("auto", "cuda").name == "onnxruntime"
    assert select("auto", "cuda:1").name == "onnxruntime"

    # an onnxruntime for CPUs has the same package
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: [CPU])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name)
    assert select("auto", "cuda").name == "tensorrt"
    assert "cpu" in select("auto").devices  # which asks for no GPU
    monkeypatch.setattr("ris.engines.table.driver_problem", lambda: "no CUDA driver")
    with pytest.raises(EngineError) as caught:
        select("auto", "cuda")
    for reason in (
        "openvino: it has no device 'cuda'",
        "onnxruntime: this onnxruntime has no CUDAExecutionProvider",
        "tensorrt: no CUDA driver",
    ):
        assert reason in str(caught.value)


def test_the_timing_cache_has_its_folder_before_the_provider_wants_it(gpu, tmp_path):
    """The provider makes a missing folder, but not one below another that is missing."""
    [(_, options), _] = create("onnxruntime-tensorrt", EngineOptions("cuda")).providers()
    folder = tmp_path / "user" / "ris-runtime" / "engines"
    assert options["trt_timing_cache_path"] == str(folder)
    assert folder.is_dir()


def test_a_model_of_other_code_or_another_tensorrt_is_compiled_again(gpu, graph, monkeypatch):
    built = create("onnxruntime-tensorrt", EngineOptions("cuda"))._recipe(graph, {})
    assert built.device == "sm_90, NVIDIA Double, 132 SMs, 140 GiB"
    monkeypatch.setattr("ris.engines.onnxruntime_tensorrt.BUILD_VERSION", 99)
    other = create("onnxruntime-tensorrt", EngineOptions("cuda"))._recipe(graph, {})
    assert other.key != built.key
    module = "ris.engines.onnxruntime_tensorrt"
    monkeypatch.setattr(f"{module}.linked_library", lambda provider: "libnvinfer.so.10")
    monkeypatch.setattr(f"{module}.library_version", lambda library: "10.16.1.11")
    linked = create("onnxruntime-tensorrt", EngineOptions("cuda"))._recipe(graph, {})
    assert "TensorRT 10.16.1.11, " in linked.version


def test_strict_refuses_the_cpu(gpu, graph):
    create("onnxruntime", EngineOptions("cuda", strict=True)).open(graph, graph.path)
    [session] = gpu.made
    assert [name for name, _ in session.asked] == [CUDA]
    assert session.entry("session.disable_cpu_ep_fallback") == "1"


@pytest.mark.parametrize(
    ("features", "entry"),
    [
        ({"avx2", "avx512f"}, "1"),
        ({"avx2", "avx512f", "avx512_vnni"}, None),  # its own products are exact there, and faster
        ({"avx2", "avx_vnni"}, None),
        (set(), "1"),  # unknown
    ],
)
def test_int8_products_are_asked_to_be_exact_where_they_overflow(
    gpu, graph, monkeypatch, features, entry
):
    monkeypatch.setattr(processor, "cpu_features", lambda: frozenset(features))
    create("onnxruntime").open(graph, graph.path)
    create("onnxruntime").open(replace(graph, weights="int4"), graph.path)
    session, narrow = gpu.made
    assert session.entry("session.x64quantprecision") == entry
    assert narrow.entry("session.x64quantprecision") is None, "it has no INT8 products"


def test_what_stays_on_the_device_is_bound_there(gpu, graph, monkeypatch):
    class Value:
        def shape(self):
            return [1, 35, 64]

    class Binding:
        def __init__(self):
            self.calls = []

        def __getattr__(self, name):
            return lambda *arguments: self.calls.append((name, *arguments))

        def get_outputs(self):
            return [Value()]

    class Inner:
        def io_binding(self):
            return binding

        def run_with_iobinding(self, binding):
            pass

    binding = Binding()
    info = SessionInfo("onnxruntime", "1", "cuda", (CUDA,))
    session = OnnxRuntimeSession(graph, info, Inner(), "cuda:1")
    kept = session.run_and_keep({"input_ids": np.zeros((1, 35), np.int32)})
    assert isinstance(kept["text_features"], OrtDeviceValue)
    assert kept["text_features"].shape == (1, 35, 64)
    assert [call[0] for call in binding.calls] == ["bind_cpu_input", "bind_output"]
    assert binding.calls[1] == ("bind_output", "text_features", "cuda", 1)
    with pytest.raises(EngineError, match="input 'input_ids' is missing"):
        session.run_and_keep({})

    monkeypatch.setattr(OrtDeviceValue, "numpy", lambda self: np.ones((1, 35, 64), np.float32))
    step = HostStep(lambda maps: 2 * maps[:, :5], (5, 64))
    changed = session.run_and_keep(
        {"input_ids": np.zeros((1, 35), np.int32)}, {"text_features": step}
    )
    assert np.array_equal(changed["text_features"], np.full((1, 5, 64), 2, np.float32))


def test_tensorrt_compiles_once_into_a_context_model(gpu, graph, tmp_path):
    graph = replace(graph, cache=tmp_path / "engines")
    options = EngineOptions("cuda", max_expressions=4, workspace=2**30)
    engine = create("onnxruntime-tensorrt", options)
    first = engine.build(graph)
    [session] = gpu.made
    assert [name for name, _ in session.asked] == [TENSORRT, CUDA, CPU]
    given = session.asked[0][1]
    assert given["trt_profile_min_shapes"] == given["trt_profile_opt_shapes"] == "input_ids:1x35"
    assert given["trt_profile_max_shapes"] == "input_ids:4x35"
    assert given["trt_max_workspace_size"] == str(2**30)
    assert not any("fp16" in name or "int8" in name for name in given)  # precision is in the graph
    assert session.entry("ep.context_embed_mode") == "1"
    assert first.built_now

    again = create("onnxruntime-tensorrt", options).build(graph)
    assert (again.artifact, again.built_now) == (first.artifact, False)
    exact = EngineOptions("cuda", max_expressions=3, exact=True)
    other = create("onnxruntime-tensorrt", exact).build(graph)
    assert other.artifact != first.artifact
    three = create("onnxruntime-tensorrt", EngineOptions("cuda", max_expressions=2)).build(graph)
    assert (three.artifact, three.built_now) == (other.artifact, False)  # it will do

    engine.open(graph, first.artifact)
    assert gpu.made[-1].model == first.artifact.read_bytes()
    first.artifact.write_bytes(b"other")
    with pytest.raises(EngineError, match="is damaged"):
        engine.open(graph, first.artifact)


def test_tensorrt_that_takes_nothing_is_an_error(gpu, graph, tmp_path, monkeypatch):
    monkeypatch.setattr(Recorded, "writes_context", False)
    with pytest.raises(EngineError, match="text_encoder: ONNX Runtime wrote no EPContext model"):
        create("onnxruntime-tensorrt").build(replace(graph, cache=tmp_path))
    monkeypatch.setattr(Recorded, "starts", False)
    refused = "TensorrtExecutionProvider was asked for and did not start"
    with pytest.raises(EngineError, match=refused):
        create("onnxruntime-tensorrt").build(replace(graph, cache=tmp_path))
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and path.suffix != ".lock"]


def test_tensorrt_takes_gathers_only(gpu, tiny_bundle):
    fusion = open_bundle(tiny_bundle).graph("fusion")
    refused = "does not run GridSample nodes reliably, and the fusion in"
    with pytest.raises(EngineError, match=refused):
        create("onnxruntime-tensorrt").build(fusion)


def test_tensorrt_needs_a_gpu():
    if cuda.driver_problem() is None:
        pytest.skip("this machine has a GPU")
    assert select("onnxruntime-tensorrt").unusable().startswith("no CUDA driver")
    with pytest.raises(EngineError, match="compiles and runs on a GPU only: no CUDA driver"):
        create("onnxruntime-tensorrt")
