"""Graphs through TensorRT-RTX's real compiler, which needs no GPU: plans, errors, Ctrl-C."""

from __future__ import annotations

import dataclasses
import json
import os
import re
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
from ris.engines.cache import obtain
from ris.engines.cuda import driver_problem
from ris.engines.errors import EngineError
from ris.engines.probe import probe
from ris.engines.tensorrt_build import profiles
from ris.engines.tensorrt_progress import PhaseTree
from ris.runtime import load, open_bundle
from ris.runtime.commands.compile import main as compile_command
from ris.runtime.compile import compile_bundle, compiled_together

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
        version = f"{rtx.__version__}, library {rtx.__version__}, cu"
        assert sidecar["recipe"]["version"].startswith(version)
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
    engine = create(row.name, EngineOptions(build=False, max_expressions=9))
    refused = r"is of another profiles.dense_prompt .*\[8, .*, here \[\[1, .*\[9, "
    with pytest.raises(EngineError, match=refused):
        engine.build(bundle.graph("mask_decoder"))


def test_a_run_takes_what_was_compiled_for_more_and_a_compilation_does_not(compiled):
    bundle, graphs, _ = compiled
    graph = bundle.graph("mask_decoder")
    fewer = EngineOptions(build=False, max_expressions=3)
    found = create("tensorrt-rtx", fewer).build(graph)
    assert found.artifact == graphs["mask_decoder"].artifact
    refused = "no compiled tensorrt-rtx graph may be loaded .*profiles.dense_prompt"
    with pytest.raises(EngineError, match=refused):
        create("tensorrt-rtx", dataclasses.replace(fewer, exact=True)).build(graph)


def test_a_bundle_that_was_compiled_for_fewer_expressions_runs_as_it_is(
    rtx, tiny_gather_bundle, tmp_path
):
    copy = shutil.copytree(
        tiny_gather_bundle, tmp_path / "copy", ignore=shutil.ignore_patterns("engines")
    )
    bundle, engine = open_bundle(copy), create("tensorrt-rtx")
    assert [engine.most_compiled(bundle.graph(stage)) for stage in STAGES] == [0] * len(STAGES)
    assert compiled_together(bundle, engine, 8) == 8
    for stage in STAGES:
        graph = bundle.graph(stage)
        # what a build leaves, without the time that the compiler takes
        chosen = create("tensorrt-rtx", EngineOptions(max_expressions=2, max_batch=2, workspace=9))
        obtain(chosen._recipe(graph), graph.cache, plan_of_nothing, chosen.options)
    assert compiled_together(bundle, engine, 8) == 2
    assert compiled_together(bundle, engine, 1) == 1
    run = create("tensorrt-rtx", EngineOptions(build=False, max_expressions=2))
    for stage in STAGES:
        assert not run.build(bundle.graph(stage)).built_now


def plan_of_nothing(artifact):
    artifact.write_bytes(b"a plan")
    return {}


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
        create("tensorrt-rtx", EngineOptions(max_expressions=2, exact=True)).build(graph)
    assert not list(compiled[0].path.glob("engines/.*partial*"))


def test_an_island_that_the_manifest_does_not_name(compiled):
    graph = dataclasses.replace(compiled[0].graph("sam_image_encoder"), fp32_islands=frozenset())
    refused = r"computes \d+ of \d+ layers in FP32 that are no islands"
    options = EngineOptions(max_batch=2)
    built = create("tensorrt-rtx", options).build(graph)
    assert re.search(refused, built.report["notes"][0])
    assert len(built.report["unexpected"]) > 3
    strict = dataclasses.replace(options, strict=True)  # also where it lies in the cache
    with pytest.raises(EngineError, match=f"{refused}.*leave out strict"):
        create("tensorrt-rtx", strict).build(graph)


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


def test_a_profile_covers_the_lengths_of_rows():
    ids = TensorSpec("ids", "int32", ("expressions", "tokens"))
    graph = Graph("fusion", None, (ids,), (), lengths=(24, 32, 64))
    shapes = profiles(graph, EngineOptions(max_expressions=6))
    assert shapes == {"ids": [[1, 24], [1, 24], [6, 64]]}


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


@pytest.fixture
def own(rtx, monkeypatch):
    """The engine `tensorrt` over the module of TensorRT-RTX, as if there were a driver."""
    from cuda_double import Cuda
    from ris.engines import cuda, tensorrt

    double = Cuda()
    monkeypatch.setattr(cuda, "driver_problem", lambda: None)
    monkeypatch.setattr(cuda, "gpu_problem", lambda index: None)
    monkeypatch.setattr(cuda, "load", lambda: double)
    monkeypatch.setattr(tensorrt.TensorRtEngine, "package", "tensorrt_rtx")
    return tensorrt.ENGINE, double


