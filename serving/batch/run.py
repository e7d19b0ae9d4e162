"""A batch from its plan to its last part: the driver's side of Ray Data."""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
import ray.data
import ray.exceptions

from ris.engines import select
from ris.engines.base import first_line
from ris.engines.errors import EngineError, RisError, Skipped
from ris.engines.processor import usable_cores
from ris.runtime import open_bundle
from ris.runtime.bundle import MANIFEST, sha256_of
from ris.runtime.commands.console import track
from ris.runtime.commands.running import Running
from ris.serving.batch.asked import Given
from ris.serving.batch.inputs import group_by_image, read_sources
from ris.serving.batch.parts import Job, fingerprint
from ris.serving.batch.worker import Worker
from ris.serving.limits import Limits

_ANSI = re.compile(r"\x1b\[[0-9;]*m")
_EXCEPTION = re.compile(r"[\w.]+(Error|Exception): .")
_OBJECT_STORE = 100_000_000  # bytes; only numbers of parts go through it


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


@dataclass(frozen=True)
class BatchReport:
    """What a run did, and what the whole batch has."""

    rows: int
    """Rows of the whole batch."""

    errors: int
    """Rows of the whole batch that have an error in place of an answer."""

    parts: int
    """Files of the whole batch."""

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

    An earlier plan of the same question is kept, with what is done of it.

    Args:
        out: The batch's folder.
        bundle: The model. The hashes of its files are checked.
        sources: Folders, .jsonl, .parquet and .tar files.
        given: What is asked where the sources do not say.
        options: Of them the rows of a part and the threshold.
        restart: Throw away an earlier batch in the folder.
        noted: Gets a sentence for what folders have that looks like a picture and is not taken.

    Raises:
        RisError: Where the folder has the plan of another question, or files that are not a
            batch's, and where the sources cannot be read or have nothing in them.
        BundleError: Where the bundle is missing or damaged.
    """
    manifest = open_bundle(bundle).path / MANIFEST  # the hashes are checked once, here
    job = Job(out)
    if restart:
        job.clear()

    asked = {
        **_question(sources, given),
        "bundle_manifest_sha256": sha256_of(manifest),
        "no_target_threshold": options.no_target_threshold,
    }
    plan = job.planned()
    if plan is None:
        if next(out.glob("part-*.parquet"), None) is not None:
            raise RisError(
                f"{out} has parts but no plan; use another --out, or --restart to throw them away"
            )
        tasks = group_by_image(read_sources(sources, given, noted))
        if not tasks:
            raise RisError("there is nothing in the input")
        job.write_plan(tasks, options.rows_per_part, asked)
        plan = job.planned()
    elif differing := [name for name, value in asked.items() if plan["asked"].get(name) != value]:
        raise RisError(
            f"{out} has a batch with other {', '.join(differing)}; use another --out, or --restart"
            " to throw it away"
        )
    assert plan is not None
    return job, int(plan["parts"])


def _question(sources: Sequence[Path], given: Given) -> dict[str, Any]:
    """What the input asks, for the comparison with an earlier plan."""
    return {
        "sources": [str(source.absolute()) for source in sources],
        "files": fingerprint([source for source in sources if source.exists()]),
        "expressions": list(given.expressions),
        "category": given.category,
    }


def run_batch(
    job: Job,
    parts: int,
    bundle: Path,
    running: Running,
    options: BatchOptions,
    limits: Limits | None = None,
) -> BatchReport:
    """Does the parts that are not done yet, on this machine or a cluster, and counts the whole.

    Args:
        job: The batch, with its plan.
        parts: How many parts the plan has.
        bundle: The model that the plan was made for.
        running: What runs it in each worker. Without `threads`, a worker uses its `cpus`.
        options: Workers, their resources, and the threshold.
        limits: What an image may be; None: `Limits()`.

    Raises:
        EngineError: Where this machine alone is to run it and lacks the engine.
        RisError: Where the cluster cannot be reached, the workers cannot start, or a part cannot be
            done for a reason that is no image's; the same command goes on.
    """
    if options.address is None and (reason := select(running.engine).unusable()):
        raise EngineError(f"engine {running.engine!r} cannot run here: {reason}")

    still_open = job.open_parts(parts)
    start = time.perf_counter()
    rows = images = 0
    worker_seconds = 0.0
    if still_open:
        with _cluster(options):
            work = _work(job, still_open, bundle, running, options, limits or Limits())
            for done in track(work, len(still_open), "Parts"):
                if done["failed"]:
                    raise RisError(f"part {done['part']} could not be done: {done['failed']}")
                rows += int(done["rows"])
                images += int(done["images"])
                worker_seconds += float(done["seconds"])
    seconds = time.perf_counter() - start

    job.tidy()
    counted = [job.counts(part) for part in range(parts)]
    return BatchReport(
        rows=sum(count for count, _ in counted),
        errors=sum(count for _, count in counted),
        parts=parts,
        new_rows=rows,
        images=images,
        seconds=seconds,
        worker_seconds=worker_seconds,
    )


def _work(
    job: Job,
    parts: Sequence[int],
    bundle: Path,
    running: Running,
    options: BatchOptions,
    limits: Limits,
) -> Iterator[dict[str, Any]]:
    """What a worker returns of each part, in the order in which they are done."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)

    threads = running.threads or max(1, int(options.cpus))
    resources: dict[str, Any] = {"num_cpus": options.cpus}
    if options.gpus:
        resources["num_gpus"] = options.gpus

    numbers = ray.data.from_items(
        [{"part": part} for part in parts], override_num_blocks=len(parts)
    )
    dataset = numbers.map_batches(
        Worker,
        batch_size=1,
        compute=ray.data.ActorPoolStrategy(size=min(options.workers, len(parts))),
        fn_constructor_kwargs={
            "out": str(job.folder.absolute()),
            "bundle": str(bundle.absolute()),
            "running": {**asdict(running), "threads": threads},
            "limits": limits,
            "no_target_threshold": options.no_target_threshold,
        },
        **resources,
    )
    try:
        yield from dataset.iter_rows()
    except ray.exceptions.RayError as error:
        raise RisError(f"the workers failed: {_cause(error)}") from error


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
