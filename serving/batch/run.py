"""A batch from its plan to its last part: the driver's side of Ray Data."""

from __future__ import annotations

import logging
import os
import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.exceptions

from ris.engines import EngineOptions, create
from ris.engines.base import first_line
from ris.engines.devices import CUDA, kind_of
from ris.engines.errors import EngineError, RisError, Skipped
from ris.engines.processor import usable_cores
from ris.runtime import open_bundle
from ris.runtime.bundle import MANIFEST, Bundle, sha256_of
from ris.runtime.categories import AUTO, CategoryTable, categories_to_ask
from ris.runtime.commands.console import track
from ris.runtime.commands.running import Running
from ris.runtime.loading import select_for
from ris.serving.batch.addresses import place
from ris.serving.batch.asked import Asked, Given
from ris.serving.batch.grouping import grouped
from ris.serving.batch.inputs import read_sources
from ris.serving.batch.parts import Job, fingerprint
from ris.serving.batch.precision import decide, of_worker
from ris.serving.batch.watch import MAX_SECONDS
from ris.serving.batch.worker import NOT_TRIED, Worker
from ris.serving.limits import Limits

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception): .")
_OBJECT_STORE = 100_000_000  # bytes; only numbers of parts go through it

TRIES = 3
"""How often a part is tried in one run, each time by workers that were started anew."""

_MOST_FAILURES = 8  # for each worker, one after the other, before the rest is left for later


@dataclass(frozen=True)
class BatchOptions:
    """How a batch is spread over workers, and what a worker does."""

    workers: int = 1
    """Actors, each with a model."""

    cpus: float = 1.0
    """Cores that Ray sets aside for each worker; fractions are allowed."""

    gpus: float = 0.0
    """GPUs that Ray sets aside for each worker; fractions are allowed."""

    address: str | None = None
    """Of a Ray cluster; None: this machine alone."""

    rows_per_part: int = 256
    """Rows of one file: as many as are lost, and done again, where a worker is killed."""

    no_target_threshold: float = 0.5
    """Above this no-target probability the mask is empty."""

    bundle_address: str | None = None
    """Where workers copy the bundle from; None: it is in the same folder on all machines."""

    retry_errors: bool = False
    """Ask the rows again that have an error in place of an answer."""

    form: str | None = None
    """The form that expressions are asked in. None: the model's own choice."""

    max_seconds: float = MAX_SECONDS
    """Seconds of a worker's step, such as encoding an image; it ends where one takes longer."""


@dataclass(frozen=True)
class BatchReport:
    """What a run did, and what the whole batch has."""

    rows: int
    """Rows of the whole batch that are in its files."""

    errors: int
    """How many of them have an error in place of an answer."""

    parts: int
    """Parts of the whole batch."""

    files: int
    """Files of the whole batch, one for each part that is done."""

    open_parts: int
    """Parts that could not be done, for reasons that are no image's; the same command goes on."""

    open_because: list[str]
    """The reasons, the most frequent first."""

    new_rows: int
    """Rows of this run."""

    images: int
    """Images of this run."""

    seconds: float
    """Of this run, from its start to its end."""

    worker_seconds: float
    """Of this run, the workers' own time for images and expressions, summed."""