def test_tensorrts_own_path_as_far_as_rtx_goes(compiled, own, tmp_path):
    engine, double = own
    options = EngineOptions(device="cuda:1", workspace=2**28, max_expressions=2)
    graph = compiled[0].graph("text_encoder")
    built = [engine(options).build(graph) for _ in range(2)]
    assert [b.built_now for b in built] == [True, False]
    assert built[0].report["layers_from"] in ("build log", "engine inspector")
    assert "tensorrt-build" in double.threads  # which made the GPU its own
    sidecar = json.loads(built[0].artifact.with_suffix(".json").read_text())
    assert sidecar["recipe"]["device"] == "sm_90, NVIDIA Double, 132 SMs, 140 GiB"
    assert sidecar["recipe"]["options"]["workspace"] == 2**28
    folder = tmp_path / "user" / "ris-runtime" / "engines"
    (timing,) = folder.glob("timing-tensorrt-*-sm_90-NVIDIA-Double-132-SMs-140-GiB.bin")
    first = timing.read_bytes()
    timing.write_bytes(b"damaged")
    engine(dataclasses.replace(options, max_expressions=3)).build(graph)
    assert timing.read_bytes() == first or timing.stat().st_size > 7


@pytest.mark.parametrize(
    "change",
    [
        lambda double: setattr(double.properties, "name", b"NVIDIA Other"),
        lambda double: setattr(double.properties, "multiProcessorCount", 16),
        lambda double: setattr(double.properties, "totalGlobalMem", 2**34),
        lambda double: setattr(double.properties, "minor", 1),
    ],
)
def test_a_plan_of_another_gpu_is_another_plan(own, compiled, change):
    engine, double = own
    graph, options = compiled[0].graph("text_encoder"), EngineOptions(device="cuda")
    key = engine(options)._recipe(graph).key
    change(double)
    assert engine(options)._recipe(graph).key != key


def test_a_plan_of_another_library_cuda_or_code_is_another_plan(own, compiled, monkeypatch):
    engine, _ = own
    graph, keys = compiled[0].graph("text_encoder"), []

    def add():
        keys.append(engine(EngineOptions(device="cuda"))._recipe(graph).key)

    add()
    for name, value in (("cuda_flavour", "cu12"), ("library_version", "10.0.0.1")):
        monkeypatch.setattr(f"ris.engines.tensorrt_version.{name}", lambda _, value=value: value)
        add()
    monkeypatch.setattr("ris.engines.tensorrt.BUILD_VERSION", 99)
    add()
    assert len(set(keys)) == 4


def test_a_run_takes_plans_whatever_they_were_compiled_with(own, compiled):
    engine, _ = own
    graph = dataclasses.replace(compiled[0].graph("text_encoder"))
    asked = EngineOptions(
        device="cuda",
        max_batch=2,
        max_expressions=16,
        workspace=2**20,
        version_compatible=True,
        hardware_compatible=True,
        strip_weights=True,
        exact=True,
    )
    recipe = engine(asked)._recipe(graph)
    made = obtain(recipe, graph.cache, plan_of_nothing, asked)
    run = EngineOptions(device="cuda", build=False)
    assert engine(run).build(graph).artifact == made.artifact
    for wrong in ({"workspace": 1}, {"max_expressions": 17}):
        with pytest.raises(EngineError, match="may be loaded"):
            engine(dataclasses.replace(run, **wrong)).build(graph)
    for right in ({"workspace": 2**20}, {"strip_weights": True}, {"version_compatible": True}):
        engine(dataclasses.replace(run, **right)).build(graph)


def test_what_a_plan_brings_is_read_off_its_sidecar_when_it_is_opened(own, compiled, monkeypatch):
    engine, _ = own
    graph, opened = compiled[0].graph("text_encoder"), []
    monkeypatch.setattr(
        "ris.engines.tensorrt.open_session", lambda *given: opened.append(given[-1])
    )
    asked = EngineOptions(
        device="cuda", version_compatible=True, strip_weights=True, max_expressions=5, exact=True
    )
    plain = dataclasses.replace(asked, version_compatible=False, strip_weights=False)
    for options in (asked, plain):
        made = obtain(engine(options)._recipe(graph), graph.cache, plan_of_nothing, options)
        engine(EngineOptions(device="cuda", cuda_graphs=False)).open(graph, made.artifact)
    assert [plan.has_host_code for plan in opened] == [True, False]
    assert [plan.refit_from for plan in opened] == [graph.path, None]
    assert not any(plan.cuda_graphs for plan in opened)


def test_tensorrt_without_a_driver_says_so_before_anything_else(without_driver, monkeypatch):
    from ris.engines import tensorrt

    refused = "engine 'tensorrt' compiles and runs on a GPU only: no CUDA driver"
    with pytest.raises(EngineError, match=refused):
        tensorrt.ENGINE(EngineOptions(device="cuda"))
