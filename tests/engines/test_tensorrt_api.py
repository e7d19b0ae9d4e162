"""Everything our code takes from TensorRT and cuda-python exists there: names, enums, arguments.

What is used is read off the source, so a new call is checked without being listed here. TensorRT's
real bindings of both major versions answer, over stub libraries, in a process of their own;
TensorRT-RTX and cuda-python themselves where they are installed.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import re
import subprocess
import sys

import pytest

import cuda_double
from conftest import REPO
from tensorrt_bindings_helper import VERSIONS, NotHere, run_under

# what our names for TensorRT's objects stand for
CLASSES = {
    "builder": "Builder",
    "network": "INetworkDefinition",
    "parser": "OnnxParser",
    "config": "IBuilderConfig",
    "profile": "IOptimizationProfile",
    "engine": "ICudaEngine",
    "context": "IExecutionContext",
    "runtime": "Runtime",
    "inspector": "EngineInspector",
    "refitter": "Refitter",
    "parser_error": "ParserError",
    "timing_cache": "ITimingCache",
    "tensor": "ITensor",
    "runtime_config": "IRuntimeConfig",
    "runtime_cache": "IRuntimeCache",
}
# the modules that use TensorRT, and which of the names above are TensorRT's objects in them
FILES = {
    "tensorrt.py": set(),
    "tensorrt_bucket.py": {"engine", "context"},
    "tensorrt_build.py": set(CLASSES),
    "tensorrt_kernels.py": {"engine", "runtime_config", "runtime_cache"},
    "tensorrt_logger.py": set(),
    "tensorrt_progress.py": set(),
    "tensorrt_session.py": {"engine", "runtime", "refitter"},
}
OVERRIDDEN = {
    "IProgressMonitor": ("phase_start", "phase_finish", "step_complete"),
    "ILogger": ("log",),
}


# only TensorRT-RTX has these; the code asks whether the module has the first of them
RTX_ONLY = (
    "DynamicShapesKernelSpecializationStrategy",
    "BuilderFlag.REQUIRE_USER_ALLOCATION",
    "IRuntimeConfig.",
    "IRuntimeCache.",
)


def dotted(node):
    """a.b.c -> ["a", "b", "c"]; a call or an index anywhere in it ends the chain."""
    parts = []
    while isinstance(node, ast.Attribute):
        parts.insert(0, node.attr)
        node = node.value
    return [node.id, *parts] if isinstance(node, ast.Name) else ["", *parts]


def used(rtx=False):
    """Everything our code takes from TensorRT: path in the module, number of arguments or None."""
    found = {(f"{base}.{name}", None) for base, names in OVERRIDDEN.items() for name in names}
    for file, objects in FILES.items():
        tree = ast.parse((REPO / "engines" / file).read_text())
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if not isinstance(node, ast.Attribute):
                continue
            parts, call = dotted(node), calls.get(id(node))
            count = None if call is None else len(call.args)
            if "trt" in parts[:2]:
                path = parts[parts.index("trt") + 1 :]
                if path and path[-1] != "__init__":
                    found.add((".".join(path), None))
            elif len(parts) > 1 and parts[-2] in objects:
                found.add((f"{CLASSES[parts[-2]]}.{parts[-1]}", count))
    found.discard(("__version__", None))
    return sorted((entry for entry in found if rtx or not entry[0].startswith(RTX_ONLY)), key=str)


# Runs where the bindings are. pybind11 writes signatures into the docstring, a line each:
# "name(self: module.Class, first: module.Kind, second: int = <Kind.X: 0>) -> bool"
CHECK = r"""
import importlib, json, re, sys
module = importlib.import_module(sys.argv[1])
problems = []
for path, count in json.loads(sys.argv[2]):
    thing = module
    try:
        for name in path.split("."):
            thing = getattr(thing, name)
    except AttributeError as error:
        problems.append(f"{path}: {error}")
        continue
    if count is None:
        continue
    fits, signatures = False, []
    for line in (thing.__doc__ or "").splitlines():
        if re.match(r"\s*(\d+\. )?" + name + r"\(self", line):
            plain = re.sub(r"\[[^\[\]]*\]", "", re.sub(r"<[^>]*>", "X", line))
            arguments = plain[plain.index("(") + 1 : plain.index(") ->")].split(", ")[1:]
            required = [a for a in arguments if " = " not in a]
            fits = fits or len(required) <= count <= len(arguments)
            signatures.append(line.strip())
    if not fits:
        takes = signatures or "nobody says what"
        problems.append(f"{path}: called with {count} arguments, takes {takes}")
