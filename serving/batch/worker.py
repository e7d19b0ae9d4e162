"""What runs in each actor: one model, which does one part of a batch after the other."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ris.engines.base import first_line
from ris.engines.errors import EngineError, RisError
from ris.engines.text import echoed, one_line, shown
from ris.runtime import Model, Segmentation, open_bundle
from ris.runtime.bundle import MANIFEST, sha256_of
from ris.runtime.choice import AUTO
from ris.runtime.loading import open_model
from ris.serving.answering import Answerer
from ris.serving.batch.addresses import is_remote, local_bundle, place
from ris.serving.batch.images import Ahead, StorageError, check_storage
from ris.serving.batch.inputs import ImageTask
from ris.serving.batch.parts import DEATHS, Job, Journal
from ris.serving.batch.precision import with_compute
from ris.serving.limits import Limits

NOT_TRIED = "not tried"
"""What `failed` says of a part that was left alone since the run had been halted."""


@dataclass(frozen=True)
class _Counts:
    """What was done of a part."""

    rows: int = 0
    """Its rows, or those that were asked again."""

    errors: int = 0
    """How many of them have an error in place of an answer."""

    images: int = 0
    """The images that were asked about."""

    seconds: float = 0.0
    """Of the work, without reading the plan or writing."""


class Worker:
    """A callable for `ray.data.Dataset.map_batches`: numbers of parts in, their counts out.

    An engine that failed may have left its process in any state, such as a CUDA context that fails
    at every call. So the process ends before the next part, and Ray starts another, where it can.
    """

    def __init__(
        self,
        out: str,
        bundle: str,
        running: dict[str, Any],
        limits: Limits,
        no_target_threshold: float,
        sources: Sequence[str] = (),
        compute: str = AUTO,
    ) -> None:
        """Opens the model; where that fails, every part says why.

        Args:
            out: The batch's folder.
            bundle: The bundle's folder or address.
            running: What `ris.runtime.load` takes besides the bundle.
            limits: What an image may be.
            no_target_threshold: Above this no-target probability the mask is empty.
            sources: What the driver sees of the input and this machine must see, too.
            compute: What all workers compute in where `running` says nothing for the whole model.
        """
        self._job = Job(place(out))
        self._threshold = no_target_threshold
        self._failed = False
        self._refused = ""
        self._kept = ExitStack()  # what lives as long as the worker
        try:
            check_storage([out, *sources])
            folder = self._kept.enter_context(local_bundle(bundle))
            self._about = {"bundle_manifest_sha256": self._planned(folder)}
            # the driver has checked the hashes of what it shares
            opened = open_bundle(folder, verify=is_remote(bundle))
            self._model = open_model(opened, **with_compute(running, opened, compute))
            self._about |= _about(self._model)
        except Exception as error:
            self._refused = _reason(error)
            return
        # a part has each image once: nothing to keep
        self._answerer = Answerer(self._model, limits, cached_images=0)
        self._ahead = Ahead(self._answerer, sources)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Does each part that has no file yet, and returns columns.

        Ray hides what a worker raises, so nothing is raised here.

        Args:
            batch: part: numbers; again, which may be missing: whether the part is done, and its
                rows with errors are to be asked again.

        Returns:
            part, rows, errors, images: numbers; seconds: of the work, without reading the plan or
            writing; failed: why the part could not be done, "" where it was.
        """
        done, failed = [], []
        again = batch.get("again", [False] * len(batch["part"]))
        for part, once_more in zip(batch["part"], again, strict=True):
            counts, reason = self._try(int(part), bool(once_more))
            done.append(counts)
            failed.append(one_line(reason))
        columns: dict[str, Any] = {
            name: np.array([getattr(counts, name) for counts in done])
            for name in ("rows", "errors", "images", "seconds")
        }
        return {"part": batch["part"], **columns, "failed": np.array(failed)}

    def _try(self, part: int, again: bool) -> tuple[_Counts, str]:
        """What was done of a part, and why it could not be done."""
        try:
            if self._job.halted():
                return _Counts(), NOT_TRIED
            if self._failed:
                self._leave()
            if self._refused:
                raise EngineError(self._refused)
            return self._part(part, again), ""
        except Exception as error:
            self._failed = isinstance(error, EngineError)
            return _Counts(), _reason(error)

    def _planned(self, bundle: Path) -> str:
        """The hash of a bundle's manifest. Raises RisError where another bundle was planned."""
        found = sha256_of(bundle / MANIFEST)
        asked = (self._job.planned() or {}).get("asked", {})
        if found != asked.get("bundle_manifest_sha256", found):
            raise RisError(
                "the bundle on a worker's machine is not the one that the batch was planned for;"
                " use another --out, or --restart to throw the batch away"
            )
        return found

    def _leave(self) -> None:
        """Ends the process; Ray starts another and gives it the part."""
        with suppress(Exception):
            self._kept.close()  # a copy of the bundle, which nothing else removes
        os._exit(1)

    def _part(self, part: int, again: bool) -> _Counts:
        """Does a part, or asks its rows with errors again."""
        tasks = self._job.tasks(part)
        answered: list[dict[str, Any]] = []
        if self._job.file(part).exists():
            if not again:  # a worker that was thought dead has finished it
                return _Counts(*self._job.counts(part), len(tasks))
            answered = self._job.answered(part)
            tasks = _without(tasks, {row["row"] for row in answered})

        start = time.perf_counter()
        with self._journal(part) as journal:
            rows = list(self._rows(tasks, journal))
            seconds = time.perf_counter() - start
            self._job.write_answers(part, answered + rows, self._about)
        errors = sum(row["error"] is not None for row in rows)
        return _Counts(len(rows), errors, len(tasks), seconds)

    @contextmanager
    def _journal(self, part: int) -> Iterator[Journal]:
        """The part's journal; an exception is no death of its images, and only death leaves one."""
        journal = self._job.journal(part)
        try:
            yield journal
        except Exception:
            journal.rest()
            raise
        finally:
            self._ahead.forget()
        journal.close()

    def _rows(self, tasks: Sequence[ImageTask], journal: Journal) -> Iterator[dict[str, Any]]:
        """The rows of all images; the next image is read while the engine works on one."""
        count = len(tasks)
        together = journal.is_slow and not any(map(journal.deaths, range(count)))
        if together:  # where a worker dies, each image is noted by itself from then on
            journal.begin(*range(count))
        for number, task in enumerate(tasks):
            if journal.deaths(number) >= DEATHS:
                yield from _errors(task, f"given up: {DEATHS} workers died on this image")
                continue
            # an image under suspicion is alone, so that the next death is its own or never again
            following = number + 1
            alone = journal.deaths(number) or journal.deaths(following)
            beside = [following] if following < count and not alone else []
            if not together:
                journal.begin(number, *beside)
            self._ahead.begin(task)
            for other in beside:
                self._ahead.begin(tasks[other])
            yield from self._image(task)

    def _image(self, task: ImageTask) -> list[dict[str, Any]]:
        """The rows of one image. Nothing about an image or an expression ends the part.

        Raises:
            EngineError: Where the engine fails, which is about neither.
            StorageError: Where no image could be read.
        """
        if task.location is None:
            return _errors(task, task.error or "no image")
        try:
            scene, _ = self._answerer.scene(self._ahead.take(task.location))
            categories = None
            if self._model.categories:
                categories = [name or "" for name in task.categories]
            answers = self._answerer.ask(scene, task.expressions, categories, self._threshold)
        except EngineError as error:
            raise EngineError(f"{error} (at {echoed(task.name)})") from error
        except StorageError:
            raise
        except RisError as error:
            return _errors(task, str(error))
        except Exception as error:
            return _errors(task, f"internal error: {_reason(error)}")
        return [
            _answer(task, i, answer)
            if isinstance(answer, Segmentation)
            else _error(task, i, str(answer))
            for i, answer in enumerate(answers)
        ]


