"""ONNX Runtime's TensorRT provider: graphs compiled inside ONNX Runtime, kept as EPContext models.

An EPContext model is an ONNX file with the compiled engine in it, one file for each graph. Any
program with ONNX Runtime's TensorRT provider opens it without compiling again, one in C++ as well.
What TensorRT does not take runs on the CUDA provider. No precision flag is set, so that the
networks are strongly typed: the graph says what is FP16.

Not run yet: it needs a GPU. Options and their names are those of onnxruntime-gpu 1.31's provider
library.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnxruntime

from ris.engines import cache, cuda, entry, fitting
from ris.engines.base import (
    Compiled,
    EngineOptions,
    Graph,
    Progress,
    Session,
    require_gathers,
    silent,
)
from ris.engines.devices import index_of
from ris.engines.errors import EngineError
from ris.engines.onnxruntime import CUDA, OnnxRuntimeEngine, nodes_by
from ris.engines.recipe import Recipe, graph_hashes
from ris.engines.tensorrt import most_compiled
from ris.engines.tensorrt_build import profiles
from ris.engines.tensorrt_version import cuda_flavour, library_version, linked_library

TENSORRT = "TensorrtExecutionProvider"
"""ONNX Runtime's name of the provider."""

BUILD_VERSION = 1
"""Part of an EPContext model's key.

It has to be raised when the code below makes other models of the same graph and options.
"""


class OnnxRuntimeTensorRtEngine(OnnxRuntimeEngine):
    """Compiles through the cache and opens what is there."""

    name = "onnxruntime-tensorrt"

    def __init__(self, options: EngineOptions) -> None:
        """Checks that there is a GPU and that this onnxruntime has the provider.

        Raises:
            EngineError: Where one of them is missing.
        """
        self._index = index_of(options.device)
        if problem := cuda.gpu_problem(self._index):
            raise EngineError(f"engine {self.name!r} compiles and runs on a GPU only: {problem}")
        # pip's package brings libnvinfer, which the provider is linked to
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")
        super().__init__(options)

    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """TensorRT, then CUDA for what it does not take."""
        options = {
            "device_id": str(self._index),
            "trt_engine_hw_compatible": str(int(self.options.hardware_compatible)),
        }
        # the provider makes a missing folder itself, but not one below another that is missing;
        # `user_folder` makes both
        if folder := cache.user_folder():
            options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(folder)}
        if self.options.workspace:
            options["trt_max_workspace_size"] = str(self.options.workspace)
        return [(TENSORRT, options), (CUDA, self.cuda_options())]

    def build(self, graph: Graph, progress: Progress = silent, *, anew: bool = False) -> Compiled:
        """The graph's EPContext model, from the cache or built now.

        Its report has the number of nodes by provider.

        Raises:
            EngineError: For a graph with GridSample nodes, where TensorRT takes none of the nodes,
                and as in `obtain` and `OnnxRuntimeEngine.start`.
        """
        require_gathers(graph, self.name)
        shapes = profiles(graph, self.options)

        def compile_to(file: Path) -> dict[str, Any]:
            what = "compiling inside ONNX Runtime, which does not say how far it is"
            progress(graph.stage, what, None)
            return self._compile(graph, shapes, file)

        recipe = self._recipe(graph, shapes)
        return cache.obtain(recipe, graph.cache, compile_to, self.options, progress, anew=anew)

    def most_compiled(self, graph: Graph) -> int | None:
        one = replace(self.options, max_batch=1, max_expressions=1)
        return most_compiled(self._recipe(graph, profiles(graph, one)), graph)

    def _recipe(self, graph: Graph, shapes: Mapping[str, list[list[int]]]) -> Recipe:
        compatible = self.options.hardware_compatible
        here = fitting.ANY_AMPERE if compatible else cuda.gpu(cuda.load(), self._index).key
        return Recipe(
            stage=graph.stage,
            onnx=graph_hashes(graph),
            engine=self.name,
            version=f"{onnxruntime.__version__}, TensorRT {_tensorrt_version()}",
            device=here,
            profiles=shapes,
            options={
                "build_version": BUILD_VERSION,
                "workspace": self.options.workspace,
                "hardware_compatible": compatible,
            },
        )

    def _compile(
        self, graph: Graph, shapes: Mapping[str, list[list[int]]], file: Path
    ) -> dict[str, Any]:
        """Writes the EPContext model and returns its report."""
        providers = self.providers()
        for i, name in enumerate(("min", "opt", "max")):
            sizes = {key: "x".join(map(str, shape[i])) for key, shape in shapes.items()}
            text = ",".join(f"{key}:{size}" for key, size in sizes.items())
            providers[0][1][f"trt_profile_{name}_shapes"] = text

        entries = {
            "ep.context_enable": "1",
            "ep.context_file_path": str(file),
            # the engine inside the file: one file to hash and to ship
            "ep.context_embed_mode": "1",
        }
        session = self.start(graph, str(graph.path), providers, entries)
        nodes = nodes_by(session)
        if not file.is_file():
            raise EngineError(
                f"{graph.stage}: ONNX Runtime wrote no EPContext model; TensorRT took none of its"
                f" nodes ({nodes})"
            )
        return {"nodes": nodes}

    def open(self, graph: Graph, artifact: Path) -> Session:
        """A session that runs an EPContext model of the cache.

        Raises:
            EngineError: Where the model is damaged, and as in `OnnxRuntimeEngine.open`.
        """
        model = entry.read_checked(artifact, self.name)
        return self._session(graph, self.start(graph, model, self.providers()))


def _tensorrt_version() -> str:
    """The version of the TensorRT that the provider is linked to, and the CUDA it is for."""
    provider = Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_tensorrt.so"
    library = linked_library(provider)
    version = (library and library_version(library)) or "unknown"
    return f"{version}, {cuda_flavour('tensorrt')}"


ENGINE = OnnxRuntimeTensorRtEngine
