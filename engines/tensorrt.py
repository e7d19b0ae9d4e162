"""TensorRT: graphs compiled into strongly typed plans, and run without waste between them.

The code uses only what TensorRT 10.16, 11.4 and TensorRT-RTX have in common. Which of them it runs
on is a value: the module that `package` names. `tensorrt` itself compiles for the GPU it runs on
and needs one to do so.
"""

from __future__ import annotations

import hashlib
import importlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from ris.engines import cache, cuda, entry, fitting
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
from ris.engines.devices import index_of
from ris.engines.errors import EngineError
from ris.engines.recipe import Recipe, graph_hashes
from ris.engines.tensorrt_build import (
    BUILD_VERSION,
    BuildRequest,
    build_plan,
    profiles,
    wide_layers,
)
from ris.engines.tensorrt_session import Plan, open_session
from ris.engines.tensorrt_version import full_version


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
        self._index = index_of(options.device)
        if not self.ahead_of_time and (problem := cuda.gpu_problem(self._index)):
            raise EngineError(f"engine {self.name!r} compiles and runs on a GPU only: {problem}")
        self._trt: Any = importlib.import_module(self.package)

    @property
    def version(self) -> str:
        """The module's version."""
        return str(self._trt.__version__)

    def build(self, graph: Graph, progress: Progress = silent, *, anew: bool = False) -> Compiled:
        """The graph's plan, from the cache or built now.

        Its report is that of `build_plan`.

        Raises:
            EngineError: For a graph with GridSample nodes, with `EngineOptions.strict` for a plan
                with layers wider than the graph's precision, and as in `obtain` and `build_plan`.
        """
        require_gathers(graph, self.name)
        recipe = self._recipe(graph)
        request = BuildRequest(
            trt=self._trt,
            title=f"{self.title} {self.version}",
            graph=graph,
            options=self.options,
            cuda=self._runtime(),
            timing_cache=self._timing_cache(recipe),
        )

        def compile_to(file: Path) -> dict[str, Any]:
            return build_plan(request, file, progress)

        found = cache.obtain(recipe, graph.cache, compile_to, self.options, progress, anew=anew)
        if self.options.strict and (wide := found.report.get("unexpected")):
            layers = sum(found.report.get("layers", {}).values())
            raise EngineError(
                f"{graph.stage}: FP16 was asked for, but {request.title}"
                f" {wide_layers(wide, layers)}; leave out strict to run it all the same"
            )
        return found

    def open(self, graph: Graph, artifact: Path) -> Session:
        """A session that runs a plan of the cache.

        Raises:
            EngineError: Where there is no driver or no such GPU, or the plan is damaged or does not
                load.
        """
        if problem := cuda.gpu_problem(self._index):
            raise EngineError(f"{graph.stage}: engine {self.name!r} cannot run here: {problem}")
        data = entry.read_checked(artifact, self.name)
        options = entry.recipe_of(artifact).get("options", {})
        plan = Plan(
            data=data,
            refit_from=graph.path if options.get("strip_weights") else None,
            has_host_code=bool(options.get("version_compatible")),
            kernels=self._kernels(data),
            cuda_graphs=self.options.cuda_graphs,
        )
        device = f"cuda:{self._index}" if self._index else "cuda"
        info = SessionInfo(self.name, self.version, device, (self.title,))
        return open_session(self._trt, cuda.load(), graph, info, plan)

    def most_compiled(self, graph: Graph) -> int | None:
        return most_compiled(self._recipe(graph, one=True), graph)

    def _runtime(self) -> Any:
        """The module cuda.bindings.runtime; None where a plan is built without a GPU."""
        if cuda.gpu_problem(self._index):
            return None
        try:
            return cuda.load()
        except EngineError:
            if not self.ahead_of_time:
                raise
            return None  # a driver without cuda-python

    def _recipe(self, graph: Graph, one: bool = False) -> Recipe:
        """What a plan depends on; `one`: for a single image and expression."""
        options = replace(self.options, max_batch=1, max_expressions=1) if one else self.options
        return Recipe(
            stage=graph.stage,
            onnx=graph_hashes(graph),
            engine=self.name,
            version=full_version(self.package, self.version),
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
            return fitting.ANY_AMPERE
        return cuda.gpu(cuda.load(), self._index).key

    def _timing_cache(self, recipe: Recipe) -> Path | None:
        """The file that keeps the measured times of kernels from build to build.

        None where the engine measures nothing. The GPU at hand is measured, whichever the plan is
        for.
        """
        if self.ahead_of_time:
            return None
        return _kept("timing", self.name, recipe.version, cuda.gpu(cuda.load(), self._index).key)

    def _kernels(self, plan: bytes) -> Path | None:
        """The file that keeps what TensorRT-RTX compiles for a plan at run time."""
        if not self.ahead_of_time:
            return None
        digest = hashlib.sha256(plan).hexdigest()[:16]
        gpu = cuda.gpu(cuda.load(), self._index).key
        return _kept("kernels", self.name, full_version(self.package, self.version), gpu, digest)


def most_compiled(recipe: Recipe, graph: Graph) -> int | None:
    """`Engine.most_compiled`: the most expressions of the entries that serve `recipe`.

    recipe: for a single image and expression.
    """
    found = cache.recipes_that_serve(recipe, graph.cache)
    limits = [fitting.most_expressions(entry.get("profiles", {}), graph) for entry in found]
    if not limits:
        return 0
    return None if None in limits else max(limit for limit in limits if limit is not None)


def _kept(*parts: str) -> Path | None:
    """A file of the user's own folder, by what it depends on; None where there is no folder."""
    folder = cache.user_folder()
    name = re.sub(r"[^\w.]+", "-", "-".join(parts))
    return folder / f"{name}.bin" if folder else None


ENGINE = TensorRtEngine