def plan_batch(
    out: Path,
    bundle: Path,
    sources: Sequence[Path],
    given: Given,
    options: BatchOptions,
    restart: bool = False,
    noted: Skipped = lambda sentence: None,
) -> tuple[Job, int]:
    """The job and how many parts it has.

    An earlier plan of the same question is kept, with what is done of it. Where something is
    refused an earlier batch is as it was; what ends the planning itself early costs its plan, and
    no answer.

    Args:
        out: The batch's folder.
        bundle: The model. The hashes of its files are checked.
        sources: Folders, .jsonl, .parquet and .tar files.
        given: What is asked where the sources do not say.
        options: Of them the rows of a part, the threshold and the form.
        restart: Throw away an earlier batch in the folder, once the new one is planned.
        noted: Gets a sentence for what folders have that looks like a picture and is not taken.

    Raises:
        RisError: Where the folder has the plan of another question, or files that are not a
            batch's, and where the sources cannot be read or have nothing in them.
        BundleError: Where the bundle is missing or damaged.
        ExpressionError: Where the model has no form or category of that name, and where folders
            have images that nothing, or no category, is asked of.
    """
    opened = open_bundle(bundle)  # the hashes are checked once, here
    text = opened.manifest.host.text
    text.form_named(options.form)  # raises for an unknown one
    _check_category(opened, sources, given)
    job = Job(out)

    asked = {
        **_question(sources, given),
        "bundle_manifest_sha256": sha256_of(opened.path / MANIFEST),
        "no_target_threshold": options.no_target_threshold,
        "form": text.form if options.form is None else options.form,
    }
    plan = None if restart else job.planned()
    if plan is None:
        if not restart and next(out.glob("part-*.parquet"), None) is not None:
            raise RisError(
                f"{out} has parts but no plan; use another --out, or --restart to throw them away"
            )
        lines = _not_empty(read_sources(sources, given, noted))
        job.write_plan(grouped(lines, job.plan_folder), options.rows_per_part, asked)
        plan = job.planned()
    elif differing := _differing({"form": text.form} | plan["asked"], asked, sources, options):
        raise RisError(
            f"{out} has a batch with other {', '.join(differing)}; use another --out, or --restart"
            " to throw it away"
        )
    assert plan is not None
    if plan["asked"] != asked:  # images were mended, and are what is planned from now on
        job.note(asked=asked)
    return job, int(plan["parts"])


def _check_category(bundle: Bundle, sources: Sequence[Path], given: Given) -> None:
    """Raises ExpressionError where no image could be asked for want of a category that there is.

    Lines and rows may name their own, and have their own errors.
    """
    files = bundle.manifest.categories
    if files is None:
        return
    table = CategoryTable.read(bundle.file(files.names))
    if given.category is None:
        if any(source.is_dir() for source in sources):
            categories_to_ask(table, given.expressions, None)  # raises
    elif given.category != AUTO:
        table.known(given.category)


def _not_empty(lines: Iterator[Asked]) -> Iterator[Asked]:
    """The lines, the first of which is read now: before it all of an input is refused that is.

    Raises RisError where there is none.
    """
    first = next(lines, None)
    if first is None:
        raise RisError("there is nothing in the input")
    return chain([first], lines)


def _differing(
    planned: dict[str, Any], asked: dict[str, Any], sources: Sequence[Path], options: BatchOptions
) -> list[str]:
    """What of a batch is asked otherwise than it was planned.

    Images of folders may have been mended where their errors are asked again. In other sources the
    plan says where in a file an image is: there a change is another question.
    """
    mended = options.retry_errors and all(source.is_dir() for source in sources)
    names = [name for name, value in asked.items() if planned.get(name) != value]
    return [name for name in names if not (mended and name == "files")]


def _question(sources: Sequence[Path], given: Given) -> dict[str, Any]:
    """What the input asks, for the comparison with an earlier plan."""
    return {
        "sources": [str(source.absolute()) for source in sources],
        "files": fingerprint([source for source in sources if source.exists()]),
        "expressions": list(given.expressions),
        "category": given.category,
    }


def check_run(bundle: Path, running: Running, options: BatchOptions, restart: bool) -> None:
    """What can be seen of a run before its input is planned.

    Args:
        bundle: The model.
        running: What runs it in each worker.
        options: Of them the cluster.
        restart: Whether an earlier batch is to be thrown away, so that a cluster must answer first.

    Raises:
        EngineError: Where this machine alone is to run it and lacks the engine or the device.
        RisError: Where the cluster does not answer.
    """
    if options.address is None:
        device, memory = running.device, running.low_memory
        row = select_for(open_bundle(bundle, verify=False), running.engine, device)
        create(row.name, EngineOptions(device, low_memory=memory, throughput=running.throughput))
        if kind_of(device) == CUDA and (reason := row.lacks_cuda()):
            raise EngineError(f"engine {row.name!r} cannot run on {device} here: {reason}")
    elif restart:
        with _cluster(options):
            pass


