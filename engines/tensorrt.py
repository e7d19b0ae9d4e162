"""TensorRT: graphs compiled into plans, strongly typed, and run without anything wasted between
them.

The code is written against what TensorRT 10.16, 11.4 and TensorRT-RTX have in common; which of them
it is, is a value: the module that `package` names. `tensorrt` itself compiles for the GPU it runs
on and needs one to do so.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any, ClassVar

from ris.engines import cache, cuda
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
from ris.engines.tensorrt_build import BUILD_VERSION, BuildRequest, build_plan, profiles
from ris.engines.tensorrt_session import TensorRtSession, open_session


class TensorRtEngine(Engine):
    """Compiles through the cache and opens what is there.

    name: as in the table; title: for people; package: the module to import; ahead_of_time: compiles
    without a GPU, for any that it supports.
    """

    name: ClassVar[str] = "tensorrt"
    title: ClassVar[str] = "TensorRT"
    package: ClassVar[str] = "tensorrt"
    ahead_of_time: ClassVar[bool] = False

    def __init__(self, options: EngineOptions) -> None:
        super().__init__(options)
        if not self.ahead_of_time and (problem := cuda.driver_problem()):
            raise EngineError(f"engine {self.name!r} compiles and runs on a GPU only: {problem}")
        self._trt: Any = importlib.import_module(self.package)

    @property
    def version(self) -> str:
        return str(self._trt.__version__)

    def build(self, graph: Graph, progress: Progress = silent) -> Compiled:
        """The graph's plan, from the cache or built now. report: layers by the precision they
        really have.
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
        return cache.obtain(
            recipe,
            graph.cache,
            lambda file: build_plan(request, file, progress),
            self.options,
            progress,
        )

    def open(self, graph: Graph, artifact: Path) -> Session:
        """A session over a plan of the cache. Raises EngineError where there is no driver or the
        plan does not fit.
        """
        if problem := cuda.driver_problem():
            raise EngineError(f"{graph.stage}: engine {self.name!r} cannot run here: {problem}")
        plan = cache.read_checked(artifact, self.name)
        info = SessionInfo(self.name, self.version, "cuda", (self.title,))
        refit = graph.path if self.options.strip_weights else None
        session: TensorRtSession = open_session(self._trt, cuda.load(), graph, info, plan, refit)
        return session

    def _recipe(self, graph: Graph) -> cache.Recipe:
        options = self.options
        return cache.Recipe(
            stage=graph.stage,
            onnx=cache.graph_hashes(graph),
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
        if self.ahead_of_time:
            return "none"
        if self.options.hardware_compatible:
            return "sm_80 and later"
        return cuda.compute_capability(cuda.load())

    def _timing_cache(self, device: str) -> Path | None:
        """Where the measured times of kernels are kept from build to build; None where the engine
        measures nothing.
        """
        if self.ahead_of_time:
            return None
        return (
            cache.user_folder()
            / f"timing-{self.name}-{self.version}-{device.replace(' ', '-')}.bin"
        )


ENGINE = TensorRtEngine
