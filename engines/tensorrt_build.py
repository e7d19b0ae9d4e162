"""ONNX -> plan: parse, profiles, build, and a count of what precision the layers really got."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ris.engines.base import EngineOptions, Graph, Progress
from ris.engines.cuda import on_device
from ris.engines.devices import index_of
from ris.engines.errors import EngineError
from ris.engines.temporary import write_atomically
from ris.engines.tensorrt_logger import make_logger
from ris.engines.tensorrt_precision import (
    Layer,
    count_precisions,
    fused_attention,
    layers_from_json,
    layers_from_log,
)
from ris.engines.tensorrt_progress import make_monitor

T = TypeVar("T")

BUILD_VERSION = 2
"""Part of a plan's key.

It has to be raised when the code below makes other plans of the same graph and options.
"""


@dataclass(frozen=True)
class BuildRequest:
    """What to build and with what."""

    trt: Any
    """The module `tensorrt` or `tensorrt_rtx`."""

    title: str
    """The module's name and version, for people."""

    graph: Graph
    """The graph to compile."""

    options: EngineOptions
    """What the user asked for."""

    cuda: Any
    """The module `cuda.bindings.runtime`; None where no GPU can be used."""

    timing_cache: Path | None
    """The file of measured kernel times; None where the module measures none."""


def profiles(graph: Graph, options: EngineOptions) -> dict[str, list[list[int]]]:
    """The smallest, usual and largest shape of every input with an axis of any length.

    TensorRT picks its kernels for the usual shape: a single image and a single expression, in a row
    of the shortest length.

    Raises:
        EngineError: For an axis that is neither images nor expressions, nor tokens of which the
            graph has the lengths.
    """
    smallest = {"images": 1, "expressions": 1}
    largest = {"images": options.max_batch, "expressions": options.max_expressions}
    if graph.lengths:
        smallest["tokens"], largest["tokens"] = graph.lengths[0], graph.lengths[-1]
    found = {}
    for spec in graph.inputs:
        axes = [axis for axis in spec.shape if isinstance(axis, str)]
        if unknown := set(axes) - set(largest):
            raise EngineError(
                f"{graph.stage}: input {spec.name!r} has an unknown axis {sorted(unknown)[0]!r}"
            )
        if axes:
            one = [smallest[axis] if isinstance(axis, str) else axis for axis in spec.shape]
            most = [largest[axis] if isinstance(axis, str) else axis for axis in spec.shape]
            found[spec.name] = [one, one, most]
    return found


def build_plan(request: BuildRequest, artifact: Path, progress: Progress) -> dict[str, Any]:
    """Writes the plan of the request's graph to `artifact`.

    Ctrl-C stops the build at its next step; nothing of it is left.

    Returns:
        The cache's report: the number of layers by precision, and where they are known from; the
        number of fused attentions; "unexpected", the layers of an FP16 graph that compute in FP32
        and are none of the manifest's islands; and "notes" on them for the user.

    Raises:
        EngineError: With all of the parser's or the builder's errors, and where most of an FP16
            graph computes in FP32.
    """
    stop = threading.Event()

    def on_stop() -> None:
        progress(request.graph.stage, "stopping at the compiler's next step", None)
        stop.set()

    def work() -> tuple[list[Layer], str]:
        # the thread is new, and has no current device yet
        with _on_device(request):
            return _build(request, artifact, progress, stop)

    layers, source = _run_interruptibly(work, on_stop)
    return {**_counted(request, layers), "layers_from": source}


def _on_device(request: BuildRequest) -> contextlib.AbstractContextManager[None]:
    """Makes the GPU that is built for the thread's current one, where there is one."""
    if request.cuda is None:
        return contextlib.nullcontext()
    return on_device(request.cuda, index_of(request.options.device))


def _counted(request: BuildRequest, layers: list[Layer]) -> dict[str, Any]:
    """The report on the precisions. Raises EngineError where they are not what was asked for."""
    stage = request.graph.stage
    if not layers:
        raise EngineError(
            f"{stage}: {request.title} does not say what precision its layers have,"
            " so the plan cannot be trusted; report it with that version"
        )
    counted = count_precisions(layers, request.graph)
    notes = []
    if counted.unexpected:
        notes = [f"{request.title} {wide_layers(counted.unexpected, len(layers))}"]
        if counted.ignored:
            raise EngineError(f"{stage}: FP16 was asked for, but {notes[0]}")
    return {
        "layers": counted.counts,
        "fused_attention": fused_attention(layers),
        "unexpected": list(counted.unexpected),
        "notes": notes,
    }


def wide_layers(names: Sequence[str], of: int) -> str:
    """What a user is told of the layers that compute wider than their graph's precision."""
    shown = ", ".join(names[:5])
    more = " and more" if len(names) > 5 else ""
    return (
        f"computes {len(names)} of {of} layers in FP32 that are no islands of the manifest:"
        f" {shown}{more}"
    )


def _run_interruptibly(work: Callable[[], T], on_stop: Callable[[], None]) -> T:
    """Runs `work` in a thread of its own, and returns or raises what it does.

    Ctrl-C calls `on_stop`, and is raised again when `work` has ended. It must not be raised within
    TensorRT's frames; it is not, since Python delivers it to the main thread only.
    """
    results: list[T] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(work())
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    ended = threading.Event()
    thread = threading.Thread(target=run, name="tensorrt-build")
    thread.start()

    interrupted = False
    # not Thread.join: interrupted, that of Python 3.11 takes the thread for ended
    while not ended.is_set():
        try:
            ended.wait(0.2)
        except KeyboardInterrupt:
            interrupted = True
            on_stop()
    thread.join()

    if interrupted:
        raise KeyboardInterrupt
    if errors:
        raise errors[0]
    return results[0]


