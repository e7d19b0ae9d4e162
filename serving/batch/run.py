"""A batch from its plan to its last part: the driver's side of Ray Data."""

from __future__ import annotations

import logging
import os
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
from ris.engines.errors import EngineError, RisError
from ris.runtime import open_bundle
from ris.runtime.bundle import MANIFEST, sha256_of
from ris.runtime.commands.console import track
from ris.runtime.commands.running import Running
from ris.serving.batch.inputs import group_by_image, read_sources
from ris.serving.batch.parts import Job, fingerprint
from ris.serving.batch.worker import Worker
from ris.serving.limits import Limits

_OBJECT_STORE = 100_000_000  # bytes; only numbers of parts go through it


@dataclass(frozen=True)
class BatchOptions:
    """workers: actors, each with a model; cpus, gpus: that Ray sets aside for each, fractions
    allowed; address: of a Ray cluster, None for this machine alone; rows_per_part: how much a
    killed worker loses.
    """

    workers: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    address: str | None = None
    rows_per_part: int = 256
    no_target_threshold: float = 0.5


@dataclass(frozen=True)
class BatchReport:
    """rows, errors: of the whole batch; images, new_rows, seconds, worker_seconds: of this run;
    parts: files.
    """

    rows: int
    errors: int
    parts: int
    new_rows: int
    images: int
    seconds: float
    worker_seconds: float


def plan_batch(
    out: Path,
    bundle: Path,
    sources: Sequence[Path],
    expressions: Sequence[str],
    category: str | None,
    options: BatchOptions,
    restart: bool = False,
) -> tuple[Job, int]:
    """The job and how many parts it has; an earlier plan of the same question is kept, with what is
    done of it.

    Raises RisError where the folder has the plan of another question, or files that are not a
    batch's.
    """
    manifest = open_bundle(bundle).path / MANIFEST  # the hashes are checked once, here
    job = Job(out)
    if restart:
        job.clear()
    asked = {
        "sources": [str(source.absolute()) for source in sources],
        "files": fingerprint([source for source in sources if source.exists()]),
        "expressions": list(expressions),
        "category": category,
        "bundle_manifest_sha256": sha256_of(manifest),
        "no_target_threshold": options.no_target_threshold,
    }
    plan = job.planned()
    if plan is None:
        if next(out.glob("part-*.parquet"), None) is not None:
            raise RisError(
                f"{out} has parts but no plan; use another --out, or --restart to throw them away"
            )
        tasks = group_by_image(read_sources(sources, expressions, category))
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


def run_batch(
    job: Job,
    parts: int,
    bundle: Path,
    running: Running,
    options: BatchOptions,
    limits: Limits | None = None,
) -> BatchReport:
    """Does the parts that are not done yet, on this machine or a cluster, and counts the whole.

    Raises EngineError for an engine that this machine lacks, RisError where the cluster cannot be
    reached or the workers cannot start.
    """
    if options.address is None and (reason := select(running.engine).unusable()):
        raise EngineError(f"engine {running.engine!r} cannot run here: {reason}")
    still = job.open_parts(parts)
    start = time.perf_counter()
    rows = images = 0
    worker_seconds = 0.0
    if still:
        with _cluster(options):
            for done in track(
                _work(job, still, bundle, running, options, limits or Limits()), len(still), "Parts"
            ):
                rows += int(done["rows"])
                images += int(done["images"])
                worker_seconds += float(done["seconds"])
    seconds = time.perf_counter() - start
    job.tidy()
    counted = [job.counts(part) for part in range(parts)]
    total, errors = sum(count for count, _ in counted), sum(count for _, count in counted)
    return BatchReport(total, errors, parts, rows, images, seconds, worker_seconds)


def _work(
    job: Job,
    parts: Sequence[int],
    bundle: Path,
    running: Running,
    options: BatchOptions,
    limits: Limits,
) -> Iterator[dict[str, Any]]:
    """What each part came to, in the order in which they are done."""
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    threads = running.threads or max(1, int(options.cpus))
    resources: dict[str, Any] = {"num_cpus": options.cpus}
    if options.gpus:
        resources["num_gpus"] = options.gpus
    dataset = ray.data.from_items(
        [{"part": part} for part in parts], override_num_blocks=len(parts)
    ).map_batches(
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
    """What a worker's own exception said, without Ray's frames around it."""
    inner = getattr(error, "cause", None) or error.__cause__
    if isinstance(inner, BaseException) and inner is not error:
        return _cause(inner)
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else first_line(error)


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
            "num_cpus": max(os.cpu_count() or 1, round(options.workers * options.cpus)),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_STORE,
            "_node_ip_address": "127.0.0.1",
        }
    tries = (
        1 if options.address else 3
    )  # Ray gives its own processes 30 s to start, too little on a busy machine
    for left in reversed(range(tries)):
        try:
            ray.init(**how)
            break
        except Exception as error:  # Ray raises plain Exception for some
            ray.shutdown()
            if not left:
                where = options.address or "on this machine"
                raise RisError(
                    f"Ray does not start or answer ({where}): {first_line(error)}"
                ) from error
    try:
        yield
    finally:
        ray.shutdown()
