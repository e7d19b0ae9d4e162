"""A model on a published data set: everything asked, then counted by the published evaluators.

The answers are a file of the form that any system's answers have (`predictions`), so what a model
scores is what `ris-eval score` says of its file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ris.data.datasets.polygons import coco_masks
from ris.data.datasets.refer_files import ReferFiles, splits_of
from ris.engines.errors import RisError, Skipped, refuse
from ris.evaluation.answers import ToAsk, answer_all, to_ask
from ris.evaluation.asking import EvaluationProgress, Opened
from ris.evaluation.predictions import Predictions
from ris.evaluation.protocols.table import DEFAULTS
from ris.evaluation.results import PREDICTIONS, start_folder
from ris.evaluation.scoring import Scored, protocols_of, rules_of, score
from ris.evaluation.sources import SampleSource


def protocols_asked(dataset: str, protocol: str | None) -> list[str]:
    """The evaluators that a `--protocol` means for a data set.

    Raises:
        RisError: Where it does not count the data set.
    """
    if protocol == "all":
        return protocols_of(dataset)
    name = protocol or DEFAULTS[dataset]
    rules_of(name, dataset)
    return [name]


@dataclass(frozen=True)
class Benchmark:
    """A split of a data set with all that evaluators ask of it; `benchmark` makes it."""

    source: SampleSource
    """What was asked for."""

    files: ReferFiles
    """The data set."""

    split: str
    """As its authors name it."""

    images: tuple[ToAsk, ...]
    """What is asked, image by image."""


def benchmark(source: SampleSource, files: ReferFiles, names: Sequence[str]) -> Benchmark:
    """What evaluators ask of a data set, once it is sure that its answers can be counted.

    It needs no model: what is wrong is said before one is opened, and before hours of asking.

    Args:
        source: What is asked for.
        files: Its files.
        names: The evaluators whose texts are asked.

    Raises:
        RisError: Where the split is not there, or what answers are counted with is not installed.
    """
    coco_masks()
    split = source.split or "val"
    images = tuple(to_ask(files, split, names))
    if not images:
        raise RisError(f"{files.name} has no split {split!r}; it has {', '.join(splits_of(files))}")
    return Benchmark(source, files, split, images)


def answer_showing(
    asked: Benchmark,
    opened: Opened,
    folder: Path,
    restart: bool = False,
    skipped: Skipped = refuse,
) -> Path:
    """Asks all that evaluators ask, with progress; returns the file of answers.

    Args:
        asked: What is asked.
        opened: The model.
        folder: Where the answers are kept; those of a stopped run are gone on from.
        restart: Whether to throw away what the folder has.
        skipped: Gets a sentence for each image and expression that cannot be asked.

    Raises:
        RisError: Where the folder cannot be written or has answers of something else; by default in
            place of leaving something out.
    """
    files, images = asked.files, asked.images
    samples = asked.source.to_dict() | {"split": asked.split, "split_by": files.split_by}
    start_folder(folder, {"name": opened.name, **opened.about, "samples": samples}, restart)
    path = folder / PREDICTIONS

    def begun(done: int, total: int) -> None:
        click.echo(f"{folder}: goes on after {done} of {total} expressions", err=True)

    with EvaluationProgress(sum(len(image.questions) for image in images)) as progress:
        answer_all(opened.segmenter, files, images, path, progress, begun, skipped)
    return path


def score_showing(files: ReferFiles, split: str, name: str, answers: Predictions) -> Scored:
    """`score`, with its progress on a terminal.

    Args:
        files: The data set.
        split: As its authors name it.
        name: The evaluator, one of `PROTOCOLS`.
        answers: What is counted.

    Raises:
        RisError: As `score` does.
    """
    console = Console(stderr=True)
    columns = (TextColumn(name), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    # no thread that refreshes it: `score` forks
    with Progress(
        *columns,
        console=console,
        transient=True,
        disable=not console.is_terminal,
        auto_refresh=False,
    ) as bar:
        task = bar.add_task(name, total=None)

        def report(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total, refresh=True)

        return score(files, split, name, answers, report)


def where_compared(name: str, dataset: str) -> str:
    """The size at which an evaluator compares masks, for people."""
    side = rules_of(name, dataset).truth.side
    return f"{side}x{side}" if isinstance(side, int) else "the image's own size"


def described(files: ReferFiles, split: str) -> dict[str, Any]:
    """Which part of a data set was asked, as JSON."""
    return {"data": files.name, "split_by": files.split_by, "split": split}
