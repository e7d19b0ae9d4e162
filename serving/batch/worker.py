"""What runs in each actor: one model, which does one part of a batch after the other."""

from __future__ import annotations

import os
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from ris.engines.base import first_line
from ris.engines.errors import EngineError, ImageError, RisError
from ris.engines.text import echoed, one_line, reason_of, shown
from ris.runtime import Model, Segmentation, load
from ris.runtime.bundle import MANIFEST, sha256_of
from ris.serving.answering import Answerer
from ris.serving.batch.asked import Location
from ris.serving.batch.inputs import ImageTask
from ris.serving.batch.parts import DEATHS, Job
from ris.serving.limits import Limits

_TABLE_BYTES = 1_000_000_000  # of a Parquet row group's image column: it is held in memory


class Worker:
    """A callable for `ray.data.Dataset.map_batches`: numbers of parts in, their counts out."""

    def __init__(
        self,
        out: str,
        bundle: str,
        running: dict[str, Any],
        limits: Limits,
        no_target_threshold: float,
    ) -> None:
        """Opens the model; where that fails, every part says why.

        Args:
            out: The batch's folder.
            bundle: The bundle's folder.
            running: What `ris.runtime.load` takes besides the bundle.
            limits: What an image may be.
            no_target_threshold: Above this no-target probability the mask is empty.
        """
        self._job = Job(Path(out))
        self._threshold = no_target_threshold
        self._images = _Images(limits)
        self._refused = ""
        try:
            self._model = load(bundle, verify=False, **running)  # the driver has checked the hashes
        except RisError as error:
            self._refused = str(error)
            return
        # a part has each image once: nothing to keep
        self._answerer = Answerer(self._model, limits, cached_images=0)
        self._about = _about(self._model, Path(bundle))

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Does each part that has no file yet, and returns columns.

        part, rows, errors, images: numbers; seconds: of the work, without reading the plan or
        writing; failed: why the part could not be done, "" where it was. Ray hides what a worker
        raises, so nothing is raised here.
        """
        done, failed = [], []
        for part in batch["part"]:
            counts, reason = (0, 0, 0, 0.0), self._refused
            try:
                counts = counts if reason else self._part(int(part))
            except Exception as error:
                reason = first_line(error) if isinstance(error, RisError) else _unforeseen(error)
            done.append(counts)
            failed.append(one_line(reason))
        names = ("rows", "errors", "images", "seconds")
        columns: dict[str, Any] = {
            name: np.array([counts[i] for counts in done]) for i, name in enumerate(names)
        }
        return {"part": batch["part"], **columns, "failed": np.array(failed)}

    def _part(self, part: int) -> tuple[int, int, int, float]:
        """Rows, errors, images and seconds of a part."""
        tasks = self._job.tasks(part)
        if self._job.file(part).exists():  # a worker that was thought dead has finished it
            return (*self._job.counts(part), len(tasks), 0.0)

        journal = self._job.journal(part)
        start = time.perf_counter()
        rows: list[dict[str, Any]] = []
        for number, task in enumerate(tasks):
            if journal.begin(number):
                rows += self._image(task)
            else:
                rows += _errors(task, f"given up: {DEATHS} workers died on this image")
        seconds = time.perf_counter() - start

        self._job.write_answers(part, rows, self._about)
        journal.close()
        return len(rows), sum(row["error"] is not None for row in rows), len(tasks), seconds

    def _image(self, task: ImageTask) -> list[dict[str, Any]]:
        """The rows of one image. Nothing about an image or an expression ends the part.

        Raises EngineError, which is about neither.
        """
        if task.location is None:
            return _errors(task, task.error or "no image")
        try:
            scene, _ = self._answerer.scene(self._images.read(task.location))
            categories = None
            if self._model.categories:
                categories = [name or "" for name in task.categories]
            answers = self._answerer.ask(scene, task.expressions, categories, self._threshold)
        except EngineError:
            raise
        except RisError as error:
            return _errors(task, str(error))
        except Exception as error:
            return _errors(task, f"internal error: {_unforeseen(error)}")
        return [
            _answer(task, i, answer)
            if isinstance(answer, Segmentation)
            else _error(task, i, str(answer))
            for i, answer in enumerate(answers)
        ]


def _unforeseen(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def _about(model: Model, bundle: Path) -> dict[str, str]:
    """What made the answers, for the metadata of their files."""
    infos = model.sessions.values()
    engines = {f"{info.engine} {info.version} on {info.device}" for info in infos}
    precisions = {graph.precision for graph in model.bundle.manifest.graphs.values()}
    return {
        "bundle_manifest_sha256": sha256_of(bundle / MANIFEST),
        "engines": ", ".join(sorted(engines)),
        "precision": ", ".join(sorted(precisions)),
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


class _Images:
    """Reads images' bytes, and keeps a table's last row group, whose rows follow each other."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._groups: OrderedDict[tuple[str, int], list[Any]] = OrderedDict()

    def read(self, location: Location) -> bytes:
        """The bytes of an image file, cut off just beyond the limit.

        Raises ImageError, which names the file.
        """
        path, name = Path(location.file), echoed(location.file)
        try:
            if location.row is not None:
                return self._cell(path, location.row)
            if not os.path.isfile(path):  # never a device or a pipe, which would not end
                raise ImageError(f"{name}: no such image file")
            size = path.stat().st_size if location.size is None else location.size
            with path.open("rb") as file:
                file.seek(location.offset or 0)
                return file.read(min(size, self._limits.image_bytes + 1))
        except (OSError, pa.ArrowException, UnicodeDecodeError) as error:
            raise ImageError(f"{name} cannot be read: {reason_of(error)}") from None
        except IndexError:
            raise ImageError(f"{name} has fewer rows than it says; write it again") from None

    def _cell(self, path: Path, row: int) -> bytes:
        """The image in a row of a table."""
        with pq.ParquetFile(path) as table:
            group, first = 0, 0
            while row >= first + table.metadata.row_group(group).num_rows:
                first += table.metadata.row_group(group).num_rows
                group += 1

            key = (str(path), group)
            if key not in self._groups:
                self._check_size(path, table.metadata.row_group(group))
                self._groups.clear()
                images = table.read_row_group(group, columns=["image"])["image"]
                self._groups[key] = images.to_pylist()

        cell = self._groups[key][row - first]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise ImageError(f"{path}, row {row} has no image bytes")
        return data

    @staticmethod
    def _check_size(path: Path, group: Any) -> None:
        """Raises ImageError where a row group's images are too large to hold in memory."""
        columns = [group.column(i) for i in range(group.num_columns)]
        size = sum(
            column.total_uncompressed_size
            for column in columns
            if column.path_in_schema.split(".")[0] == "image"
        )
        if size > _TABLE_BYTES:
            raise ImageError(
                f"{path}: its row groups have {size / 1e9:.1f} GB of images; write smaller ones"
            )
