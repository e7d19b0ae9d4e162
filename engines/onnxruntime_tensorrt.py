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
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnxruntime

from ris.engines import cache, cuda, entry
from ris.engines.base import (
    Compiled,
    EngineOptions,
    Graph,
    Progress,
    Session,
    require_gathers,
    silent,
)
from ris.engines.errors import EngineError
from ris.engines.onnxruntime import CUDA, CUDA_OPTIONS, OnnxRuntimeEngine, nodes_by
from ris.engines.recipe import Recipe, graph_hashes
from ris.engines.tensorrt_build import profiles

TENSORRT = "TensorrtExecutionProvider"
"""ONNX Runtime's name of the provider."""


class OnnxRuntimeTensorRtEngine(OnnxRuntimeEngine):
    """Compiles through the cache and opens what is there."""

    name = "onnxruntime-tensorrt"

    def __init__(self, options: EngineOptions) -> None:
        """Checks that there is a GPU and that this onnxruntime has the provider.

        Raises:
            EngineError: Where one of them is missing.
        """
        if problem := cuda.driver_problem():
            raise EngineError(f"engine {self.name!r} compiles and runs on a GPU only: {problem}")
        # pip's package brings libnvinfer, which the provider is linked to
        with contextlib.suppress(ImportError):
            importlib.import_module("tensorrt")
        super().__init__(options)

    def providers(self) -> list[tuple[str, dict[str, str]]]:
        """TensorRT, then CUDA for what it does not take."""
        options = {
            "device_id": "0",
            "trt_engine_hw_compatible": str(int(self.options.hardware_compatible)),
        }
        if folder := cache.user_folder():
            options |= {"trt_timing_cache_enable": "1", "trt_timing_cache_path": str(folder)}
        if self.options.workspace:
            options["trt_max_workspace_size"] = str(self.options.workspace)
        return [(TENSORRT, options), (CUDA, CUDA_OPTIONS)]

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

    def _recipe(self, graph: Graph, shapes: Mapping[str, list[list[int]]]) -> Recipe:
        compatible = self.options.hardware_compatible
        return Recipe(
            stage=graph.stage,
            onnx=graph_hashes(graph),
            engine=self.name,
            version=f"{onnxruntime.__version__}, TensorRT {_tensorrt_version()}",
            device="sm_80 and later" if compatible else cuda.compute_capability(cuda.load()),
            profiles=shapes,
            options={"workspace": self.options.workspace, "hardware_compatible": compatible},
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
    """The version of pip's TensorRT; "of the system" where it does not come from there."""
    for name in ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "of the system"


ENGINE = OnnxRuntimeTensorRtEngine
