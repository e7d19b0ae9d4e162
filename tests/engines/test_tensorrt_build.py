"""Graphs through TensorRT-RTX's real compiler, which needs no GPU: plans, errors, Ctrl-C."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time

import onnx
import pytest
from click.testing import CliRunner
from onnx import helper
from stages import STAGES

from ris.engines import EngineOptions, Graph, TensorSpec, create, select
from ris.engines.cuda import driver_problem
from ris.engines.errors import EngineError
from ris.engines.probe import probe
from ris.engines.tensorrt_build import profiles
from ris.engines.tensorrt_precision import (
    Layer,
    count_precisions,
    layers_from_json,
    layers_from_log,
)
from ris.engines.tensorrt_progress import PhaseTree
from ris.runtime import load, open_bundle
from ris.runtime.commands.compile import main as compile_command
from ris.runtime.compile import compile_bundle

X = TensorSpec("x", "float32", ("images", 3))


@pytest.fixture(autouse=True)
def user_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))


@pytest.fixture(scope="module")
def rtx():
    return pytest.importorskip(
        "tensorrt_rtx", reason='tensorrt_rtx is not installed: pip install ".[tensorrt-rtx]"'
    )


@pytest.fixture
def without_driver():
    if driver_problem() is None:
        pytest.skip("there is a CUDA driver here")


@pytest.fixture(scope="module")
def compiled(rtx, tiny_gather_bundle):
    """The graphs, compiled once for this module."""
    progress = []
    bundle = open_bundle(tiny_gather_bundle)
    row = select("tensorrt-rtx")
    graphs = compile_bundle(bundle, row, create(row.name), lambda *event: progress.append(event))
    return bundle, graphs, progress


def test_all_graphs_compile_in_the_precision_that_was_asked_for(compiled, rtx):
    bundle, graphs, _ = compiled
    assert tuple(graphs) == STAGES
    for graph in graphs.values():
        assert graph.built_now
        assert graph.artifact.parent.parent == bundle.path / "engines"
        sidecar = json.loads(graph.artifact.with_suffix(".json").read_text())
        assert sidecar["recipe"]["version"] == rtx.__version__
        assert sidecar["bytes"] == graph.bytes > 10000
        if graph.asked == "fp32":
            assert set(graph.layers) <= {"fp32", "integer"}
        else:
            assert graph.layers["fp16"] > graph.layers.get("fp32", 0)


def test_the_second_time_they_come_from_the_cache(compiled):
    bundle, graphs, _ = compiled
    row = select("tensorrt-rtx")
    again = compile_bundle(bundle, row, create(row.name, EngineOptions(build=False)))
    assert not any(graph.built_now for graph in again.values())
    assert {s: g.artifact for s, g in again.items()} == {s: g.artifact for s, g in graphs.items()}
    engine = create(row.name, EngineOptions(build=False, max_expressions=3))
    refused = r"is of another profiles.dense_prompt .*\[8, .*, here \[\[1, .*\[3, "
    with pytest.raises(EngineError, match=refused):
        engine.build(bundle.graph("mask_decoder"))


def test_progress_is_real_and_never_goes_back(compiled):
    _, _, progress = compiled
    for stage in STAGES:
        done = [share for name, _, share in progress if name == stage and share is not None]
        assert done == sorted(done)
        assert done[0] == 0
        assert 0.9 < done[-1] <= 1
    assert len({what for _, what, _ in progress}) > 5


def test_plans_need_a_driver(compiled, without_driver):
    bundle, graphs, _ = compiled
    graph = bundle.graph("text_encoder")
    refused = "text_encoder: engine 'tensorrt-rtx' cannot run here: no CUDA driver"
    with pytest.raises(EngineError, match=refused):
        create("tensorrt-rtx").open(graph, graphs["text_encoder"].artifact)
    with pytest.raises(EngineError, match="no CUDA driver"):
        load(bundle.path, engine="tensorrt-rtx")
    assert probe("tensorrt-rtx", "cuda").problem.startswith("no CUDA driver")
    assert "cpu" in select("auto").devices


def test_grid_sample_nodes_are_refused(rtx, tiny_fp16_bundle):
    row = select("tensorrt-rtx")
    with pytest.raises(EngineError, match=r"fusion in .* has some; export .* --grid-sample gather"):
        compile_bundle(open_bundle(tiny_fp16_bundle), row, create(row.name))
    refused = "does not run GridSample nodes reliably, and the fusion in"
    with pytest.raises(EngineError, match=refused):
        create(row.name).build(open_bundle(tiny_fp16_bundle).graph("fusion"))


def test_an_fp32_graph_is_no_fp16_graph(compiled):
    """What an ignored FP16 flag would give."""
    graph = dataclasses.replace(
        compiled[0].graph("mask_decoder"), precision="fp16", fp32_islands=frozenset()
    )
    refused = r"FP16 was asked for, but TensorRT-RTX .* computes \d+ of \d+ layers"
    with pytest.raises(EngineError, match=refused):
        create("tensorrt-rtx", EngineOptions(max_expressions=2)).build(graph)
    assert not list(compiled[0].path.glob("engines/.*partial*"))


def test_an_island_that_the_manifest_does_not_name(compiled):
    graph = dataclasses.replace(compiled[0].graph("sam_image_encoder"), fp32_islands=frozenset())
    refused = r"computes \d+ of \d+ layers in FP32 that are no islands"
    with pytest.raises(EngineError, match=refused):
        create("tensorrt-rtx", EngineOptions(max_batch=2)).build(graph)


def small_graph(path, *nodes, domain=""):
    x, y = (
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["images", 3]) for name in "xy"
    )
    graph = helper.make_graph(list(nodes), "small", [x], [y])
    opsets = [helper.make_opsetid("", 20)]
    if domain:
        opsets.append(helper.make_opsetid(domain, 1))
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    outputs = (dataclasses.replace(X, name="y"),)
    return Graph("fusion", path, (X,), outputs, cache=path.parent / "engines")


def test_unsupported_operators_are_all_named_in_the_parsers_words(rtx, tmp_path):
    nodes = [
        helper.make_node("Unique", ["x"], ["u"], name="first"),
        helper.make_node("Det", ["x"], ["d"], name="second"),
        helper.make_node("Add", ["x", "x"], ["y"]),
    ]
    graph = small_graph(tmp_path / "a.onnx", *nodes)
    with pytest.raises(EngineError) as caught:
        create("tensorrt-rtx").build(graph)
    text = str(caught.value)
    assert text.startswith("fusion: TensorRT-RTX ")
    assert "node 'first' (Unique): UNSUPPORTED_NODE" in text
    assert "node 'second' (Det): UNSUPPORTED_NODE" in text
    assert "\n" not in text


def test_an_unknown_operator(rtx, tmp_path):
    node = helper.make_node("Magic", ["x"], ["y"], name="m", domain="x.y")
    graph = small_graph(tmp_path / "a.onnx", node, domain="x.y")
    with pytest.raises(EngineError, match=r"node 'm' \(Magic\): INVALID_NODE: .*Plugin not found"):
        create("tensorrt-rtx").build(graph)


def test_a_broken_graph(rtx, tmp_path, compiled):
    whole = compiled[0].graph("fusion")
    graph = dataclasses.replace(whole, path=tmp_path / "fusion.onnx", sha256={})
    graph.path.write_bytes(whole.path.read_bytes()[:5000])
    refused = "cannot read .*: MODEL_DESERIALIZE_FAILED: .*Failed to parse the ONNX"
    with pytest.raises(EngineError, match=refused):
        create("tensorrt-rtx").build(graph)


def test_a_graph_of_other_inputs(rtx, tmp_path):
    graph = small_graph(tmp_path / "a.onnx", helper.make_node("Add", ["x", "x"], ["y"]))
    other = dataclasses.replace(graph, inputs=(dataclasses.replace(X, name="z"),))
    refused = "has the inputs x, the manifest says z; export the bundle again"
    with pytest.raises(EngineError, match=refused):
        create("tensorrt-rtx").build(other)


def test_ctrl_c_stops_the_build_and_leaves_nothing(rtx, tiny_gather_bundle, tmp_path):
    bundle = shutil.copytree(
        tiny_gather_bundle, tmp_path / "copy", ignore=shutil.ignore_patterns("engines")
    )
    code = "from ris.runtime.commands.compile import main; main()"
    command = [sys.executable, "-c", code, str(bundle), "--engine", "tensorrt-rtx"]
    process = subprocess.Popen(
        command,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        # a test run in the background has SIGINT ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stderr
    for line in process.stderr:
        if "Compile fusion" in line and "parsing" not in line:
            break
    start = time.perf_counter()
    process.send_signal(signal.SIGINT)
    rest = process.stderr.read()
    assert process.wait(timeout=60) == 130
    assert "Stopped; nothing half-written is left behind." in rest
    assert time.perf_counter() - start < 30
    engines = bundle / "engines"
    assert not list(engines.glob(".*partial*"))
    assert not list(engines.glob("*/fusion.*"))


def test_the_command_prints_the_precision_of_every_graph(compiled):
    path = str(compiled[0].path)
    done = CliRunner().invoke(compile_command, [path, "--engine", "tensorrt-rtx"])
    assert done.exit_code == 0
    assert all(stage in done.output for stage in STAGES)
    assert "0 of 6 graphs compiled" in done.output
    done = CliRunner().invoke(compile_command, [path, "--engine", "tensorrt-rtx", "--json"])
    report = json.loads(done.stdout)
    assert report["engine"] == "tensorrt-rtx"
    layers = (report["graphs"][stage]["layers"]["fp16"] for stage in ("image_features", "fusion"))
    assert sum(layers) > 100


def test_engines_that_compile_nothing_say_so(tiny_bundle):
    done = CliRunner().invoke(compile_command, [str(tiny_bundle), "--engine", "onnxruntime"])
    assert "onnxruntime runs the graphs of" in done.output
    done = CliRunner().invoke(
        compile_command, [str(tiny_bundle), "--engine", "onnxruntime", "--workspace", "64"]
    )
    assert "engine 'onnxruntime' has no option workspace" in done.output


@pytest.mark.parametrize("option", ["version_compatible", "hardware_compatible", "strip_weights"])
def test_options_that_rtx_lacks_are_refused(rtx, option):
    with pytest.raises(EngineError, match=f"engine 'tensorrt-rtx' has no option {option}"):
        create("tensorrt-rtx", EngineOptions(**{option: True}))


def test_options_out_of_range():
    with pytest.raises(EngineError, match="must be at least 1, got 0 and 8"):
        create("onnxruntime", EngineOptions(max_batch=0))


def test_profiles_come_from_the_axes():
    index = TensorSpec("index", "int32", ("expressions",))
    fixed = TensorSpec("k", "float32", (2, 3))
    graph = Graph("fusion", None, (X, index, fixed), ())
    shapes = profiles(graph, EngineOptions(max_batch=4, max_expressions=6))
    assert shapes == {"x": [[1, 3], [1, 3], [4, 3]], "index": [[1], [1], [6]]}
    odd = Graph("fusion", None, (TensorSpec("x", "float32", ("tokens",)),), ())
    with pytest.raises(EngineError, match="input 'x' has an unknown axis 'tokens'"):
        profiles(odd, EngineOptions())


def test_a_phase_is_part_of_its_parents_step():
    tree = PhaseTree()
    tree.start("build", None, 4)
    tree.step("build", 0)
    assert tree.fraction == 0.25
    tree.start("optimise", "build", 2)
    tree.step("optimise", 0)
    assert tree.fraction == 0.375
    tree.finish("optimise")
    tree.step("unknown", 3)
    tree.start("optimise", "build", 10)  # names come again
    tree.step("optimise", 0)
    assert tree.fraction == 0.375


@pytest.mark.parametrize("key", ["Datatype", "Format/Datatype"])
def test_layers_from_the_inspector(key):
    """TensorRT 11's JSON and 10's, as documented; neither can be made without a GPU."""
    half = "Half" if key == "Datatype" else "Row major linear FP16 format"
    entry = {
        "Name": "gemm_1",
        "LayerType": "gemm",
        "Inputs": [{"Name": "a", key: half}],
        "Outputs": [{"Name": "b", key: "Float"}],
        "Metadata": "[ONNX Layer: one]\x1e[ONNX Layer: two]",
    }
    expected = Layer(
        "gemm_1", "gemm", frozenset({"fp16"}), frozenset({"fp32"}), frozenset({"one", "two"})
    )
    assert layers_from_json(json.dumps({"Layers": [entry]})) == [expected]
    assert layers_from_json(json.dumps({"Layers": ["gemm_1"]})) == []  # names only
    assert layers_from_json("nothing") == []


def test_layers_from_the_log():
    line = (
        "Name: mm, LayerType: gemm, Inputs: [ { Name: a, Dimensions: [-1,4], Datatype: Float,"
        " Format: (Linear) x }], Constants: [ { Name: w, Datatype: Half }], Outputs: [ { Name: b,"
        " Datatype: Float }], TacticName: t, StreamId: 0, Metadata: [ONNX Layer: node_1]"
    )
    (layer,) = layers_from_log(f"Layers:\n{line}\n\nI/O Tensors:\n Name: a, IOMode: Input")
    assert layer == Layer(
        "mm", "gemm", frozenset({"fp32"}), frozenset({"fp32"}), frozenset({"node_1"})
    )
    graph = Graph("fusion", None, (), (), precision="fp16")
    assert count_precisions([layer], graph).unexpected == ("mm",)
    island = dataclasses.replace(graph, fp32_islands=frozenset({"node_1"}))
    assert count_precisions([layer], island) == count_precisions(
        [layer], dataclasses.replace(graph, precision="fp32")
    )
    cast = dataclasses.replace(layer, reads=frozenset({"fp16"}))
    assert not count_precisions([cast], graph).unexpected
    reformat = Layer("reformat", "reformat", frozenset({"fp32"}), frozenset({"fp32"}), frozenset())
    assert not count_precisions([reformat], graph).unexpected


def test_tensorrts_own_path_as_far_as_rtx_goes(compiled, monkeypatch, tmp_path):
    """The engine `tensorrt` over the module of TensorRT-RTX, as if there were a driver."""
    from cuda_double import Cuda
    from ris.engines import cuda, tensorrt

    monkeypatch.setattr(cuda, "driver_problem", lambda: None)
    monkeypatch.setattr(cuda, "load", Cuda)
    monkeypatch.setattr(tensorrt.TensorRtEngine, "package", "tensorrt_rtx")
    options = EngineOptions(device="cuda", workspace=2**28, max_expressions=2)
    graph = compiled[0].graph("text_encoder")
    built = [tensorrt.ENGINE(options).build(graph) for _ in range(2)]
    assert [b.built_now for b in built] == [True, False]
    assert built[0].report["layers_from"] in ("build log", "engine inspector")
    sidecar = json.loads(built[0].artifact.with_suffix(".json").read_text())
    assert sidecar["recipe"]["device"] == "sm_90"
    assert sidecar["recipe"]["options"]["workspace"] == 2**28
    (timing,) = (tmp_path / "user" / "ris-runtime" / "engines").glob("timing-tensorrt-*-sm_90.bin")
    first = timing.read_bytes()
    timing.write_bytes(b"damaged")
    tensorrt.ENGINE(dataclasses.replace(options, max_expressions=3)).build(graph)
    assert timing.read_bytes() == first or timing.stat().st_size > 7
    compatible = dataclasses.replace(options, hardware_compatible=True)
    assert tensorrt.ENGINE(compatible).build(graph).artifact != built[0].artifact


def test_tensorrt_without_a_driver_says_so_before_anything_else(without_driver, monkeypatch):
    from ris.engines import tensorrt

    refused = "engine 'tensorrt' compiles and runs on a GPU only: no CUDA driver"
    with pytest.raises(EngineError, match=refused):
        tensorrt.ENGINE(EngineOptions(device="cuda"))
