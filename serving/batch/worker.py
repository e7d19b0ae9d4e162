"""What runs in each actor: one model, which does one part of a batch after the other."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ris.engines.base import first_line
from ris.engines.errors import EngineError, RisError
from ris.engines.text import echoed, one_line
from ris.runtime import Model, open_bundle
from ris.runtime.bundle import MANIFEST, sha256_of
from ris.runtime.choice import AUTO
from ris.runtime.loading import open_model
from ris.serving.answering import Answerer
from ris.serving.batch.addresses import is_remote, local_bundle, place
from ris.serving.batch.images import Ahead, StorageError, check_storage
from ris.serving.batch.inputs import ImageTask
from ris.serving.batch.parts import DEATHS, FAILURES, Hang, Job, Journal
from ris.serving.batch.precision import with_compute
from ris.serving.batch.rows import error_rows, row_of
from ris.serving.batch.watch import Watch
from ris.serving.limits import Limits

NOT_TRIED = "not tried"
"""What `failed` says of a part that was left alone since the run had been halted."""

_OPENING = 4
"""How many times `Limits.seconds` a worker has for its model and a first answer of it.

Graphs are compiled meanwhile, some of them for the first answer.
"""

_MOST_OPENINGS = 3
"""So many workers that died one after the other while they opened the model, and none tries again.