def run_batch(
    job: Job,
    parts: int,
    bundle: Path,
    running: Running,
    options: BatchOptions,
    limits: Limits | None = None,
) -> BatchReport:
    """Does the parts that are not done yet, on this machine or a cluster, and counts the whole.

    A part that cannot be done for a reason that is no image's is tried again by other workers, and
    stays open where that does not help; the others are done.

    Args:
        job: The batch, with its plan.
        parts: How many parts the plan has.
        bundle: The model that the plan was made for.
        running: What runs it in each worker. Without `threads`, a worker uses its `cpus`.
        options: Workers, their resources, the threshold and the form.
        limits: What an image may be; None: `Limits()`. Its seconds are those of the options.

    Raises:
        EngineError: Where this machine alone is to run it and lacks the engine or the device.
        RisError: Where the cluster cannot be reached, or the workers cannot start.
    """
    todo = dict.fromkeys(job.open_parts(parts), False)
    if options.retry_errors:
        done = [part for part in range(parts) if part not in todo]
        todo |= {part: True for part in done if job.counts(part)[1]}
    start = time.perf_counter()
    tally = _Tally()
    if todo:
        check_run(bundle, running, options, restart=False)
        threads = running.threads or max(1, int(options.cpus))
        running = replace(of_worker(running, options.gpus), threads=threads)
        given = {
            "out": str(job.folder.absolute()),
            "bundle": options.bundle_address or str(bundle.absolute()),
            "running": asdict(running),
            "limits": replace(limits or Limits(), seconds=options.max_seconds),
            "sources": _sources(job),
            "no_target_threshold": options.no_target_threshold,
            "compute": decide(job, bundle, running),
            "form": options.form,
        }
        with _cluster(options):
            most = _MOST_FAILURES * options.workers
            _do(
                todo,
                tally,
                lambda again: _work(again, given, options),
                lambda failures: job.halt(failures >= most),
            )
    seconds = time.perf_counter() - start

    still_open = set(job.open_parts(parts)) | tally.failed.keys()
    job.tidy(still_open)
    counted = [job.counts(part) for part in range(parts) if job.file(part).exists()]
    return BatchReport(
        rows=sum(count for count, _ in counted),
        errors=sum(count for _, count in counted),
        parts=parts,
        files=len(counted),
        open_parts=len(still_open),
        open_because=tally.reasons(),
        new_rows=tally.rows,
        images=tally.images,
        seconds=seconds,
        worker_seconds=tally.seconds,
    )


@dataclass
class _Tally:
    """What a run did so far."""

    rows: int = 0
    """Rows that were written."""

    images: int = 0
    """Images that were asked about."""

    seconds: float = 0.0
    """Of the workers."""

    failed: dict[int, str] = field(default_factory=dict)
    """Why a part could not be done, by its number, when it was tried last."""

    def take(self, done: dict[str, Any]) -> bool:
        """Takes what a worker returned of a part; whether the part is done."""
        part, reason = int(done["part"]), str(done["failed"])
        if reason:
            if reason != NOT_TRIED or part not in self.failed:
                self.failed[part] = reason
            return False
        self.failed.pop(part, None)
        self.rows += int(done["rows"])
        self.images += int(done["images"])
        self.seconds += float(done["seconds"])
        return True

    def reasons(self) -> list[str]:
        """Why parts could not be done, the most frequent first."""
        found = Counter(reason for reason in self.failed.values() if reason != NOT_TRIED)
        return [reason for reason, _ in found.most_common()]


