"""One process of a benchmark: `python -m ris.runtime.bench.worker SPEC`.

It reads and writes a JSON object a line. A process of its own gives each way of running the model
its own peak memory and cold start, and a crash of one does not reach the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ris.engines import EngineOptions, create
from ris.engines.errors import CheckpointError, RisError
from ris.runtime.bundle import open_bundle
from ris.runtime.cost import operations_in
from ris.runtime.host import HostSide, prepare_images
from ris.runtime.image import load_picture
from ris.runtime.loading import load
from ris.runtime.reference import pytorch_reference

Answer = dict[str, Any]
"""What a request is answered, as JSON."""

MAX_BATCH = 8
"""The most images that go through a graph together."""

_BATCH_OPTIONS = ("device", "threads", "low_memory", "throughput")


def peak_memory() -> int:
    """The most memory that this process has had at once, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class BundleWorker:
    """A bundle in this project's runtime.

    spec: bundle, options (of `ris.runtime.load`), image, photo, expressions, categories.
    """

    def __init__(self, spec: Answer) -> None:
        self._spec = spec
        self._rgb = np.load(spec["image"], mmap_mode="r")

        # two processes of a machine have the same monotonic clock, so the start of this one, which
        # the other noted, can be subtracted; the engine is imported while the bundle loads
        imported = time.monotonic()
        compiling: list[str] = []
        self._model = load(
            spec["bundle"],
            progress=lambda stage, what, done: compiling.append(what),
            **spec["options"],
        )
        self._seconds = {"imports": imported - spec["started"], "load": time.monotonic() - imported}

        self._compiled = bool(compiling)
        self._scene: Any = None
        self._several: dict[str, Any] = {}

    def about(self) -> Answer:
        """What really runs, and how long it took to get ready."""
        manifest, infos = self._model.bundle.manifest, self._model.sessions
        graphs = manifest.graphs
        ran_on = sorted({f"{i.engine} {i.version} on {i.device}" for i in infos.values()})
        ran_in = {stage: info.precision or graphs[stage].precision for stage, info in infos.items()}
        return {
            "engine": ", ".join(ran_on),
            "bundle_precision": manifest.precision,
            "precision": ran_in,
            "operations": operations_in(manifest),
            "compiled": self._compiled,
            **self._seconds,
        }

    def _ask(self, scene: Any, which: int) -> Any:
        """One answer, always with a mask: a "no target" answer would skip it."""
        categories = self._spec["categories"]
        return scene.segment(
            self._spec["expressions"][which],
            category=categories[which] if categories else None,
            no_target_threshold=None,
        )

    def round(self) -> Answer:
        """Seconds of a first mask and of a further expression."""
        start = time.perf_counter()
        scene = self._model.encode_image(self._rgb, expressions=self._spec["expressions"][:1])
        result = self._ask(scene, 0)
        middle = time.perf_counter()
        self._ask(scene, 1)
        end = time.perf_counter()
        self._scene = scene

        stages = {name.removeprefix("image."): seconds for name, seconds in result.timings.items()}
        graphs = self._model.bundle.stages
        inside = sum(seconds for name, seconds in stages.items() if name in graphs)
        host = middle - start - inside
        if self._model.overlap:  # graphs side by side take longer in sum than on the clock
            host = sum(seconds for name, seconds in stages.items() if name not in graphs)
        return {
            "first_mask": middle - start,
            "next_expression": end - middle,
            "host": host,
            "stages": stages,
        }

    def images(self, count: int) -> Answer:
        """Seconds for each of `count` images that go together through what runs once an image.

        Not for models without such stages.
        """
        bundle, seconds = self._model.bundle, 0.0
        images = self._host.images(np.asarray(self._rgb))
        values: dict[str, Any] = {
            name: np.repeat(image, count, axis=0) for name, image in images.items()
        }
        for stage in bundle.wiring.image_stages:
            takes = bundle.manifest.graphs[stage].inputs
            feeds = {spec.name: values[spec.value] for spec in takes}
            session = self._model.open_sessions[stage] if count == 1 else self._batched(stage)
            start = time.perf_counter()
            outputs = session.run(feeds)
            seconds += time.perf_counter() - start
            values |= outputs | self._host.resized(stage, outputs)
        return {"each": seconds / count}

    @cached_property
    def _host(self) -> HostSide:
        """The host's own work; reading its files is no part of a start."""
        return HostSide(self._model.bundle)

    def _batched(self, stage: str) -> Any:
        """A graph that takes several images; the model's own may be compiled for one."""
        if stage not in self._several:
            options = self._spec["options"]
            kept = {name: options[name] for name in _BATCH_OPTIONS if name in options}
            choice = self._model.choice
            compute = choice.by_stage[stage] if choice else None
            wanted = EngineOptions(**kept, compute=compute, max_batch=MAX_BATCH)
            engine = create(options["engine"], wanted)
            graph = self._model.bundle.graph(stage)
            self._several[stage] = engine.load(graph)
        return self._several[stage]

    def expressions(self, count: int) -> Answer:
        """Seconds for each of `count` expressions about one image, asked together."""
        scene = self._scene or self._model.encode_image(self._rgb)
        asked = [f"{self._spec['expressions'][i % 2]} {i}" for i in range(count)]
        given = self._spec["categories"]
        categories = [given[i % 2] for i in range(count)] if given else None

        start = time.perf_counter()
        scene.segment_many(asked, categories=categories, no_target_threshold=None)
        return {"each": (time.perf_counter() - start) / count}

    def photo(self) -> Answer:
        """Seconds from a 12-megapixel JPEG file to what the graphs take, exact and as a draft."""
        manifest = self._model.bundle.manifest
        found = {}
        for name, draft in (("exact", None), ("draft", manifest.side)):
            start = time.perf_counter()
            prepare_images(load_picture(self._spec["photo"], draft).pixels, manifest.host.images)
            found[name] = time.perf_counter() - start
        return found