Ray would start one after the other.
"""


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


class ItemError(EngineError):
    """An engine that failed at single images and is well: it answers about others."""


class HungError(EngineError):
    """What an earlier worker did not come back from; this one is another process."""


class Worker:
    """A callable for `ray.data.Dataset.map_batches`: numbers of parts in, their counts out.

    An engine that failed may have left its process in any state, such as a CUDA context that fails
    at every call. Where it fails at a picture of the house, too, the process ends before the next
    part, and Ray starts another, where it can. One that does not come back ends its process, too,
    and what it was at is a failure.
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
        form: str | None = None,
    ) -> None:
        """Looks for what the model needs; where that fails, every part says why.

        Args:
            out: The batch's folder.
            bundle: The bundle's folder or address.
            running: What `ris.runtime.load` takes besides the bundle.
            limits: What an image may be, and how long a step with it may take.
            no_target_threshold: Above this no-target probability the mask is empty.
            sources: What the driver sees of the input and this machine must see, too.
            compute: What all workers compute in where `running` says nothing for the whole model.
            form: The form that expressions are asked in. None: the model's own choice.
        """
        self._job = Job(place(out))
        self._threshold = no_target_threshold
        self._limits, self._sources = limits, sources
        self._failed = self._is_well = self._is_sick = self._has_hung = False
        self._refused = ""
        self._kept = ExitStack()  # what lives as long as the worker
        self._at: tuple[Journal, Hang] | None = None  # the step
        self._watch = Watch((_OPENING + 1) * limits.seconds, self._late)
        try:
            check_storage([out, *sources])
            folder = self._kept.enter_context(local_bundle(bundle))
            self._about = {"bundle_manifest_sha256": self._planned(folder)}
        except Exception as error:
            self._refused = _reason(error)
            return

        def opened() -> Answerer:
            # the driver has checked the hashes of what it shares
            around = open_bundle(folder, verify=is_remote(bundle))
            model = open_model(around, **with_compute(running, around, compute))
            # a part has each image once: nothing to keep
            return Answerer(model, limits, cached_images=0, form=form)

        self._open = opened

    @cached_property
    def _answerer(self) -> Answerer:
        """The model, which was asked once."""
        answerer = self._open()
        self._about |= _about(answerer.model)
        answerer.is_well()  # where it is not, the images find out
        return answerer

    @property
    def _model(self) -> Model:
        return self._answerer.model

    @cached_property
    def _ahead(self) -> Ahead:
        return Ahead(self._answerer, self._sources)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Does each part that has no file yet, and returns columns.

        Ray hides what a worker raises, so nothing is raised here.

        Args:
            batch: part: numbers; again, which may be missing: whether the part is done, and its
                rows with errors are to be asked again.

        Returns:
            part, rows, errors, images: numbers; seconds: of the work, without reading the plan or
            writing; failed: why the part could not be done, "" where it was; well: whether the
            engine is well all the same; hung: whether a worker did not come back; sick: whether it
            does not come back from anything.
        """
        done, failed, well, hung, sick = [], [], [], [], []
        again = batch.get("again", [False] * len(batch["part"]))
        for part, once_more in zip(batch["part"], again, strict=True):
            counts, reason = self._try(int(part), bool(once_more))
            done.append(counts)
            failed.append(one_line(reason))
            well.append(bool(reason) and self._is_well)
            hung.append(bool(reason) and self._has_hung)
            sick.append(bool(reason) and self._is_sick)
        columns: dict[str, Any] = {
            name: np.array([getattr(counts, name) for counts in done])
            for name in ("rows", "errors", "images", "seconds")
        }
        columns |= {"failed": np.array(failed), "well": np.array(well)}
        columns |= {"hung": np.array(hung), "sick": np.array(sick)}
        return {"part": batch["part"], **columns}

    def _try(self, part: int, again: bool) -> tuple[_Counts, str]:
        """What was done of a part, and why it could not be done."""
        try:
            self._is_well = self._is_sick = self._has_hung = False
            if self._job.halted():
                return _Counts(), NOT_TRIED
            if self._failed:
                self._leave()
            if self._refused:
                raise EngineError(self._refused)
            return self._part(part, again), ""
        except HungError as error:
            self._has_hung = True
            return _Counts(), _reason(error)
        except Exception as error:
            self._is_well = isinstance(error, ItemError)
            self._failed = isinstance(error, EngineError) and not self._is_well
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

        with self._journal(part) as journal, self._watch.on():
            self._begin(journal)
            start = time.perf_counter()
            rows = list(self._rows(tasks, journal))
            seconds = time.perf_counter() - start
            has_forms = self._answerer.form is not None
            self._job.write_answers(part, answered + rows, self._about, has_forms)
        errors = sum(row["error"] is not None for row in rows)
        return _Counts(len(rows), errors, len(tasks), seconds)

    def _begin(self, journal: Journal) -> None:
        """Opens the model, where it is not open.

        Raises:
            HungError: Where the worker before this one hung at this part. Where it was the second
                that hung at the same image, the image is given up instead.
            EngineError: Where the model cannot be opened.
        """
        hang = journal.hang
        if hang and hang.is_sick:
            self._is_sick = True
            raise HungError(hang.said)
        if journal.openings >= _MOST_OPENINGS:
            self._is_sick = True
            raise HungError(f"{journal.openings} workers died while they opened the model")
        if "_answerer" not in vars(self):
            said = "the model did not open and answer about a small picture"
            journal.opening()
            try:
                with self._step(journal, said, opening=True):
                    self._answerer  # noqa: B018
            except Exception as error:
                self._refused = _reason(error)
                raise EngineError(self._refused) from error
            journal.rest()
        if hang and not (hang.image is not None and _given_up(journal, hang.image)):
            self._is_well = True  # it has just answered
            raise HungError(hang.said)

    @contextmanager
    def _step(
        self, journal: Journal, said: str, image: int | None = None, opening: bool = False
    ) -> Iterator[None]:
        """A step of the work; where it takes too long, the process ends.

        Args:
            journal: The part's.
            said: What is said of it where it takes too long, before "within ... s".
            image: The part's image that the engine is at. None: it is at none.
            opening: Whether the model is opened, which may take longer.
        """
        seconds = (_OPENING if opening else 1) * self._limits.seconds
        self._at = journal, Hang(f"{said} within {seconds:g} s", image, is_sick=opening)
        with self._watch.step(seconds):
            yield

    def _late(self) -> None:
        """Ends the process, from another thread; Ray starts another and gives it the part."""
        with suppress(Exception):
            if self._at:
                journal, hang = self._at
                journal.hung(hang)
        with suppress(Exception):
            self._kept.close()
        os.kill(os.getpid(), signal.SIGKILL)

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
            if "_ahead" in vars(self):
                self._ahead.forget()
        journal.close()

    def _rows(self, tasks: Sequence[ImageTask], journal: Journal) -> Iterator[dict[str, Any]]:
        """The rows of all images; the next image is read while the engine works on one.

        Images at which the engine failed earlier come last, when all others have passed.

        Raises:
            ItemError: Where the engine failed at images for the first time, and is well.
            EngineError: Where it is not.
            StorageError: Where no image could be read.
        """
        numbers = sorted(range(len(tasks)), key=lambda number: bool(journal.failures(number)))
        together = journal.is_slow and not any(map(journal.is_suspect, numbers))
        if together:  # where a worker dies, each image is noted by itself from then on
            journal.begin(*numbers)
        spared: EngineError | None = None
        for number, following in zip(numbers, [*numbers[1:], None], strict=True):
            if reason := _given_up(journal, number):
                yield from error_rows(tasks[number], reason)
                continue
            # an image under suspicion is alone, so that the next death is its own or never again
            alone = journal.is_suspect(number) or following is None or journal.is_suspect(following)
            beside = [] if alone or following is None else [following]
            if not together:
                journal.begin(number, *beside)
            self._ahead.begin(tasks[number])
            for other in beside:
                self._ahead.begin(tasks[other])
            try:
                yield from self._judged(tasks[number], number, following is None, journal)
            except ItemError as error:
                spared = spared or error
        if spared:
            raise spared

    def _judged(
        self, task: ImageTask, number: int, is_last: bool, journal: Journal
    ) -> list[dict[str, Any]]:
        """The rows of an image, whose own fault a failure of the engine may be.

        It is where the engine failed at it in two workers, the second of which had done all others
        and a picture of the house just before. It is not known where it failed once.

        Args:
            task: The image.
            number: Its place in the part.
            is_last: Whether no image of the part is left.
            journal: The part's.

        Raises:
            ItemError: Where the engine failed for the first time, and is well.
            EngineError: Where it is not well.
        """
        suspected = bool(journal.failures(number))
        if suspected and not self._engine_is_well(journal):
            raise EngineError("the engine fails at a picture that nothing is wrong with")
        try:
            return self._image(task, number, journal)
        except EngineError as error:
            journal.fail(number, one_line(str(error)))
            is_well = self._engine_is_well(journal)
            if not suspected and is_well:
                raise ItemError(str(error)) from error
            if not suspected:
                raise
            self._failed = not is_well
            if self._failed and not is_last:
                raise
        return error_rows(task, _given_up(journal, number))

    def _engine_is_well(self, journal: Journal) -> bool:
        said = "the engine did not answer about a picture that nothing is wrong with"
        with self._step(journal, said):
            return self._answerer.is_well()

    def _image(self, task: ImageTask, number: int, journal: Journal) -> list[dict[str, Any]]:
        """The rows of one image. Nothing about an image or an expression ends the part.

        Args:
            task: The image.
            number: Its place in the part.
            journal: The part's.

        Raises:
            EngineError: Where the engine fails, which is about neither.
            StorageError: Where no image could be read.
        """
        if task.location is None:
            return error_rows(task, task.error or "no image")
        try:
            name = echoed(task.name)
            with self._step(journal, f"{name} was not read"):  # a storage's fault, perhaps
                decoded = self._ahead.take(task.location)
            said = f"the engine did not answer about {name}"
            with self._step(journal, said, number):
                scene, _ = self._answerer.scene(decoded)
            categories = None
            if self._model.categories:
                categories = [given or "" for given in task.categories]
            answers = self._answerer.each(scene, task.expressions, categories, self._threshold)
            rows = []
            # an answer becomes its row at once: a mask may be large, and expressions many
            for i in range(len(task.expressions)):
                with self._step(journal, said, number):
                    rows.append(row_of(task, i, next(answers)))
            return rows
        except EngineError as error:
            raise EngineError(f"{error} (at {echoed(task.name)})") from error
        except StorageError:
            raise
        except RisError as error:
            return error_rows(task, str(error))
        except Exception as error:
            return error_rows(task, f"internal error: {_reason(error)}")


def _given_up(journal: Journal, number: int) -> str:
    """Why an image of a part is not tried any more; "" where it is."""
    if journal.deaths(number) >= DEATHS:
        return f"given up: {DEATHS} workers died on this image"
    if len(said := journal.failures(number)) >= FAILURES:
        return (
            f"given up: the engine failed at this image alone, in {len(said)} workers: {said[-1]}"
        )
    return ""


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
