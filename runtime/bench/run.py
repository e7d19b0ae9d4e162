"""Gives the ways of running a model their turns, each in a process of its own, or in a new one
every round.

A round goes once through all of them and through the machine's matrix products, every other one
backwards, so that whatever else the machine does meets them alike. One that fails is left out from
there on and named in the report.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.engines.errors import CheckpointError, RisError
from ris.runtime import system
from ris.runtime.bench.report import FORMAT_VERSION, BenchReport, Inputs, Measured, Spread
from ris.runtime.bundle import Bundle

Report = Callable[[str], None]
IMAGES, EXPRESSIONS = (1, 2, 4, 8), (1, 2, 4, 8, 16, 32, 64)
PHOTO = (3000, 4000)  # pixels, height and width: 12 megapixels
_RATES = "matrix products"


@dataclass(frozen=True)
class Alternative:
    """One way of running the model: its name, and what `worker` needs. kind: "bundle" or
    "pytorch".
    """

    name: str
    kind: str
    bundle: str
    options: dict[str, Any] = field(default_factory=dict)
    compile: bool = False
    files: dict[str, str | None] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """What to measure. rounds: measured ones, after one to warm up; cold_starts: fresh processes of
    each bundle; batches: rounds of several images and expressions together (for the fastest bundle
    alone); limit: seconds that one answer of a process may take. anew: every round is in new
    processes, after one there to warm up; what stays the same for a process's life, such as where
    its memory lies, then differs from round to round.
    """

    rounds: int = 5
    cold_starts: int = 3
    batches: int = 2
    limit: float = 900.0
    anew: bool = False

    def steps(self, alternatives: Sequence[Alternative]) -> int:
        """How often `run_plan` reports."""
        bundles = sum(a.kind == "bundle" for a in alternatives)
        starts = bundles * (1 + self.cold_starts)
        turns = (len(alternatives) + 1) * (1 + self.rounds)
        return (
            starts
            + turns
            + (self.batches + 1) * (len(IMAGES) + len(EXPRESSIONS)) * (self.batches > 0)
            + 1
        )


class WorkerError(RisError):
    """A process that cannot go on, and why."""


class Worker:
    """A process that answers requests; use it in a `with` block."""

    def __init__(self, spec: dict[str, Any], threads: int | None, limit: float) -> None:
        environment = dict(os.environ)
        if threads is not None:  # numpy's library takes it from here alone
            environment |= {"OPENBLAS_NUM_THREADS": str(threads), "OMP_NUM_THREADS": str(threads)}
        self._limit = limit
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        self._process = subprocess.Popen(
            [
                sys.executable,
                "-P",
                "-m",
                "ris.runtime.bench.worker",
                json.dumps(spec | {"started": time.monotonic()}),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=environment,
            text=True,
        )
        self._answers: queue.SimpleQueue[str] = queue.SimpleQueue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._answers.put(line)
        self._answers.put("")

    def ask(self, do: str, **more: Any) -> dict[str, Any]:
        """Raises WorkerError where the process fails, ends, or takes longer than its limit, and
        CheckpointError for weight files that are not the bundle's: the user's mistake, not
        something to measure the rest without.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps({"do": do} | more) + "\n")
            self._process.stdin.flush()
            line = self._answers.get(timeout=self._limit)
        except queue.Empty:
            raise WorkerError(f"no answer within {self._limit:.0f} seconds") from None
        except OSError:
            line = ""
        if not line:
            raise WorkerError(self._death())
        answer: dict[str, Any] = json.loads(line)
        if answer.get("checkpoint"):
            raise CheckpointError(answer["error"])
        if "error" in answer:
            raise WorkerError(answer["error"])
        return answer

    def _death(self) -> str:
        code = self._process.wait()
        self._errors.seek(0)
        said = self._errors.read().decode(errors="replace").strip().splitlines()[-1:]
        how = (
            f"signal {-code}, which may be for want of memory"
            if code == -9
            else f"exit code {code}"
        )
        return "; ".join([f"its process ended with {how}", *said])

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close(wait=0.1 if exception[0] else 20)

    def close(self, wait: float = 20) -> None:
        """Ends the process, by force where that takes longer than `wait` seconds. May be called
        twice.
        """
        with contextlib.suppress(OSError):
            assert self._process.stdin is not None
            self._process.stdin.close()  # ends its loop
        try:
            self._process.wait(timeout=wait)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()