def _reason(error: Exception) -> str:
    """What an exception says, in one line; with its class where it was not foreseen."""
    said = first_line(error)
    return said if isinstance(error, RisError) else f"{type(error).__name__}: {said}"


def _without(tasks: Sequence[ImageTask], rows: set[int]) -> list[ImageTask]:
    """The tasks without these rows, and without those that have no others."""
    left = []
    for task in tasks:
        keep = [i for i, row in enumerate(task.rows) if row not in rows]
        if keep:
            left.append(
                replace(
                    task,
                    rows=[task.rows[i] for i in keep],
                    expressions=[task.expressions[i] for i in keep],
                    categories=[task.categories[i] for i in keep],
                )
            )
    return left


def _about(model: Model) -> dict[str, str]:
    """What made the answers, for the metadata of their files."""
    infos = model.sessions.values()
    computes = {info.precision for info in infos if info.precision}
    engines = {f"{info.engine} {info.version} on {info.device}" for info in infos}
    precisions = {graph.precision for graph in model.bundle.manifest.graphs.values()}
    return {
        "engines": ", ".join(sorted(engines)),
        "precision": ", ".join(sorted(precisions)),
        "computes_in": ", ".join(sorted(computes)),
        "compute": model.choice.words if model.choice else "",
        "trained": str(model.trained).lower(),
    }


def _errors(task: ImageTask, reason: str) -> list[dict[str, Any]]:
    """The same error in every row of an image."""
    return [_error(task, i, reason) for i in range(len(task.rows))]


def _base(task: ImageTask, i: int) -> dict[str, Any]:
    # Arrow's text is valid Unicode; a file name or an expression need not be
    name, expression = shown(task.name), shown(task.expressions[i])
    return {"row": task.rows[i], "image": name, "expression": expression}


def _error(task: ImageTask, i: int, reason: str) -> dict[str, Any]:
    return {**_base(task, i), "error": one_line(reason)}


def _answer(task: ImageTask, i: int, answer: Segmentation) -> dict[str, Any]:
    return {
        **_base(task, i),
        "category": answer.category,
        "rle": dict(answer.rle()),
        "score": answer.score,
        "no_target": answer.no_target,
        "is_no_target": answer.is_no_target,
        "notes": list(answer.notes),
        "error": None,
    }
