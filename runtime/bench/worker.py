"""One process of a benchmark: `python -m ris.runtime.bench.worker SPEC`, a JSON object a line in
and out.

Its own process gives each way of running the model its own memory figure and cold start, and keeps
a crash to itself.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ris.engines import EngineOptions, create
from ris.engines.errors import CheckpointError, RisError
from ris.runtime.bench.report import operations_of
from ris.runtime.bundle import STAGES, open_bundle
from ris.runtime.image import load_picture, prepare_image
from ris.runtime.loading import computes_by_stage, load
from ris.runtime.reference import pytorch_reference

Answer = dict[str, Any]
ENCODERS = ("sam_image_encoder", "clip_image_encoder")
MAX_BATCH = 8


def peak_memory() -> int:
    """The most memory that this process has had at once, in bytes."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


class BundleWorker:
    """A bundle in this project's runtime. spec: bundle, options (of `ris.runtime.load`), image,
    expressions, categories.
    """

    def __init__(self, spec: Answer) -> None:
        self._spec = spec
        self._rgb = np.load(spec["image"], mmap_mode="r")
        # monotonic clocks of two processes are the same one; engines are imported while the bundle
        # loads
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
        model = self._model
        graphs = model.bundle.manifest.graphs
        infos = model.sessions
        return {
            "engine": ", ".join(
                sorted({f"{i.engine} {i.version} on {i.device}" for i in infos.values()})
            ),
            "bundle_precision": model.bundle.manifest.precision,
            "precision": {
                stage: info.precision or graphs[stage].precision for stage, info in infos.items()
            },
            "operations": operations_of(
                {stage: entry.operations for stage, entry in graphs.items()}
            ),
            "compiled": self._compiled,
            **self._seconds,
        }

    def _ask(self, scene: Any, which: int) -> Any:
        """Without the no-target decision: a "no target" answer would skip the mask."""
        categories = self._spec["categories"]
        return scene.segment(
            self._spec["expressions"][which],
            category=categories[which] if categories else None,
            no_target_threshold=None,
        )

    def round(self) -> Answer:
        """A first mask and a further expression."""
        start = time.perf_counter()
        scene = self._model.encode_image(self._rgb, expressions=self._spec["expressions"][:1])
        result = self._ask(scene, 0)
        middle = time.perf_counter()
        self._ask(scene, 1)
        end = time.perf_counter()
        self._scene = scene
        stages = {name.removeprefix("image."): seconds for name, seconds in result.timings.items()}
        own = sum(seconds for name, seconds in stages.items() if name not in STAGES)
        inside = sum(seconds for name, seconds in stages.items() if name in STAGES)
        return {
            "first_mask": middle - start,
            "next_expression": end - middle,
            "host": own if self._model.overlap else middle - start - inside,
            "stages": stages,
        }

    def images(self, count: int) -> Answer:
        """Seconds for each of `count` images that go through each image encoder together."""
        feeds = prepare_image(np.asarray(self._rgb), self._model.bundle.manifest.preprocess)
        seconds = 0.0
        for stage, image in zip(ENCODERS, feeds, strict=True):
            batch = np.repeat(image, count, axis=0)
            session = self._model.open_sessions[stage] if count == 1 else self._batched(stage)
            start = time.perf_counter()
            session.run({"image": batch})
            seconds += time.perf_counter() - start
        return {"each": seconds / count}

    def _batched(self, stage: str) -> Any:
        """An encoder that takes several images; the model's own may be compiled for one."""
        if stage not in self._several:
            options = self._spec["options"]
            kept = {
                name: options[name]
                for name in ("device", "threads", "low_memory", "throughput")
                if name in options
            }
            compute = computes_by_stage(options.get("compute"))[stage]
            engine = create(
                options["engine"], EngineOptions(**kept, compute=compute, max_batch=MAX_BATCH)
            )
            graph = self._model.bundle.graph(stage)
            self._several[stage] = engine.open(graph, engine.compile(graph))
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
        """Seconds from a 12-megapixel JPEG file to what the encoders take, exact and as a draft."""
        preprocess = self._model.bundle.manifest.preprocess
        found = {}
        for name, draft in (("exact", None), ("draft", preprocess.sam.size)):
            start = time.perf_counter()
            prepare_image(load_picture(self._spec["photo"], draft).pixels, preprocess)
            found[name] = time.perf_counter() - start
        return found


class PyTorchWorker:
    """The PyTorch model of the same bundle. spec: also compile (torch.compile) and files
    (`WeightFiles`).
    """

    def __init__(self, spec: Answer) -> None:
        files = {name: Path(file) if file else None for name, file in spec["files"].items()}
        bundle = open_bundle(spec["bundle"], verify=False)
        self._operations = bundle.manifest.graphs
        self._run = pytorch_reference().timed_reference(
            bundle,
            np.load(spec["image"]),
            tuple(spec["expressions"]),
            spec["threads"],
            files,
            spec["compile"],
        )
        self._version = metadata.version("torch")

    def about(self) -> Answer:
        return {
            "engine": f"torch {self._version} on cpu",
            "bundle_precision": None,
            "precision": dict.fromkeys(self._operations, "fp32"),
            "operations": operations_of(
                {stage: entry.operations for stage, entry in self._operations.items()}
            ),
            "compiled": False,
        }

    def round(self) -> Answer:
        first, following = self._run()
        return {"first_mask": first, "next_expression": following, "host": None, "stages": {}}


class RatesWorker:
    """Matrix products; spec: threads."""

    def __init__(self, spec: Answer) -> None:
        from ris.runtime.bench import rates

        self._calls, self._measure = rates.products(spec["threads"]), rates.measure

    def about(self) -> Answer:
        return {}

    def round(self) -> Answer:
        return {"rates": self._measure(self._calls)}


KINDS: dict[str, Callable[[Answer], Any]] = {
    "bundle": BundleWorker,
    "pytorch": PyTorchWorker,
    "rates": RatesWorker,
}


def main() -> None:
    """Answers requests until its input ends: {"do": ..., "count": ...} in, the answer or {"error":
    ...} out, with "checkpoint": true where the weight files are not those of the bundle.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a library prints is not an answer
    spec = json.loads(sys.argv[1])
    worker: Any = None
    for line in sys.stdin:
        request = json.loads(line)
        arguments = [request["count"]] if "count" in request else []
        try:
            if worker is None:
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