class _Run:
    """The state of one `run_plan`: what was measured so far, and what failed."""

    def __init__(
        self,
        alternatives: Sequence[Alternative],
        shared: dict[str, Any],
        plan: Plan,
        report: Report,
    ) -> None:
        self.alternatives, self.shared, self.plan, self.report = alternatives, shared, plan, report
        self.failed: dict[str, str] = {}
        self.about: dict[str, dict[str, Any]] = {}
        self.turns: dict[str, list[dict[str, Any]]] = {a.name: [] for a in alternatives}
        self.starts: dict[str, list[dict[str, float]]] = {a.name: [] for a in alternatives}
        self.memory: dict[str, int] = {}
        self.batch_memory: dict[str, int] = {}
        self.compile: dict[str, float] = {}
        self.rates: list[dict[str, dict[str, list[float]]]] = []
        self.batches: dict[str, dict[str, dict[int, list[float]]]] = {}
        self.photo: dict[str, list[float]] = {}

    def worker(self, alternative: Alternative | None) -> Worker:
        spec = self.shared | ({"kind": "rates"} if alternative is None else vars(alternative))
        return Worker(spec, self.shared["threads"], self.plan.limit)

    @contextlib.contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """A failure of `name` is noted, and is nobody else's."""
        try:
            yield
        except WorkerError as error:
            self.failed[name] = str(error)

    def cold(self, alternative: Alternative, note: bool) -> None:
        """A process from its start to a mask and a further one."""
        start = time.perf_counter()
        with self.guarded(alternative.name), self.worker(alternative) as worker:
            turn = worker.ask("round")
            seconds = time.perf_counter() - start - turn["next_expression"]
            about = worker.ask("about")
            if not note:
                if about["compiled"]:
                    self.compile[alternative.name] = about["load"]
                return
            self.starts[alternative.name].append(
                {"cold_start": seconds, "imports": about["imports"], "load": about["load"]}
            )
            self.memory[alternative.name] = max(
                turn["peak_memory"], self.memory.get(alternative.name, 0)
            )

    def rounds(self, workers: dict[str, Worker], stack: contextlib.ExitStack) -> None:
        """All measured rounds. workers: those of a new round take the old ones' places; the stack
        ends them.
        """
        ways = {a.name: a for a in self.alternatives}
        for number in range(1, self.plan.rounds + 1):
            names = [_RATES, *(a.name for a in self.alternatives)]
            for name in reversed(names) if number % 2 else names:
                self.report(f"{name}: round {number} of {self.plan.rounds}")
                if name not in workers or name in self.failed:
                    continue
                with self.guarded(name):
                    if self.plan.anew and name != _RATES:
                        workers[name].close()
                        workers[name] = stack.enter_context(self.worker(ways[name]))
                        workers[name].ask("round")
                    turn = workers[name].ask("round")
                    if name == _RATES:
                        self.rates.append(turn["rates"])
                    else:
                        self.turns[name].append(turn)
                        if not self.starts[name]:
                            self.memory[name] = turn["peak_memory"]

    def batch(self, name: str, worker: Worker) -> None:
        """Several images, then several expressions together; once to warm up each size."""
        found = self.batches[name] = {"images": {}, "expressions": {}}
        for number in range(self.plan.batches + 1):
            for what, sizes in (("images", IMAGES), ("expressions", EXPRESSIONS)):
                for size in sizes:
                    self.report(f"{name}: {size} {what}")
                    if name in self.failed:
                        continue
                    with self.guarded(name):
                        answer = worker.ask(what, count=size)
                        self.batch_memory[name] = answer["peak_memory"]
                        if number:
                            found[what].setdefault(size, []).append(answer["each"])

    def photos(self, worker: Worker) -> None:
        with self.guarded("photo"):
            for number in range(self.plan.rounds + 1):
                for name, seconds in worker.ask("photo").items():
                    if number and name != "peak_memory":
                        self.photo.setdefault(name, []).append(seconds)


def run_plan(
    bundle: Bundle,
    alternatives: Sequence[Alternative],
    rgb: NDArray[np.uint8],
    expressions: tuple[str, str],
    categories: tuple[str, ...],
    threads: int | None,
    plan: Plan,
    report: Report,
) -> BenchReport:
    """Measures all alternatives. bundle: the one that says what the model is; rgb: uint8 [H, W, 3];
    categories: one for each expression, or none. Raises RisError where not a single alternative
    could be measured.
    """
    machine = _machine()
    with (
        tempfile.TemporaryDirectory(prefix="ris-bench-") as folder,
        contextlib.ExitStack() as stack,
    ):
        np.save(Path(folder) / "image.npy", rgb)
        _save_photo(Path(folder) / "photo.jpg")
        shared = {
            "image": f"{folder}/image.npy",
            "photo": f"{folder}/photo.jpg",
            "expressions": expressions,
            "categories": categories,
            "threads": threads,
        }
        run = _Run(alternatives, shared, plan, report)
        bundles = [a for a in alternatives if a.kind == "bundle"]
        for number in range(plan.cold_starts + 1):
            for alternative in bundles:
                what = (
                    f"start {number} of {plan.cold_starts}"
                    if number
                    else "first start, compiles what is needed"
                )
                report(f"{alternative.name}: {what}")
                if alternative.name not in run.failed:
                    run.cold(alternative, note=number > 0)
        workers: dict[str, Worker] = {}
        # PyTorch last: it is left out where memory is short; a warm-up each, so that the next one
        # sees what is free
        for some in (None, *bundles, *(a for a in alternatives if a.kind == "pytorch")):
            name = some.name if some else _RATES
            report(f"{name}: loading and warm-up")
            if name in run.failed:
                continue
            with run.guarded(name):
                _require_memory(bundle)
                workers[name] = stack.enter_context(run.worker(some))
                workers[name].ask("round")
                run.about[name] = workers[name].ask("about")
        run.rounds(workers, stack)
        running = [a.name for a in bundles if run.turns[a.name] and a.name not in run.failed]
        if running:
            fastest = min(
                running,
                key=lambda name: Spread.of([t["first_mask"] for t in run.turns[name]]).median,
            )
            report(f"{fastest}: a photo of 12 megapixels")
            run.photos(workers[fastest])
            if plan.batches:
                run.batch(fastest, workers[fastest])
    return _report(bundle, run, rgb, machine)