def _build(
    request: BuildRequest, artifact: Path, progress: Progress, stop: threading.Event
) -> tuple[list[Layer], str]:
    """Builds the plan, and stops once `stop` is set.

    Returns its layers, and where they are known from.
    """
    trt, graph = request.trt, request.graph
    logger = make_logger(trt)
    # the monitor has to outlive everything that uses it
    monitor = make_monitor(trt, lambda what, done: progress(graph.stage, what, done), stop)

    progress(graph.stage, "parsing", None)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    # the parser owns the network's weights, so it has to live until the plan is built
    parser = trt.OnnxParser(network, logger)
    _parse(request, parser, logger)
    _check_inputs(network, graph)

    config = _configure(request, builder)
    config.progress_monitor = monitor
    _add_profile(request, builder, config)
    if request.timing_cache is not None:
        _load_timing_cache(config, request.timing_cache)

    progress(graph.stage, "building", 0.0)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        if stop.is_set():
            raise EngineError(f"{graph.stage}: the build was stopped")
        raise EngineError(
            f"{graph.stage}: {request.title} cannot build {graph.path}: {logger.errors_in_a_line()}"
        )
    progress(graph.stage, "built", 1.0)
    artifact.write_bytes(plan)
    if request.timing_cache is not None:
        _save_timing_cache(config, request.timing_cache)

    if request.cuda is not None and (layers := _inspect(request, logger, artifact)):
        return layers, "engine inspector"
    return layers_from_log(logger.layers), "build log"


def _parse(request: BuildRequest, parser: Any, logger: Any) -> None:
    """Reads the graph into the parser's network. Raises EngineError with all of its errors."""
    graph = request.graph
    if not parser.parse_from_file(str(graph.path)):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        text = "; ".join(map(_describe, errors)) or logger.errors_in_a_line()
        raise EngineError(f"{graph.stage}: {request.title} cannot read {graph.path}: {text}")


def _configure(request: BuildRequest, builder: Any) -> Any:
    """The builder's configuration, but for shapes and monitor."""
    trt, options = request.trt, request.options
    config = builder.create_builder_config()
    # without the details the inspector tells names only
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # what stays FP32 does so for its precision; TF32 keeps 10 bits of it
    config.clear_flag(trt.BuilderFlag.TF32)

    if options.workspace is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.strip_weights:
        config.set_flag(trt.BuilderFlag.STRIP_PLAN)
        config.set_flag(trt.BuilderFlag.REFIT_IDENTICAL)  # plain REFIT has dropped biases (11.3)
    if hasattr(trt, "DynamicShapesKernelSpecializationStrategy"):
        # TensorRT-RTX allocates while it runs, unless it is told not to; a CUDA graph cannot be
        # captured then
        config.set_flag(trt.BuilderFlag.REQUIRE_USER_ALLOCATION)
    return config


def _add_profile(request: BuildRequest, builder: Any, config: Any) -> None:
    """Gives the configuration the shapes to build for. Raises EngineError where it refuses them."""
    shapes = profiles(request.graph, request.options)
    if not shapes:
        return
    profile = builder.create_optimization_profile()
    for name, (smallest, usual, largest) in shapes.items():
        profile.set_shape(name, smallest, usual, largest)
    if config.add_optimization_profile(profile) < 0:
        raise EngineError(f"{request.graph.stage}: {request.title} refuses the shapes {shapes}")


def _check_inputs(network: Any, graph: Graph) -> None:
    """Raises EngineError where the parsed network's inputs are not those of the manifest."""
    tensors = [network.get_input(i) for i in range(network.num_inputs)]
    found = sorted(tensor.name for tensor in tensors)
    wanted = sorted(spec.name for spec in graph.inputs)
    if found != wanted:
        raise EngineError(
            f"{graph.stage}: {graph.path} has the inputs {', '.join(found)}, the manifest says"
            f" {', '.join(wanted)}; export the bundle again"
        )


def _describe(parser_error: Any) -> str:
    """One of the parser's errors: node, operator, and its own words."""
    code = str(parser_error.code()).rpartition(".")[2]
    operator = parser_error.node_operator()
    where = f"node {parser_error.node_name()!r} ({operator}): " if operator else ""
    return f"{where}{code}: {' '.join(parser_error.desc().split())} [{parser_error.func()}]"


def _inspect(request: BuildRequest, logger: Any, artifact: Path) -> list[Layer]:
    """The layers that the engine inspector knows of a plan; empty where the plan does not load."""
    trt = request.trt
    runtime = trt.Runtime(logger)
    if request.options.version_compatible:
        runtime.engine_host_code_allowed = True  # such a plan brings its own runtime
    engine = runtime.deserialize_cuda_engine(artifact.read_bytes())
    if engine is None:
        return []
    inspector = engine.create_engine_inspector()
    return layers_from_json(inspector.get_engine_information(trt.LayerInformationFormat.JSON))


def _load_timing_cache(config: Any, file: Path) -> None:
    """Gives the builder the times of earlier builds; a file that it refuses is started anew."""
    try:
        data = file.read_bytes()
    except OSError:
        data = b""
    if not config.set_timing_cache(config.create_timing_cache(data), False):
        config.set_timing_cache(config.create_timing_cache(b""), False)


def _save_timing_cache(config: Any, file: Path) -> None:
    """Keeps the measured times; where the folder cannot be written they are not kept."""
    timing_cache = config.get_timing_cache()
    if timing_cache is None:
        return
    with contextlib.suppress(OSError):
        write_atomically(file, lambda target: target.write(timing_cache.serialize()))