def _files(spec: Answer) -> dict[str, Path | None]:
    return {name: Path(file) if file else None for name, file in spec["files"].items()}


class PyTorchWorker:
    """The PyTorch model of the same bundle.

    spec: bundle, image, expressions, threads, compile (with torch.compile),
    precision ("fp32" or "bf16"), files (`WeightFiles`).
    """

    def __init__(self, spec: Answer) -> None:
        bundle = open_bundle(spec["bundle"], verify=False)
        self._manifest = bundle.manifest
        self._run = pytorch_reference().timed_reference(
            bundle,
            np.load(spec["image"]),
            tuple(spec["expressions"]),
            spec["threads"],
            _files(spec),
            spec["compile"],
            spec["precision"],
        )
        self._precision = spec["precision"]
        self._version = sys.modules["torch"].__version__  # which the reference has imported

    def about(self) -> Answer:
        """What really runs."""
        return {
            "engine": f"torch {self._version} on cpu",
            "bundle_precision": None,
            "precision": dict.fromkeys(self._manifest.graphs, self._precision),
            "operations": operations_in(self._manifest),
            "compiled": False,
        }

    def round(self) -> Answer:
        """Seconds of a first mask and of a further expression."""
        first, following = self._run()
        return {"first_mask": first, "next_expression": following, "host": None, "stages": {}}


class FilesWorker:
    """Whether the weight files are those of the bundle; PyTorch is in this process alone.

    spec: bundle, files.
    """

    def __init__(self, spec: Answer) -> None:
        pytorch_reference().require_files(open_bundle(spec["bundle"], verify=False), _files(spec))

    def about(self) -> Answer:
        """Nothing: they are."""
        return {}


class RatesWorker:
    """The machine's matrix products.

    spec: threads.
    """

    def __init__(self, spec: Answer) -> None:
        from ris.runtime.bench import rates

        self._calls, self._measure = rates.products(spec["threads"]), rates.measure

    def about(self) -> Answer:
        """Nothing: the rates say themselves what ran."""
        return {}

    def round(self) -> Answer:
        """Operations a second, by precision and library."""
        return {"rates": self._measure(self._calls)}


KINDS: dict[str, Callable[[Answer], Any]] = {
    "bundle": BundleWorker,
    "pytorch": PyTorchWorker,
    "files": FilesWorker,
    "rates": RatesWorker,
}
"""What a process runs, by the `kind` of its SPEC; made of the whole SPEC."""


def main() -> None:
    """Answers requests until its input ends.

    A request is {"do": ..., "count": ...}. The answer is what that method returns, or {"error":
    ...}, with "checkpoint": true where the weight files are not those of the bundle.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    spec = json.loads(sys.argv[1])
    worker: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        arguments = [request["count"]] if "count" in request else []
        try:
            if worker is None:  # here, so that a bundle that does not load is an answer, too
                worker = KINDS[spec["kind"]](spec)
            answer = getattr(worker, request["do"])(*arguments) | {"peak_memory": peak_memory()}
        except RisError as error:
            answer = {"error": str(error), "checkpoint": isinstance(error, CheckpointError)}
        except MemoryError:
            answer = {"error": "out of memory"}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
