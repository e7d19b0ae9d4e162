"""What `ris-eval` and `ris-eval compare` share: options, the model to ask, the evaluation and its
progress.
"""

from __future__ import annotations

import functools
import hashlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from ris.evaluation.features import FeatureCache
from ris.evaluation.metrics import PROTOCOLS, Figures
from ris.evaluation.results import ResultsFolder
from ris.evaluation.run import AT, BundleSegmenter, Evaluation, Segmenter, evaluate
from ris.evaluation.sources import SampleSource
from ris.runtime.bundle import MANIFEST
from ris.runtime.commands.running import Running, running_options
from ris.runtime.reference import pytorch_reference, require_pytorch

REPORT_SECONDS = 10  # between progress lines off a terminal
Opened = tuple[str, dict[str, Any], Segmenter]
"""A model's name for people, what its answers depend on, and the model."""


@dataclass(frozen=True)
class Asked:
    """What `sample_options` gave: the samples, and how answers are kept and counted. protocol: None
    for the usual one of the data; threshold: from this no-target probability on an expression
    counts as refused."""

    source: SampleSource
    at: str
    protocol: str | None
    threshold: float
    features: Path | None
    features_limit: float

    def cache(self) -> FeatureCache | None:
        """The folder of encoded images, where one was asked for. Raises RisError."""
        return (
            FeatureCache(self.features, int(self.features_limit * 1e9)) if self.features else None
        )


def sample_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """What is asked, how it is counted (the command gets them as one argument, `asked`), and what
    runs it (`running`)."""
    folder = click.Path(exists=True, file_okay=False)
    options = (
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
        click.option("--root", type=folder, help="The data set's folder."),
        click.option("--images", type=folder, help="The folder of COCO's images."),
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

    @functools.wraps(command)
    def collected(
        *args: Any,
        data: str,
        split: str | None,
        samples: int,
        root: str | None,
        images: str | None,
        at: str,
        protocol: str | None,
        threshold: float,
        features: Path | None,
        features_limit: float,
        **others: Any,
    ) -> Any:
        source = SampleSource(data, split, samples, root, images)
        return command(
            *args, asked=Asked(source, at, protocol, threshold, features, features_limit), **others
        )

    result: Callable[..., Any] = running_options(collected)
    for option in reversed(options):
        result = option(result)
    return result


@contextmanager
def open_bundle_to_ask(
    path: Path, running: Running, cache: FeatureCache | None
) -> Iterator[Opened]:
    """A bundle through the runtime; what its answers depend on are its manifest and the engine."""
    with running.load(path) as model:
        manifest = hashlib.sha256((path / MANIFEST).read_bytes()).hexdigest()
        ran = sorted(
            {f"{info.engine} {info.version} on {info.device}" for info in model.sessions.values()}
        )
        if running.compute:
            computes = sorted(
                {f"{stage} {info.precision}" for stage, info in model.sessions.items()}
            )
            ran.append(f"computing {', '.join(computes)}")
        about = {"model": manifest[:32], "engine": ", ".join(ran)}
        name = f"{path.name}, {model.bundle.manifest.precision}, {about['engine']}"
        yield name, about, BundleSegmenter(model, cache)


@contextmanager
def open_reference(files: dict[str, Path | None], threads: int | None) -> Iterator[Opened]:
    """The PyTorch model of weight files; what its answers depend on are the files."""
    require_pytorch("--pytorch")
    segmenter: Segmenter = pytorch_reference().ReferenceSegmenter(files, threads)
    given = {name: path for name, path in files.items() if path is not None}
    about = {
        "model": {name: [str(p.resolve()), p.stat().st_mtime] for name, p in given.items()},
        "engine": "PyTorch",
    }
    yield f"{', '.join(p.name for p in given.values())}, PyTorch FP32", about, segmenter


def evaluate_showing(
    asked: Asked, opened: Opened, out: Path | None, restart: bool = False
) -> Evaluation:
    """`evaluate` with a progress bar, into the folder `out` where one is given."""
    name, about, segmenter = opened
    source = asked.source
    read, total = source.read()
    folder = None
    if out is not None:
        folder = ResultsFolder(
            out, {"name": name, **about, "at": asked.at, "samples": source.to_dict()}, restart
        )
    done = {image: len(result.answers) for image, result in folder.done.items()} if folder else {}
    if done:
        click.echo(f"{out}: goes on after {sum(done.values())} of {total} expressions", err=True)
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    last = time.perf_counter()
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("evaluating", total=total)

        def report(count: int, figures: Callable[[], Figures]) -> None:
            nonlocal last
            if time.perf_counter() - last < (1 if console.is_terminal else REPORT_SECONDS):
                return
            last = time.perf_counter()
            scores = figures().score("scenes")
            so_far = f"mean IoU {scores['miou']:.3f}" if "miou" in scores else "no targets yet"
            bar.update(task, completed=count, description=so_far)
            if not console.is_terminal:
                click.echo(f"{count} of {total} expressions, {so_far}", err=True)

        try:
            return evaluate(
                segmenter,
                source.stream(read, done),
                threshold=asked.threshold,
                at=asked.at,
                protocol=asked.protocol or source.protocol,
                folder=folder,
                report=report,
            )
        finally:
            if folder is not None:
                folder.close()