Round = Callable[[dict[int, bool]], Iterator[dict[str, Any]]]
"""Has new workers try parts, and yields what they return; of each part whether it is `again`."""


def _do(todo: dict[int, bool], tally: _Tally, work: Round, failing: Callable[[int], None]) -> None:
    """Tries the parts, and those that fail again with other workers.

    Where one part after the other fails, the workers leave the rest alone: nothing gets better by
    trying everything. Where a second round does nothing either, it is the last.

    Args:
        todo: The parts, and whether each is done and has its errors asked again.
        tally: Counts what is done, and has the parts that are not.
        work: A round.
        failing: Told how many parts failed one after the other; halts the workers, or lets them go
            on.
    """
    left = todo
    for number in range(TRIES):
        failing(0)
        worked, failures = False, 0
        for done in track(work(left), len(left), "Parts tried again" if number else "Parts"):
            is_well = tally.take(done) or bool(done.get("well"))
            worked = worked or is_well
            # an image that fails is no engine that does; one that hangs takes long, image by image
            if is_well and not done.get("hung"):
                failures = 0
            else:
                # one that hangs at everything takes long over each: it has had its failures
                failures += _MOST_FAILURES if done.get("sick") else 1
                failing(failures)
        left = {part: todo[part] for part in tally.failed}
        if not left or (number and not worked):
            return


def _work(
    parts: dict[int, bool], given: dict[str, Any], options: BatchOptions
) -> Iterator[dict[str, Any]]:
    """What a worker returns of each part, in the order in which they are done.

    Args:
        parts: Their numbers, and whether each has its errors asked again.
        given: The arguments of `Worker`.
        options: The workers and their resources.
    """
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)

    resources: dict[str, Any] = {"num_cpus": options.cpus}
    if options.gpus:
        resources["num_gpus"] = options.gpus

    numbers = ray.data.from_items(
        [{"part": part, "again": again} for part, again in parts.items()],
        override_num_blocks=len(parts),
    )
    dataset = numbers.map_batches(
        Worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(options.workers, len(parts))),
        fn_constructor_kwargs=given,
        **resources,
    )
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayError as error:
        raise RisError(f"the workers failed: {_cause(error)}") from error


def _sources(job: Job) -> list[str]:
    """The sources that this machine sees, so that a worker says where its own does not."""
    plan = job.planned() or {}
    named = plan.get("asked", {}).get("sources", [])
    return [source for source in named if place(source).exists()]


def _cause(error: BaseException) -> str:
    """What ended a worker, out of Ray's many lines: the last exception that is not Ray's own."""
    lines = [line.strip() for line in _ANSI.sub("", str(error)).splitlines() if line.strip()]
    said = [line for line in lines if _EXCEPTION.match(line) and not line.startswith("ray.")]
    return said[-1] if said else first_line(error)


@contextmanager
def _cluster(options: BatchOptions) -> Iterator[None]:
    """A Ray of our own on this machine, reachable from it alone, or the one at the address."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    how: dict[str, Any] = {
        "log_to_driver": False,
        "logging_level": logging.ERROR,
        "address": options.address,
    }
    if options.address is None:
        how |= {
            "address": "local",
            "num_cpus": max(usable_cores(), round(options.workers * options.cpus)),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
            "_node_ip_address": "127.0.0.1",
        }

    # Ray gives its own processes 30 s to start, too little on a busy machine
    tries = 1 if options.address else 3
    _connect(how, tries, options.address or "on this machine")
    try:
        yield
    finally:
        ray.shutdown()


def _connect(how: dict[str, Any], tries: int, where: str) -> None:
    """`ray.init`, tried several times. Raises RisError, which names where."""
    for left in reversed(range(tries)):
        try:
            ray.init(**how)
            return
        except Exception as error:  # Ray raises plain Exception for some
            ray.shutdown()
            if not left:
                raise RisError(
                    f"Ray does not start or answer ({where}): {first_line(error)}"
                ) from error
