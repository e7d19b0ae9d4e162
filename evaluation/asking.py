"""What `ris-eval` and `ris-eval compare` share.

That is the options, the model to ask, and the evaluation with its progress.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ris.engines.errors import Skipped, refuse
from ris.evaluation.features import FeatureCache
from ris.evaluation.metrics import PROTOCOLS, Figures
from ris.evaluation.results import ResultsFolder
from ris.evaluation.run import AT, BundleSegmenter, Evaluation, Segmenter, evaluate
from ris.evaluation.sources import SampleSource
from ris.runtime.bundle import MANIFEST
from ris.runtime.commands.console import LeftOut
from ris.runtime.commands.options import Command, add_options
from ris.runtime.commands.running import Running, running_options
from ris.runtime.reference import pytorch_reference, require_pytorch

REPORT_SECONDS = 10
"""Between lines of progress off a terminal."""


@dataclass(frozen=True)
class Asked:
    """What `sample_options` gave: the samples, and how answers are kept and counted."""

    source: SampleSource
    """The samples."""

    at: str
    """Where masks are compared, one of `run.AT`."""

    protocol: str | None
    """How to count, one of `metrics.PROTOCOLS`; None for the usual way of the samples."""

    threshold: float
    """From this no-target probability on an expression counts as refused."""

    features: Path | None
    """The folder of encoded images; None to keep none."""

    features_limit: float
    """The most that this folder may hold, GB."""

    def cache(self) -> FeatureCache | None:
        """The folder of encoded images, where one was asked for.

        Raises:
            RisError: Where it cannot be made.
        """
        if not self.features:
            return None
        return FeatureCache(self.features, int(self.features_limit * 1e9))


# parameters are named like the fields of SampleSource and Asked, which `_take_asked` relies on
_FOLDER = click.Path(exists=True, file_okay=False)
_SAMPLE_OPTIONS = (
    click.option(
        "--data",
        default="scenes",
        show_default=True,
        metavar="NAME",
        help="scenes, refcoco, refcoco+, refcocog, grefcoco, ref-zom, or a .jsonl file.",
    ),
    click.option("--split", help="Default: heldout for scenes, val for data sets."),
    click.option(
        "--samples",
        type=click.IntRange(1),
        default=2000,
        show_default=True,
        help="Scenes: how many expressions.",
    ),
    click.option("--root", type=_FOLDER, help="The data set's folder."),
    click.option("--images", type=_FOLDER, help="The folder of COCO's images."),
    click.option(
        "--at",
        type=click.Choice(AT),
        default="image",
        show_default=True,
        help="Compare masks at the image's own size, at the model's square, or at 480x480.",
    ),
    click.option(
        "--protocol",
        type=click.Choice(list(PROTOCOLS)),
        help="How to count. Default: the benchmark's own way.",
    ),
    click.option(
        "--no-target-threshold",
        "threshold",
        type=click.FloatRange(0, 1),
        default=0.5,
        show_default=True,
        help="From this probability on an expression counts as refused.",
    ),
    click.option(
        "--features",
        type=click.Path(path_type=Path),
        help="Keep encoded images in this folder.",
    ),
    click.option(
        "--features-limit",
        type=click.FloatRange(0),
        default=20.0,
        show_default=True,
        help="The most that folder may hold, GB.",
    ),
)


def sample_options(command: Command) -> Command:
    """Adds the options that say what is asked, how it is counted, and what runs it.

    The command gets the first two as one argument, `asked`, and the last as `running`.
    """

    return add_options(running_options(command), _SAMPLE_OPTIONS, "asked", _take_asked)


def _take_asked(options: dict[str, Any]) -> Asked:
    """What the options of `_SAMPLE_OPTIONS` say; they are removed from `options`."""
    source = SampleSource(**{field.name: options.pop(field.name) for field in fields(SampleSource)})
    others = [field.name for field in fields(Asked) if field.name != "source"]
    return Asked(source, **{name: options.pop(name) for name in others})


@dataclass(frozen=True)
class Opened:
    """A model that can be asked."""

    name: str
    """Its name for people."""

    about: dict[str, Any]
    """What its answers depend on, as JSON."""

    segmenter: Segmenter
    """The model."""


@contextmanager
def open_bundle_to_ask(
    path: Path, running: Running, cache: FeatureCache | None
) -> Iterator[Opened]:
    """A bundle through the runtime; its answers depend on its manifest and the engine."""
    with running.load(path) as model:
        manifest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
        sessions = model.sessions
        ran = sorted({f"{s.engine} {s.version} on {s.device}" for s in sessions.values()})
        if running.compute:
            computes = sorted({f"{stage} {s.precision}" for stage, s in sessions.items()})
            ran.append(f"computing {', '.join(computes)}")
        engine = ", ".join(ran)
        yield Opened(
            name=f"{path.name}, {model.bundle.manifest.precision}, {engine}",
            about={"model": manifest[:32], "engine": engine},
            segmenter=BundleSegmenter(model, cache),
        )


@contextmanager
def open_reference(files: dict[str, Path | None], threads: int | None) -> Iterator[Opened]:
    """The PyTorch model of weight files; its answers depend on the files.

    Raises:
        RisError: Where PyTorch is not installed or the files are not a model's.
    """
    require_pytorch("--pytorch")
    segmenter: Segmenter = pytorch_reference().ReferenceSegmenter(files, threads)
    given = {name: path for name, path in files.items() if path is not None}
    stamps = {name: [str(path.resolve()), path.stat().st_mtime] for name, path in given.items()}
    yield Opened(
        name=f"{', '.join(path.name for path in given.values())}, PyTorch FP32",
        about={"model": stamps, "engine": "PyTorch"},
        segmenter=segmenter,
    )


def evaluate_showing(
    asked: Asked, opened: Opened, out: Path | None, restart: bool = False, skipped: Skipped = refuse
) -> Evaluation:
    """`evaluate`, with its progress on the terminal.

    Args:
        asked: The samples, and how answers are counted.
        opened: The model.
        out: The folder for the answers, of an evaluation that was stopped perhaps; None for none.
        restart: Whether to throw away what the folder has.
        skipped: Gets a sentence for each line, image and expression that cannot be used.

    Raises:
        RisError: Where the samples cannot be read at all, or the folder cannot be written or has
            results of something else; by default in place of leaving something out.
    """
    source = asked.source
    read, total = source.read(skipped)
    folder = None
    if out is not None:
        setup = {"name": opened.name, **opened.about, "at": asked.at, "samples": source.to_dict()}
        folder = ResultsFolder(out, setup, restart)
    done = {image: len(result.answers) for image, result in folder.done.items()} if folder else {}
    if done:
        click.echo(f"{out}: goes on after {sum(done.values())} of {total} expressions", err=True)

    with _EvaluationProgress(total) as progress:
        try:
            return evaluate(
                opened.segmenter,
                source.stream(read, done, skipped, LeftOut.note),
                threshold=asked.threshold,
                at=asked.at,
                protocol=asked.protocol or source.protocol,
                folder=folder,
                report=progress,
                skipped=skipped,
            )
        finally:
            if folder is not None:
                folder.close()


class _EvaluationProgress:
    """Expressions so far and their mean IoU: a bar on a terminal, a line now and then elsewhere."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._last = time.perf_counter()
        console = Console(stderr=True)
        self._terminal = console.is_terminal
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
        )
        self._bar = Progress(*columns, console=console, transient=True, disable=not self._terminal)
        self._task = self._bar.add_task("evaluating", total=total)

    def __enter__(self) -> _EvaluationProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, count: int, figures: Callable[[], Figures]) -> None:
        """`evaluate` calls this after each image."""
        now = time.perf_counter()
        if now - self._last < (1 if self._terminal else REPORT_SECONDS):
            return
        self._last = now
        scores = figures().score("scenes")
        so_far = f"mean IoU {scores['miou']:.3f}" if "miou" in scores else "no targets yet"
        self._bar.update(self._task, completed=count, description=so_far)
        if not self._terminal:
            click.echo(f"{count} of {self._total} expressions, {so_far}", err=True)
