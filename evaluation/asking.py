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

from ris.engines.errors import RisError, Skipped, refuse
from ris.evaluation.features import FeatureCache
from ris.evaluation.metrics import SCENES, Figures
from ris.evaluation.protocols.table import PROTOCOLS
from ris.evaluation.results import ResultsFolder
from ris.evaluation.run import AT, BundleSegmenter, Evaluation, Segmenter, evaluate
from ris.evaluation.sources import SCENE_SAMPLES, Read, SampleSource
from ris.runtime.bundle import MANIFEST, open_bundle
from ris.runtime.commands.console import LeftOut
from ris.runtime.commands.named_files import with_named
from ris.runtime.commands.options import Command, add_options
from ris.runtime.commands.running import Running, running_options
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.runtime.reference import pytorch_reference, require_pytorch

REPORT_SECONDS = 10
"""Between lines of progress off a terminal."""


@dataclass(frozen=True)
class Asked:
    """What `sample_options` gave: the samples, and how answers are kept and counted."""

    source: SampleSource
    """The samples."""

    at: str | None
    """Where the masks of scenes and own pictures are compared, one of `run.AT`; None: the image's
    own size."""

    protocol: str | None
    """The published evaluator that counts a data set, one of `PROTOCOLS`, or "all"; None for the
    usual one."""

    no_target_threshold: float | None
    """Above this no-target probability an expression of scenes and own pictures counts as refused;
    None: 0.5."""

    features: Path | None
    """The folder of encoded images; None to keep none."""

    features_limit: float
    """The most that this folder may hold, GB."""

    def require_fitting(self) -> None:
        """Raises RisError for options that do not go with the samples."""
        if not self.source.published and self.protocol:
            raise RisError(
                "--protocol names a published evaluator; they count data sets, not --data "
                f"{self.source.data}"
            )
        if self.source.published and (self.at or self.no_target_threshold is not None):
            raise RisError(
                "--at and --no-target-threshold are for scenes and your own pictures; a published "
                "evaluator has its own size and its own rule"
            )

    @property
    def threshold(self) -> float:
        """Above this no-target probability an expression counts as refused."""
        return 0.5 if self.no_target_threshold is None else self.no_target_threshold

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
        help=f"Scenes: how many expressions. Default: {SCENE_SAMPLES:,}.",
    ),
    click.option("--split-by", help="Whose splits: umd, google (refcocog). Default: the usual."),
    click.option("--root", type=_FOLDER, help="The data set's folder."),
    click.option("--images", type=_FOLDER, help="The folder of COCO's images."),
    click.option(
        "--at",
        type=click.Choice(AT),
        help="Scenes, your own pictures: compare masks at the image's own size (the default), "
        "at the model's square, or at 480x480.",
    ),
    click.option(
        "--protocol",
        type=click.Choice([*PROTOCOLS, "all"]),
        help="Data sets: whose evaluator counts; all: every one that can. "
        "Default: the data set's usual one.",
    ),
    click.option(
        "--no-target-threshold",
        type=click.FloatRange(0, 1),
        help="Scenes, your own pictures: above this probability an expression counts as refused. "
        "Default: 0.5.",
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


def model_id(bundle: Path) -> str:
    """What tells a bundle from others: the hash of its manifest, which has those of its graphs.

    Raises OSError where the manifest cannot be read.
    """
    return hashlib.sha256((bundle / MANIFEST).read_bytes()).hexdigest()[:32]


@contextmanager
def open_bundle_to_ask(
    path: Path,
    running: Running,
    cache: FeatureCache | None,
    draws: Draws = ONE_DRAW,
    form: str | None = None,
) -> Iterator[Opened]:
    """A bundle through the runtime.

    Its answers depend on its manifest, the engine, the draws and the form.

    Args:
        path: The bundle.
        running: How it runs.
        cache: Encoded images, where they are kept.
        draws: The random numbers, for a model that draws any.
        form: As for `Scene.segment_many`.

    Raises:
        RisError: Where the model draws nothing, and a seed or a number of draws is given, and where
            it has no such form.
    """
    host = open_bundle(path, verify=False).manifest.host  # `load` checks the hashes
    drawn, text = host.drawn, host.text
    draws.check(drawn)
    text.form_named(form)  # raises for an unknown one
    with running.load(path) as model:
        if cache is not None and not model.bundle.wiring.image_stages:
            click.echo(
                "--features keeps nothing: no stage of this model runs once an image", err=True
            )
        sessions = model.sessions
        ran = sorted({f"{s.engine} {s.version} on {s.device}" for s in sessions.values()})
        chosen = model.choice.taken if model.choice else None
        if running.compute or chosen not in (None, "fp32"):
            computes = sorted({f"{stage} {s.precision}" for stage, s in sessions.items()})
            ran.append(f"computing {', '.join(computes)}")
        engine = ", ".join(ran)
        about: dict[str, Any] = {"model": model_id(path), "engine": engine}
        name = path.name
        if drawn:
            about["draws"] = vars(draws.of(drawn))
            name += f", seed {about['draws']['seed']}, draws {about['draws']['count']}"
        if text.forms:
            about["form"] = form or text.form
            name += f", asked as a {about['form']}"
        yield Opened(
            name=f"{name}, {model.bundle.manifest.precision}, {engine}",
            about=about,
            segmenter=BundleSegmenter(model, cache, draws, form),
        )


@contextmanager
def open_reference(
    files: dict[str, Path | None], family: str | None, chosen: dict[str, str], running: Running
) -> Iterator[Opened]:
    """The PyTorch model of weight files.

    Its answers depend on the files, the family, what was chosen of it, and the device.

    Args:
        files: The weight files by their options' names; those that are named are fetched.
        family: The name of the checkpoint's family; None for what its keys say.
        chosen: What was chosen of the family's choices, by field.
        running: The CPU threads and the device; nothing else of it is used.

    Raises:
        RisError: Where PyTorch is not installed, the files are not a model's, the family has no
            such choice, or the device is not there.
    """
    require_pytorch("--pytorch")  # before gigabytes are downloaded
    files = with_named(files)
    segmenter = pytorch_reference().ReferenceSegmenter(
        files, running.threads, running.device, family, chosen
    )
    given = {name: path for name, path in files.items() if path is not None}
    stamps = {name: [str(path.resolve()), path.stat().st_mtime] for name, path in given.items()}
    about: dict[str, Any] = {"model": stamps, "family": segmenter.family}
    if segmenter.chosen:
        about["chosen"] = segmenter.chosen
    where = f" on {segmenter.device}"
    how = "".join(f", {field} {value}" for field, value in segmenter.chosen.items())
    yield Opened(
        name=f"{', '.join(path.name for path in given.values())}, PyTorch FP32{where}{how}",
        about={**about, "engine": f"PyTorch{where}"},
        segmenter=segmenter,
    )


def evaluate_showing(
    asked: Asked,
    read: Read,
    opened: Opened,
    out: Path | None,
    restart: bool = False,
    skipped: Skipped = refuse,
) -> Evaluation:
    """`evaluate` on scenes or own pictures, with its progress on the terminal.

    Args:
        asked: The samples, and how answers are counted.
        read: What the samples' `read` gave.
        opened: The model.
        out: The folder for the answers, of an evaluation that was stopped perhaps; None for none.
        restart: Whether to throw away what the folder has.
        skipped: Gets a sentence for each image and expression that cannot be used.

    Raises:
        RisError: Where the folder cannot be written or has results of something else; by default in
            place of leaving something out.
    """
    source, at = asked.source, asked.at or "image"
    lines, total = read
    folder = None
    if out is not None:
        setup = {"name": opened.name, **opened.about, "at": at, "samples": source.to_dict()}
        folder = ResultsFolder(out, setup, restart)
    done = {image: len(result.answers) for image, result in folder.done.items()} if folder else {}
    if done:
        click.echo(f"{out}: goes on after {sum(done.values())} of {total} expressions", err=True)

    with EvaluationProgress(total) as progress:

        def report(count: int, figures: Callable[[], Figures]) -> None:
            progress(count, lambda: _so_far(figures()))

        try:
            return evaluate(
                opened.segmenter,
                source.stream(lines, done, skipped, LeftOut.note),
                threshold=asked.threshold,
                at=at,
                folder=folder,
                report=report,
                skipped=skipped,
            )
        finally:
            if folder is not None:
                folder.close()


def _so_far(figures: Figures) -> str:
    scores = SCENES.score(figures)
    return f"mean IoU {scores['miou']:.3f}" if "miou" in scores else "no targets yet"


class EvaluationProgress:
    """Expressions so far: a bar on a terminal, a line now and then elsewhere.

    Args:
        total: The number of expressions.
    """

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

    def __enter__(self) -> EvaluationProgress:
        self._bar.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bar.stop()

    def __call__(self, count: int, words: Callable[[], str] = lambda: "") -> None:
        """Shows the number of expressions so far, and words about them."""
        now = time.perf_counter()
        if now - self._last < (1 if self._terminal else REPORT_SECONDS):
            return
        self._last = now
        said = words()
        self._bar.update(self._task, completed=count, description=said or "evaluating")
        if not self._terminal:
            more = f", {said}" if said else ""
            click.echo(f"{count} of {self._total} expressions{more}", err=True)
