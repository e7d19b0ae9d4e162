"""Gives the ways of running a model their turns, each in a process of its own.

A round goes once through all of them and through the machine's matrix products, every other round
backwards, so that whatever else the machine does slows all of them alike. One that fails is left
out from there on and named in the report.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ris.runtime import system
from ris.runtime.bench.plan import EXPRESSIONS, IMAGES, Alternative, Plan, Workload
from ris.runtime.bench.process import Worker, WorkerError
from ris.runtime.bench.report import BenchReport, Spread
from ris.runtime.bench.summary import Measurements, describe_machine, make_report
from ris.runtime.bundle import Bundle

Report = Callable[[str], None]
"""Called as each step begins, with its name."""

Failed = Callable[[str, str], None]
"""Called with the name of a way that cannot be measured, and why."""

_RATES = "matrix products"


def run_plan(
    bundle: Bundle,
    alternatives: Sequence[Alternative],
    workload: Workload,
    plan: Plan,
    report: Report,
    failed: Failed = lambda name, reason: None,
) -> BenchReport:
    """Measures all alternatives.

    Args:
        bundle: The one that says what the model is.
        alternatives: The ways of running it; their names differ.
        workload: What each of them is asked.
        plan: How much is measured.
        report: Called `plan.steps(alternatives)` times.
        failed: Called at once for whatever fails; the report has it, too.

    Raises:
        RisError: Where not a single alternative could be measured.
        CheckpointError: For weight files that are not the bundle's.
    """
    machine = describe_machine()
    with (
        tempfile.TemporaryDirectory(prefix="ris-bench-") as folder,
        contextlib.ExitStack() as stack,
    ):
        run = _Run(alternatives, workload.save(Path(folder)), plan, report, failed)
        run.check_files()
        run.start_cold()
        run.start_workers(bundle, stack)
        run.take_turns(stack)
        run.measure_fastest(bundle)
    return make_report(bundle, alternatives, workload, plan, machine, run.found)


class _Run:
    """A benchmark in progress: its processes, and what they answered."""

    def __init__(
        self,
        alternatives: Sequence[Alternative],
        shared: dict[str, Any],
        plan: Plan,
        report: Report,
        failed: Failed,
    ) -> None:
        """shared: the part of a worker's SPEC that all have in common (`Workload.save`)."""
        self._alternatives, self._shared = alternatives, shared
        self._plan, self._report, self._failed = plan, report, failed
        self._bundles = [a for a in alternatives if a.kind == "bundle"]
        self._workers: dict[str, Worker] = {}
        self.found = Measurements(
            turns={a.name: [] for a in alternatives},
            starts={a.name: [] for a in alternatives},
        )

    def check_files(self) -> None:
        """Raises CheckpointError for weight files that are not the bundle's, before all else."""
        found = [a for a in self._alternatives if a.kind == "pytorch"]
        if not found:
            return
        self._report("weight files")
        spec = self._shared | vars(found[0]) | {"kind": "files"}  # all have the same
        with (
            contextlib.suppress(WorkerError),  # each way says it itself
            Worker(spec, self._shared["threads"], self._plan.limit) as worker,
        ):
            worker.ask("about")

    def start_cold(self) -> None:
        """A start of each bundle that compiles what is needed, then the measured cold starts."""
        total, first = self._plan.cold_starts, "first start, compiles what is needed"
        for number in range(total + 1):
            what = f"start {number} of {total}" if number else first
            for alternative in self._bundles:
                self._report(f"{alternative.name}: {what}")
                if alternative.name not in self.found.failed:
                    self._start_once(alternative, measured=number > 0)

    def _start_once(self, alternative: Alternative, measured: bool) -> None:
        """A process from its start to a mask and a further one."""
        name, found = alternative.name, self.found
        start = time.perf_counter()
        with self._guarded(name), self._start(alternative) as worker:
            turn = worker.ask("round")
            seconds = time.perf_counter() - start - turn["next_expression"]
            about = worker.ask("about")
            if measured:
                times = {"cold_start": seconds, "imports": about["imports"], "load": about["load"]}
                found.starts[name].append(times)
                found.memory[name] = max(turn["peak_memory"], found.memory.get(name, 0))
            elif about["compiled"]:
                found.compile[name] = about["load"]

    def start_workers(self, bundle: Bundle, stack: contextlib.ExitStack) -> None:
        """Starts the processes that take turns; the stack ends them."""
        # PyTorch comes last, because it is left out where memory is short. Each process warms up
        # before the next one starts, which so sees how much memory is really free.
        others = [a for a in self._alternatives if a.kind == "pytorch"]
        for alternative in (None, *self._bundles, *others):
            name = alternative.name if alternative else _RATES
            self._report(f"{name}: loading and warm-up")
            if name in self.found.failed:
                continue
            with self._guarded(name):
                _require_memory(bundle)
                worker = self._workers[name] = stack.enter_context(self._start(alternative))
                worker.ask("round")
                self.found.about[name] = worker.ask("about")

    def take_turns(self, stack: contextlib.ExitStack) -> None:
        """All measured rounds; the stack ends the processes that are new in a round."""
        ways = {a.name: a for a in self._alternatives}
        for number in range(1, self._plan.rounds + 1):
            names = [_RATES, *ways]
            for name in reversed(names) if number % 2 else names:
                self._report(f"{name}: round {number} of {self._plan.rounds}")
                if name not in self._workers or name in self.found.failed:
                    continue
                with self._guarded(name):
                    if self._plan.anew and name != _RATES:
                        self._workers[name].close()
                        self._workers[name] = stack.enter_context(self._start(ways[name]))
                        self._workers[name].ask("round")  # to warm up
                    self._take_turn(name)

    def _take_turn(self, name: str) -> None:
        turn = self._workers[name].ask("round")
        if name == _RATES:
            self.found.rates.append(turn["rates"])
            return
        self.found.turns[name].append(turn)
        if not self.found.starts[name]:  # else it is known from the cold starts
            self.found.memory[name] = turn["peak_memory"]

    def measure_fastest(self, bundle: Bundle) -> None:
        """A photo and, where the plan has them, batches; of the bundle with the fastest first mask.

        Nothing is measured where no bundle runs.
        """
        turns = self.found.turns
        medians = {
            a.name: Spread.of([turn["first_mask"] for turn in turns[a.name]]).median
            for a in self._bundles
            if turns[a.name] and a.name not in self.found.failed
        }
        if not medians:
            return
        fastest = min(medians, key=lambda name: medians[name])
        self._report(f"{fastest}: a photo of 12 megapixels")
        self._measure_photo(self._workers[fastest])
        if self._plan.batches:
            together = ["images"] if bundle.wiring.image_stages else []
            self._measure_batches(fastest, self._workers[fastest], [*together, "expressions"])

    def _measure_photo(self, worker: Worker) -> None:
        with self._guarded("photo"):
            for number in range(self._plan.rounds + 1):
                for name, seconds in worker.ask("photo").items():
                    if number and name != "peak_memory":  # the first one warms up
                        self.found.photo.setdefault(name, []).append(seconds)

    def _measure_batches(self, name: str, worker: Worker, kinds: Sequence[str]) -> None:
        """Several images, then several expressions together; each size warms up once.

        kinds: those of the two that are measured.
        """
        found = self.found.batches[name] = {"images": {}, "expressions": {}}
        batches = [("images", size) for size in IMAGES]
        batches += [("expressions", size) for size in EXPRESSIONS]
        for number in range(self._plan.batches + 1):
            for what, size in batches:
                self._report(f"{name}: {size} {what}")
                if name in self.found.failed or what not in kinds:
                    continue
                with self._guarded(name):
                    answer = worker.ask(what, count=size)
                    self.found.batch_memory[name] = answer["peak_memory"]
                    if number:
                        found[what].setdefault(size, []).append(answer["each"])

    def _start(self, alternative: Alternative | None) -> Worker:
        """A new process of this alternative; None starts one for the matrix products."""
        own = {"kind": "rates"} if alternative is None else vars(alternative)
        return Worker(self._shared | own, self._shared["threads"], self._plan.limit)

    @contextlib.contextmanager
    def _guarded(self, name: str) -> Iterator[None]:
        """Notes a failure of `name`; the others go on."""
        try:
            yield
        except WorkerError as error:
            self.found.failed[name] = str(error)
            self._failed(name, str(error))


def _require_memory(bundle: Bundle) -> None:
    """Raises WorkerError where another copy of the model may not fit.

    A copy needs its weights in FP32 and half as much again for the values between layers.
    """
    available = system.memory().available
    weights = sum(entry.parameters for entry in bundle.manifest.graphs.values()) * 4
    if available is not None and available < 1.5 * weights:
        raise WorkerError(
            f"left out: {available / 1e9:.1f} GB of memory are free, the model's weights are"
            f" {weights / 1e9:.1f}"
        )
