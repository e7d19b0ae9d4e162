"""What runs in each actor: one model, which does one part of a batch after the other."""

from __future__ import annotations

import time
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

from ris.engines.errors import ImageError, RisError
from ris.runtime.bundle import MANIFEST, sha256_of
from ris.runtime.model import Segmentation, load
from ris.serving.answering import Answerer
from ris.serving.batch.inputs import ImageTask, Location
from ris.serving.batch.parts import DEATHS, Job
from ris.serving.limits import Limits

_TABLE_BYTES = 1_000_000_000  # of a Parquet row group's image column: it is held in memory


class Worker:
    """A callable for `ray.data.Dataset.map_batches`: numbers of parts in, what became of them
    out.
    """

    def __init__(
        self,
        out: str,
        bundle: str,
        running: dict[str, Any],
        limits: Limits,
        no_target_threshold: float,
    ) -> None:
        """Opens the model. running: what `ris.runtime.load` takes besides the bundle."""
        self._job = Job(Path(out))
        self._model = load(bundle, verify=False, **running)  # the driver has checked the hashes
        self._answerer = Answerer(
            self._model, limits, cached_images=0
        )  # a part has each image once
        self._threshold = no_target_threshold
        self._images = _Images(limits)
        infos = self._model.sessions.values()
        self._about = {
            "bundle_manifest_sha256": sha256_of(Path(bundle) / MANIFEST),
            "engines": ", ".join(sorted({f"{i.engine} {i.version} on {i.device}" for i in infos})),
            "precision": ", ".join(
                sorted({g.precision for g in self._model.bundle.manifest.graphs.values()})
            ),
            "trained": str(self._model.trained).lower(),
        }

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Does each part that has no file yet. seconds: of the work, without reading the plan or
        writing.
        """
        done = [self._part(int(part)) for part in batch["part"]]
        names = ("rows", "errors", "images", "seconds")
        columns: dict[str, Any] = {
            name: np.array([d[i] for d in done]) for i, name in enumerate(names)
        }
        return {"part": batch["part"], **columns}

    def _part(self, part: int) -> tuple[int, int, int, float]:
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
                rows += [
                    _error(task, i, f"given up: {DEATHS} workers died on this image")
                    for i in _indices(task)
                ]
        seconds = time.perf_counter() - start
        self._job.write_answers(part, rows, self._about)
        journal.close()
        return len(rows), sum(row["error"] is not None for row in rows), len(tasks), seconds

    def _image(self, task: ImageTask) -> list[dict[str, Any]]:
        """The rows of one image. Nothing that an image or an expression is like ends the part."""
        if task.location is None:
            return [_error(task, i, task.error or "no image") for i in _indices(task)]
        try:
            scene, _ = self._answerer.scene(self._images.read(task.location))
            categories = (
                [name or "" for name in task.categories] if self._model.categories else None
            )
            answers = self._answerer.ask(scene, task.expressions, categories, self._threshold)
        except RisError as error:
            return [_error(task, i, str(error)) for i in _indices(task)]
        return [
            (
                _answer(task, i, answer)
                if isinstance(answer, Segmentation)
                else _error(task, i, str(answer))
            )
            for i, answer in enumerate(answers)
        ]


def _indices(task: ImageTask) -> range:
    return range(len(task.rows))


def _base(task: ImageTask, i: int) -> dict[str, Any]:
    return {"row": task.rows[i], "image": task.name, "expression": task.expressions[i]}


def _error(task: ImageTask, i: int, reason: str) -> dict[str, Any]:
    return {**_base(task, i), "error": reason}


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
    """Reads images' bytes, and keeps the last row group of a table, whose rows come one after the
    other.
    """

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._groups: OrderedDict[tuple[str, int], list[Any]] = OrderedDict()

    def read(self, location: Location) -> bytes:
        """The bytes of an image file. Raises ImageError, which names the file, and LimitError."""
        path = Path(location.file)
        try:
            if location.row is not None:
                return self._cell(path, location.row)
            if not path.is_file():  # never a device or a pipe, which would not end
                raise ImageError(f"{path}: no such image file")
            size = path.stat().st_size if location.size is None else location.size
            with path.open("rb") as file:
                file.seek(location.offset or 0)
                return file.read(min(size, self._limits.image_bytes + 1))
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror or error}") from None

    def _cell(self, path: Path, row: int) -> bytes:
        with pq.ParquetFile(path) as table:
            group, first = 0, 0
            while row >= first + table.metadata.row_group(group).num_rows:
                first += table.metadata.row_group(group).num_rows
                group += 1
            key = (str(path), group)
            if key not in self._groups:
                about = table.metadata.row_group(group)
                size = sum(
                    about.column(i).total_uncompressed_size
                    for i in range(about.num_columns)
                    if about.column(i).path_in_schema.split(".")[0] == "image"
                )
                if size > _TABLE_BYTES:
                    raise ImageError(
                        f"{path}: its row groups have {size / 1e9:.1f} GB of images; write smaller"
                        " ones"
                    )
                self._groups.clear()
                self._groups[key] = table.read_row_group(group, columns=["image"])[
                    "image"
                ].to_pylist()
        cell = self._groups[key][row - first]
        data = cell.get("bytes") if isinstance(cell, dict) else cell
        if not isinstance(data, bytes):
            raise ImageError(f"{path}, row {row} has no image bytes")
        return data
