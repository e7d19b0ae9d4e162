"""`ris-eval compare`, thin over `compare_runs` and `write_report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ris.data.scenes import make_scene
from ris.engines.errors import RisError
from ris.engines.text import one_line
from ris.evaluation.asking import (
    Asked,
    Opened,
    evaluate_showing,
    open_bundle_to_ask,
    sample_options,
)
from ris.evaluation.benchmarks import answer_showing, benchmark, described, protocols_asked
from ris.evaluation.compare import Comparison, Run, compare_runs, require_same_samples
from ris.evaluation.compared_runs import published_counting, run_of_answers, run_of_results
from ris.evaluation.metrics import SCENES
from ris.evaluation.plots import require_matplotlib
from ris.evaluation.report import Pictures, to_dict, write_report
from ris.evaluation.results import PREDICTIONS, SETUP, read_setup, require_answers_to
from ris.evaluation.sources import SampleSource
from ris.runtime.bundle import MANIFEST, open_bundle
from ris.runtime.commands.console import (
    BundlePath,
    LeftOut,
    RisCommand,
    disk_errors,
    find_bundle,
    print_json,
)
from ris.runtime.commands.running import Running
from ris.runtime.hub.address import is_address
from ris.runtime.image import load_rgb

Ask = Callable[[Opened, Path], None]
"""Gets a model and the folder in which to leave its answers; those of a stopped run are there."""


@click.command(cls=RisCommand)
@click.argument(
    "models",
    nargs=-1,
    required=True,
    type=BundlePath(path_type=Path, exists=True),
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("ris-comparison"),
    show_default=True,
    help="The folder for report.html, report.json and samples.csv.",
)
@click.option("--restart", is_flag=True, help="Throw away the answers that --out has.")
@click.option(
    "--worst",
    type=click.IntRange(0),
    default=12,
    show_default=True,
    help="Disagreements to show.",
)
@sample_options
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def compare(
    models: tuple[Path, ...],
    out: Path,
    restart: bool,
    worst: int,
    asked: Asked,
    running: Running,
    as_json: bool,
) -> None:
    """What differs between MODELS: bundles, folders of `ris-eval --out`, files of answers.

    The first is what the others are measured against.

    Bundles are evaluated on what --data says, or as the first folder was; their answers stay in the
    report's folder, and a comparison that was stopped goes on from there. Results of other engines,
    or of the PyTorch model, come from `ris-eval --out`; files of answers to a data set from
    anywhere.

    \b
    Examples:
      ris-eval compare fp32-bundle fp16-bundle --samples 500
      ris-eval --pytorch --checkpoint model.safetensors --out reference
      ris-eval compare reference fp32-bundle --out report
      ris-eval compare rela.jsonl ris-bundle --data grefcoco --root data --split testA
    """
    if len(models) < 2:
        raise RisError("give two models or more to compare")
    require_matplotlib()
    cache, left = asked.cache(), LeftOut()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)

    asked = _as_in_folders(models, asked)
    asked.require_fitting()
    reader = _Published(asked) if asked.source.published else _Own(asked)

    def begin() -> Callable[[Path, Path], None]:
        into = reader.asking(restart, left)

        def ask(bundle: Path, folder: Path) -> None:
            with open_bundle_to_ask(bundle, running, cache) as opened:
                into(opened, folder)

        return ask

    runs = _runs(models, out / "answers", begin, reader.read)
    for run in runs:
        for sentence in run.left_out:
            left(sentence)
    found = compare_runs(runs, reader.counting)
    found = dataclasses.replace(found, left_out=tuple(left.sentences))
    with disk_errors(out):
        files = write_report(found, out, worst, reader.pictures())

    if as_json:
        print_json(to_dict(found), indent=2)
    else:
        _print(found)
        click.echo(f"Wrote {', '.join(map(one_line, files))}")
    left.finish(reader.left_out)


def _as_in_folders(models: Sequence[Path], given: Asked) -> Asked:
    """`given` with what the first folder was evaluated on, and where its masks were compared.

    Raises RisError where --at says another place.
    """
    folder = next((model for model in models if (model / SETUP).exists()), None)
    if folder is None:
        return given
    setup = read_setup(folder)
    found, at = SampleSource.from_dict(setup["samples"]), setup.get("at")
    asked = dataclasses.replace(given, source=_source(found, given.source))
    if asked.source.published or at is None:
        return asked
    if given.at not in (None, at):
        raise RisError(
            f"{folder} was evaluated with --at {at}, not with --at {given.at}: leave --at out, or "
            "evaluate it again"
        )
    return dataclasses.replace(asked, at=at)


def _source(found: SampleSource, given: SampleSource) -> SampleSource:
    """What a folder was evaluated on, but for what was given; `given` where it is other data.

    A data set may lie elsewhere than it did: its folders are those that are given.
    """
    if given.data == found.data and given.published:
        split, by = given.split or found.split, given.split_by or found.split_by
        return dataclasses.replace(given, split=split, split_by=by)
    if given.data != "scenes":
        return given
    split, samples = given.split or found.split, given.samples or found.samples
    return dataclasses.replace(found, split=split, samples=samples)


def _about(source: SampleSource) -> str:
    """What scenes or own pictures are asked, for people; a .jsonl file may lie elsewhere now."""
    if source.data == "scenes":
        return f"{source.scenes} expressions about {source.scene_split} scenes"
    return "own pictures"


class _Own:
    """Answers to scenes or own pictures."""

    counting = SCENES
    left_out = "the figures are of the others"

    def __init__(self, asked: Asked) -> None:
        self._asked = asked

    def asking(self, restart: bool, left: LeftOut) -> Ask:
        """What evaluates models into folders; the samples are read at once.

        restart: whether to throw away what a folder has. left: gets what cannot be asked.
        """
        read = self._asked.source.read(left)

        def ask(opened: Opened, folder: Path) -> None:
            evaluate_showing(self._asked, read, opened, folder, restart, left)

        return ask

    def read(self, name: str, path: Path) -> Run:
        """The answers of a folder."""
        if path.is_file():
            raise RisError(f"{path} is a file of answers: it needs --data with a data set's name")
        run = run_of_results(path, self._asked.threshold)
        found, wanted = _about(SampleSource.from_dict(run.samples)), _about(self._asked.source)
        if found != wanted:
            raise RisError(f"{path} has answers to {found}, not to {wanted}")
        return run

    def pictures(self) -> Pictures:
        """Finds the pixels of an image by its name in the results; None where they are gone."""
        source = self._asked.source
        if source.data == "scenes":
            split = source.scene_split
            return lambda name: make_scene(int(name.rsplit("-", 1)[1]), split, 256).image
        try:
            read, _ = source.read(lambda sentence: None)
        except RisError as error:
            click.echo(f"The pictures are left out: {error}", err=True)
            return lambda name: None
        assert read is not None
        paths = {image.name: image.path for image in read.images}
        return lambda name: load_rgb(paths[name]) if name in paths else None


class _Published:
    """Answers to a published data set."""

    left_out = "questions without an answer count as empty masks"

    def __init__(self, asked: Asked) -> None:
        self._source, self._files = asked.source, asked.source.files()
        part = described(self._files, asked.source.split or "val")
        names = protocols_asked(asked.source.data, asked.protocol)
        if len(names) > 1:
            raise RisError("a comparison is by one evaluator: give its name as --protocol")
        self._protocol = names[0]
        self._wanted = {name: str(value) for name, value in part.items()}
        self.counting = published_counting(self._protocol, asked.source.data)

    def asking(self, restart: bool, left: LeftOut) -> Ask:
        """What evaluates models into folders; the split is looked for at once.

        restart: whether to throw away what a folder has. left: gets what cannot be asked.
        """
        asked = benchmark(self._source, self._files, [self._protocol])

        def ask(opened: Opened, folder: Path) -> None:
            answer_showing(asked, opened, folder, restart, left)

        return ask

    def read(self, name: str, path: Path) -> Run:
        """The answers of a folder or a file."""
        if path.is_dir():
            require_answers_to(path, self._wanted)
            path = path / PREDICTIONS
        return run_of_answers(name, path, self._source, self._files, self._protocol)

    def pictures(self) -> Pictures:
        """Finds the pixels of an image by its number; None where they are gone."""

        def find(name: str) -> NDArray[np.uint8] | None:
            try:
                return load_rgb(self._files.image_file(int(name)))
            except RisError:
                return None

        return find


def _runs(
    models: Sequence[Path],
    answers: Path,
    begin: Callable[[], Callable[[Path, Path], None]],
    read: Callable[[str, Path], Run],
) -> list[Run]:
    """The answers of each model: a bundle, a folder of `ris-eval --out`, or a file.

    All that is there is read before a bundle is fetched or asked: what is wrong with one model is
    said before another one is asked for hours.

    Args:
        models: Their paths.
        answers: The folder below which bundles' answers are kept.
        begin: Called where there are bundles; gives what takes a bundle and the folder in which to
            leave its answers.
        read: Gets a name and a folder or file of answers.
    """
    runs: dict[int, Run] = {}

    def take(number: int, place: Path) -> None:
        name = place.name if place.is_file() else str(read_setup(place)["name"])
        runs[number] = dataclasses.replace(read(name, place), name=name)
        require_same_samples(_told_apart(runs))

    bundles, there = {}, {}
    for number, model in enumerate(models, 1):
        if is_address(model) or (model / MANIFEST).exists():
            bundles[number] = model
        elif model.is_dir() and not (model / SETUP).exists():
            raise RisError(f"{model} is neither a bundle nor a folder of ris-eval --out")
        else:
            there[number] = model

    for number, model in there.items():
        take(number, model)
    if not bundles:
        return _told_apart(runs)

    ask = begin()
    bundles = {
        number: find_bundle(str(model)) if is_address(model) else model
        for number, model in bundles.items()
    }
    for bundle in bundles.values():
        open_bundle(bundle, verify=False)
    for number, bundle in bundles.items():
        place = answers / f"{number}-{bundle.name}"
        ask(bundle, place)
        take(number, place)
    return _told_apart(runs)


def _told_apart(runs: Mapping[int, Run]) -> list[Run]:
    """Models' runs by their numbers, in order; a name that is there already gets the number."""
    found: list[Run] = []
    for number, run in sorted(runs.items()):
        if run.name in {other.name for other in found}:
            run = dataclasses.replace(run, name=f"{run.name} ({number})")
        found.append(run)
    return found


def _print(found: Comparison) -> None:
    table = Table(
        title=f"{len(found.runs[0].expressions)} expressions, against {found.runs[0].name}"
    )
    for column in ("metric", *(run.name for run in found.runs)):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric in found.counting.metrics:
        value = found.scores[0]["all"].get(metric)
        if value is None:
            continue
        cells = [f"{value:.4f}"]
        for scores, differences in zip(found.scores[1:], found.differences, strict=True):
            own = differences[metric]
            interval = f"[{own.low:+.4f}, {own.high:+.4f}]"
            cells.append(f"{scores['all'][metric]:.4f}  {own.value:+.4f} {interval}")
        table.add_row(metric, *cells)
    Console(width=max(110, 40 * len(found.runs))).print(table)