print(json.dumps(problems))
"""


def test_what_is_used_is_found_in_the_source():
    names = {path for path, _ in used()}
    assert {
        "Builder.build_serialized_network",
        "BuilderFlag.STRIP_PLAN",
        "IExecutionContext.execute_async_v3",
    } <= names
    assert ("IOptimizationProfile.set_shape", 4) in used()
    assert ("ParserError.node_operator", 0) in used()
    assert ("IRuntimeConfig.dynamic_shapes_kernel_specialization_strategy", None) in used(rtx=True)
    assert len(names) > 50


@pytest.mark.parametrize("version", VERSIONS)
def test_tensorrt_has_everything_we_use(version):
    try:
        done = run_under(version, CHECK, "tensorrt_bindings", json.dumps(used()))
    except NotHere as reason:
        pytest.skip(str(reason))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def test_the_check_finds_what_is_not_there():
    wrong = [["BuilderFlag.FP16", None], ["Builder.create_network", 3], ["Runtime.deserialise", 1]]
    try:
        done = run_under(VERSIONS[1], CHECK, "tensorrt_bindings", json.dumps(wrong))
    except NotHere as reason:
        pytest.skip(str(reason))
    assert [text.split(":")[0] for text in json.loads(done.stdout)] == [path for path, _ in wrong]


def test_tensorrt_rtx_has_everything_we_use():
    if importlib.util.find_spec("tensorrt_rtx") is None:
        pytest.skip("tensorrt_rtx is not installed")
    command = [sys.executable, "-c", CHECK, "tensorrt_rtx", json.dumps(used(rtx=True))]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == []


def members(kind):
    """The names of a double that are not its own."""
    own = ("lacks", "engine", "made")
    return [name for name in vars(kind) if not name.startswith("_") and name not in own]


@pytest.mark.parametrize("version", VERSIONS)
def test_the_doubles_have_tensorrts_interface(version):
    kinds = (
        cuda_double.IExecutionContext,
        cuda_double.ICudaEngine,
        cuda_double.Runtime,
        cuda_double.Refitter,
        cuda_double.OnnxParserRefitter,
    )
    options = cuda_double.TensorRt.ExecutionContextAllocationStrategy
    wanted = [[f"ExecutionContextAllocationStrategy.{name}", None] for name in members(options)]
    for kind in kinds:
        for name in members(kind):
            method = getattr(kind, name)
            count = len(inspect.signature(method).parameters) - 1 if callable(method) else None
            wanted.append([f"{kind.__name__}.{name}", count])
    severities = members(cuda_double.TensorRt.ILogger.Severity)
    wanted += [[f"ILogger.Severity.{name}", None] for name in severities]
    try:
        done = run_under(version, CHECK, "tensorrt_bindings", json.dumps(wanted))
    except NotHere as reason:
        pytest.skip(str(reason))
    assert len(wanted) > 15
    assert json.loads(done.stdout) == [], done.stderr


@pytest.fixture
def runtime():
    return pytest.importorskip("cuda.bindings.runtime", reason="cuda-python is not installed")


def cuda_calls():
    """Everything our code takes from cuda.bindings.runtime: name, number of arguments or None."""
    found = set()
    for file in ("cuda.py", "cuda_memory.py", "tensorrt_bucket.py", "tensorrt_session.py"):
        tree = ast.parse((REPO / "engines" / file).read_text())
        calls = {id(node.func): node for node in ast.walk(tree) if isinstance(node, ast.Call)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and re.match("cuda[A-Z]", node.attr):
                call = calls.get(id(node))
                found.add((node.attr, None if call is None else len(call.args)))
            if isinstance(node, ast.Call) and dotted(node.func) == ["call"]:
                name = node.args[1]
                if isinstance(name, ast.Constant):
                    found.add((name.value, len(node.args) - 2))
    return sorted(found, key=str)


def test_cuda_python_has_everything_we_use(runtime):
    names = {name for name, _ in cuda_calls()}
    assert {
        "cudaMalloc",
        "cudaFreeHost",
        "cudaGraphLaunch",
        "cudaMemcpyKind",
        "cudaStreamNonBlocking",
    } <= names
    enums = [thing for name in names if isinstance(thing := getattr(runtime, name, None), type)]
    for name, count in cuda_calls():
        if any(hasattr(enum, name) for enum in enums):
            continue  # a member of one of the enums
        thing = getattr(runtime, name)
        if count is not None:
            assert len(inspect.signature(thing).parameters) == count, name


def test_the_double_has_cuda_pythons_interface(runtime):
    for name in members(cuda_double.Properties):
        assert hasattr(runtime.cudaDeviceProp, name), name
    checked = 0
    for name in members(cuda_double.Cuda):
        if not name.startswith("cuda"):
            continue
        double, real = getattr(cuda_double.Cuda, name), getattr(runtime, name)
        checked += 1
        if isinstance(double, type):
            for member in members(double):
                assert int(getattr(real, member)) == getattr(double, member), member
        elif callable(double):
            parameters = list(inspect.signature(double).parameters)[1:]
            assert parameters == list(inspect.signature(real).parameters), name
        else:
            assert int(real) == double
    assert checked > 20


def test_cuda_python_answers_without_a_driver_as_the_double_does(runtime):
    """Every call on the real module gives an error code and as many values as the double."""
    if int(runtime.cudaGetDeviceCount()[0]) == 0:
        pytest.skip("there is a driver here")
    stream, event = runtime.cudaStream_t(0), runtime.cudaEvent_t(0)
    graph, executable = runtime.cudaGraph_t(0), runtime.cudaGraphExec_t(0)
    kind, mode = runtime.cudaMemcpyKind.cudaMemcpyHostToDevice, runtime.cudaStreamCaptureMode
    arguments = {
        "cudaGetDeviceCount": (),
        "cudaGetDevice": (),
        "cudaMalloc": (16,),
        "cudaMallocHost": (16,),
        "cudaSetDevice": (0,),
        "cudaGetDeviceProperties": (0,),
        "cudaFree": (0,),
        "cudaFreeHost": (0,),
        "cudaMemcpyAsync": (1, 2, 3, kind, stream),
        "cudaMemcpy": (1, 2, 3, kind),
        "cudaStreamCreateWithFlags": (runtime.cudaStreamNonBlocking,),
        "cudaStreamBeginCapture": (stream, mode.cudaStreamCaptureModeThreadLocal),
        "cudaStreamEndCapture": (stream,),
        "cudaGraphInstantiate": (graph, 0),
        "cudaGraphLaunch": (executable, stream),
        "cudaGraphDestroy": (graph,),
        "cudaGraphExecDestroy": (executable,),
        "cudaStreamSynchronize": (stream,),
        "cudaStreamDestroy": (stream,),
        "cudaEventCreateWithFlags": (runtime.cudaEventDisableTiming,),
        "cudaEventRecord": (event, stream),
        "cudaEventSynchronize": (event,),
        "cudaEventDestroy": (event,),
    }
    values = {
        "cudaGetDeviceCount",
        "cudaGetDevice",
        "cudaMalloc",
        "cudaMallocHost",
        "cudaGetDeviceProperties",
        "cudaStreamCreateWithFlags",
        "cudaStreamEndCapture",
        "cudaGraphInstantiate",
        "cudaEventCreateWithFlags",
    }
    known = vars(cuda_double.Cuda)
    functions = {name for name, _ in cuda_calls() if inspect.isfunction(known.get(name))}
    assert functions - {"cudaGetErrorString"} == set(arguments)
    for name, given in arguments.items():
        answer = getattr(runtime, name)(*given)
        assert int(answer[0]) != 0
        assert len(answer) == 1 + (name in values), name