def _report(
    bundle: Bundle, run: _Run, rgb: NDArray[np.uint8], machine: dict[str, Any]
) -> BenchReport:
    measured = [_measured(a, run) for a in run.alternatives if run.turns[a.name]]
    if not measured:
        raise RisError(
            "nothing could be measured: " + "; ".join(f"{k}: {v}" for k, v in run.failed.items())
        )
    collected: dict[str, dict[str, list[float]]] = {}
    for turn in run.rates:
        for precision, libraries in turn.items():
            for library, values in libraries.items():
                collected.setdefault(precision, {}).setdefault(library, []).extend(values)
    return BenchReport(
        format_version=FORMAT_VERSION,
        inputs=Inputs(
            image=hashlib.sha256(np.ascontiguousarray(rgb).tobytes()).hexdigest(),
            height=rgb.shape[0],
            width=rgb.shape[1],
            expressions=tuple(run.shared["expressions"]),
            categories=tuple(run.shared["categories"]),
            model=hashlib.sha256(
                json.dumps(bundle.manifest.model, sort_keys=True).encode()
            ).hexdigest(),
            threads=run.shared["threads"],
        ),
        machine=machine | {"load_after": _load()},
        rounds=run.plan.rounds,
        anew=run.plan.anew,
        rates={p: {k: Spread.of(v) for k, v in found.items()} for p, found in collected.items()},
        alternatives=tuple(measured),
        failed=run.failed,
        photo={name: Spread.of(seconds) for name, seconds in run.photo.items()},
    )


def _measured(alternative: Alternative, run: _Run) -> Measured:
    name = alternative.name
    turns, about, starts = run.turns[name], run.about[name], run.starts[name]
    batches = run.batches.get(name, {"images": {}, "expressions": {}})

    def spread(found: Sequence[dict[str, Any]], key: str) -> Spread | None:
        values = [one[key] for one in found if one.get(key) is not None]
        return Spread.of(values) if values else None

    first, following = spread(turns, "first_mask"), spread(turns, "next_expression")
    assert first is not None and following is not None  # noqa: PT018
    return Measured(
        name=name,
        engine=about["engine"],
        bundle=alternative.bundle if alternative.kind == "bundle" else None,
        bundle_precision=about["bundle_precision"],
        precision=about["precision"],
        operations=about["operations"],
        first_mask=first,
        next_expression=following,
        host=spread(turns, "host"),
        stages={
            stage: Spread.of([turn["stages"][stage] for turn in turns])
            for stage in turns[0]["stages"]
        },
        cold_start=spread(starts, "cold_start"),
        imports=spread(starts, "imports"),
        load=spread(starts, "load"),
        images={size: Spread.of(values) for size, values in batches["images"].items()},
        expressions={size: Spread.of(values) for size, values in batches["expressions"].items()},
        compile=run.compile.get(name),
        peak_memory=run.memory.get(name),
        peak_memory_batches=run.batch_memory.get(name),
    )


def _machine() -> dict[str, Any]:
    cpu, memory = system.cpu(), system.memory()
    return {
        "cpu": cpu.model,
        "cores": cpu.usable,
        "features": list(cpu.features),
        "memory": memory.total,
        "versions": system.versions((*system.RUNTIME_PACKAGES, *system.ENGINE_PACKAGES, "torch")),
        "load_before": _load(),
    }


def _load() -> float | None:
    """The load average of the last minute."""
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def _require_memory(bundle: Bundle) -> None:
    """Raises WorkerError where another copy of the model may not fit: half of its weights again for
    its values.
    """
    available = system.memory().available
    weights = sum(entry.parameters for entry in bundle.manifest.graphs.values()) * 4
    if available is not None and available < 1.5 * weights:
        raise WorkerError(
            f"left out: {available / 1e9:.1f} GB of memory are free, the model's weights are"
            f" {weights / 1e9:.1f}"
        )


def _save_photo(path: Path) -> None:
    """A JPEG as a camera makes it, of smooth shapes and grain."""
    rng = np.random.default_rng(0)
    coarse = Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)).resize(
        PHOTO[::-1], Image.Resampling.BICUBIC
    )
    grain = rng.integers(-8, 9, (*PHOTO, 1), dtype=np.int16)
    pixels = np.clip(np.asarray(coarse, np.int16) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
