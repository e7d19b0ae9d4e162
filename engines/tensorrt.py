"""TensorRT: graphs compiled into strongly typed plans, and run without waste between them.

The code uses only what TensorRT 10.16, 11.4 and TensorRT-RTX have in common. Which of them it runs
on is a value: the module that `package` names. `tensorrt` itself compiles for the GPU it runs on
and needs one to do so.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

from ris.engines import cache, cuda, entry
from ris.engines.base import (
    Compiled,
    Engine,
    EngineOptions,
    Graph,
    Progress,
    Session,
    SessionInfo,
    require_gathers,
    silent,
)
from ris.engines.errors import EngineError
from ris.engines.recipe import Recipe, graph_hashes
from ris.engines.tensorrt_build import BUILD_VERSION, BuildRequest, build_plan, profiles
from ris.engines.tensorrt_session import open_session


class TensorRtEngine(Engine):
    """Compiles through the cache and opens what is there."""

    name: ClassVar[str] = "tensorrt"
    """The engine's name in the table."""

    title: ClassVar[str] = "TensorRT"
    """Its name for people."""

    package: ClassVar[str] = "tensorrt"
    """The module to import."""

    ahead_of_time: ClassVar[bool] = False
    """Whether it compiles without a GPU, for every GPU that it supports."""

    def __init__(self, options: EngineOptions) -> None:
        """Imports the module.

        Raises:
            EngineError: Where it compiles on a GPU only and none can be used.
        """
        super().__init__(options)
        if not self.ahead_of_time and (problem := cuda.driver_problem()):
            raise EngineError(f"engine {self.name!r} compiles and runs on a GPU only: {problem}")
        self._trt: Any = importlib.import_module(self.package)

    @property
    def version(self) -> str:
        """The module's version."""
        return str(self._trt.__version__)

    def build(self, graph: Graph, progress: Progress = silent, *, anew: bool = False) -> Compiled:
        """The graph's plan, from the cache or built now.

        Its report has the number of layers by the precision that they really have.

        Raises:
            EngineError: For a graph with GridSample nodes, and as in `obtain` and `build_plan`.
        """
        require_gathers(graph, self.name)
        recipe = self._recipe(graph)
        request = BuildRequest(
            trt=self._trt,
            title=f"{self.title} {self.version}",
            graph=graph,
            options=self.options,
            has_driver=cuda.driver_problem() is None,
            timing_cache=self._timing_cache(recipe.device),
        )

        def compile_to(file: Path) -> dict[str, Any]:
            return build_plan(request, file, progress)

        return cache.obtain(recipe, graph.cache, compile_to, self.options, progress, anew=anew)

    def open(self, graph: Graph, artifact: Path) -> Session:
        """A session that runs a plan of the cache.

        Raises:
            EngineError: Where there is no driver, or the plan is damaged or does not load.
        """
        if problem := cuda.driver_problem():
            raise EngineError(f"{graph.stage}: engine {self.name!r} cannot run here: {problem}")
        plan = entry.read_checked(artifact, self.name)
        info = SessionInfo(self.name, self.version, "cuda", (self.title,))
        refit_from = graph.path if self.options.strip_weights else None
        return open_session(self._trt, cuda.load(), graph, info, plan, refit_from)

    def _recipe(self, graph: Graph) -> Recipe:
        options = self.options
        return Recipe(
            stage=graph.stage,
            onnx=graph_hashes(graph),
            engine=self.name,
            version=self.version,
            device=self._device(),
            profiles=profiles(graph, options),
            options={
                "build_version": BUILD_VERSION,
                "workspace": options.workspace,
                "version_compatible": options.version_compatible,
                "hardware_compatible": options.hardware_compatible,
                "strip_weights": options.strip_weights,
            },
        )

    def _device(self) -> str:
        """The GPUs that a plan is built for, as `Recipe.device` names them."""
        if self.ahead_of_time:
            return "none"
        if self.options.hardware_compatible:
            return "sm_80 and later"
        return cuda.compute_capability(cuda.load())

    def _timing_cache(self, device: str) -> Path | None:
        """The file that keeps the measured times of kernels from build to build.

        None where the engine measures nothing.
        """
        if self.ahead_of_time:
            return None
        name = f"timing-{self.name}-{self.version}-{device.replace(' ', '-')}.bin"
        folder = cache.user_folder()
        return folder / name if folder else None


ENGINE = TensorRtEngine
