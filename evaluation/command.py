"""`ris-eval`: what a bundle, or the PyTorch model, scores.

`ris-eval compare`, what differs between several, is in `compare_command`.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ris.engines.errors import RisError
from ris.evaluation.asking import (
    Asked,
    Opened,
    evaluate_showing,
    open_bundle_to_ask,
    open_reference,
    sample_options,
)
from ris.evaluation.benchmarks import (
    answer_showing,
    benchmark,
    described,
    protocols_asked,
    score_showing,
)
from ris.evaluation.compare_command import compare
from ris.evaluation.metrics import SCENES
from ris.evaluation.predictions import Predictions
from ris.evaluation.run import Evaluation
from ris.evaluation.score_command import print_scored, say_problems, score_answers
from ris.evaluation.tables_command import tables
from ris.runtime.commands.console import (
    DefaultGroup,
    LeftOut,
    RisCommand,
    print_json,
)
from ris.runtime.commands.drawing import draw_options
from ris.runtime.commands.forms import form_option
from ris.runtime.commands.running import Running
from ris.runtime.commands.weight_files import (
    choice_options,
    family_option,
    require_checkpoint,
    require_flag,
    require_no_choice,
    weight_file_options,
)
from ris.runtime.drawn import ONE_DRAW, Draws
from ris.runtime.reference import family_choices

Open = Callable[[], AbstractContextManager[Opened]]
"""Finds the model, which may download it, and opens it: after all that can be checked without."""


@click.group(cls=DefaultGroup)
def main() -> None:
    """Says what a model scores.

    `ris-eval run --help`, and so on, has the options.

    \b
    Examples:
      ris-eval ris-bundle                        one model: the same as ris-eval run ris-bundle
      ris-eval compare fp32-bundle fp16-bundle   several over the same samples, with pictures
      ris-eval score answers.jsonl --data refcoco --root data   any system's answers
      ris-eval tables tables.toml                many systems on many data sets
    """


@main.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@sample_options
@form_option
@draw_options
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    help="A folder for every answer; an evaluation that was stopped goes on from it.",
)
@click.option("--restart", is_flag=True, help="Throw away what --out has.")
@click.option(
    "--pytorch",
    is_flag=True,
    help="Evaluate the PyTorch model of --checkpoint instead of a bundle.",
)
@weight_file_options("--pytorch")
@family_option("--pytorch")
@choice_options(family_choices(), "--pytorch")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def run(
    bundle: str | None,
    asked: Asked,
    running: Running,
    form: str | None,
    draws: Draws,
    out: Path | None,
    restart: bool,
    pytorch: bool,
    files: dict[str, Path | None],
    family: str | None,
    chosen: dict[str, str],
    as_json: bool,
) -> None:
    """Says what BUNDLE scores.

    BUNDLE defaults to $RIS_BUNDLE, then ./ris-bundle, then the built-in demo.

    Scenes are drawn, the same on every machine; their held-out split has things, backgrounds and
    phrasings that training never saw. A published data set is counted as published evaluators do;
    --out then has predictions.jsonl, which ris-eval score counts too.
    docs/reference/evaluation.md says how each one counts.

    \b
    Examples:
      ris-eval ris-bundle --samples 200
      ris-eval ris-bundle --data refcoco --root data --split testA --protocol all --out results
      ris-eval --pytorch --checkpoint checkpoints/demo/model.safetensors
    """
    asked.require_fitting()
    require_flag(files, "--pytorch", pytorch)
    require_checkpoint(files, family)
    if not pytorch:
        require_no_choice(family_choices(), chosen, "--pytorch")
    if restart and out is None:
        raise RisError("--restart throws away what --out has; there is no --out")
    if pytorch:
        if form is not None:
            raise RisError("--form is for a bundle; it does not go with --pytorch")
        _require_no_bundle(bundle, asked, running, draws)

    cache, left = asked.cache(), LeftOut()

    def model() -> AbstractContextManager[Opened]:
        if pytorch:
            return open_reference(files, family, chosen, running)
        return open_bundle_to_ask(running.find_bundle(bundle), running, cache, draws, form)

    ask = _run_published if asked.source.published else _run_own
    ask(asked, model, out, restart, as_json, left)
    if cache is not None:
        click.echo(f"{cache.hits} images were encoded before, {cache.misses} were not", err=True)
    left.finish(
        "questions without an answer count as empty masks"
        if asked.source.published
        else "the figures are of the others"
    )


def _run_own(
    asked: Asked,
    model: Open,
    out: Path | None,
    restart: bool,
    as_json: bool,
    left: LeftOut,
) -> None:
    """Asks scenes or own pictures, and prints the figures."""
    read = asked.source.read(left)
    with model() as opened:
        found = evaluate_showing(asked, read, opened, out, restart, left)
    if as_json:
        about = {"protocol": SCENES.name, "left_out": left.sentences}
        print_json(dataclasses.asdict(found) | about, indent=2)
    else:
        _print(opened.name, found)


def _run_published(
    asked: Asked,
    model: Open,
    out: Path | None,
    restart: bool,
    as_json: bool,
    left: LeftOut,
) -> None:
    """Asks a published data set, and prints what its evaluators count."""
    files = asked.source.files()
    names = protocols_asked(asked.source.data, asked.protocol)
    part = benchmark(asked.source, files, names)
    with _folder(out) as folder:
        with model() as opened:
            path = answer_showing(part, opened, folder, restart, left)
        if not path.stat().st_size:
            raise RisError("nothing could be asked; the reasons are named above")
        # `score` forks: the model and its threads are gone by now
        answers = Predictions(path)
        found = [score_showing(files, part.split, name, answers) for name in names]
    where = described(files, part.split)
    print_scored(found, answers, where, opened.name, as_json, skipped=left.sentences)
    say_problems(found, answers, left)


@contextmanager
def _folder(out: Path | None) -> Iterator[Path]:
    """The folder of the answers, or a temporary one."""
    if out is not None:
        yield out
    else:
        with tempfile.TemporaryDirectory(prefix="ris-eval-") as folder:
            yield Path(folder)


def _require_no_bundle(bundle: str | None, asked: Asked, running: Running, draws: Draws) -> None:
    """Raises RisError for what does not go with --pytorch."""
    if bundle:
        raise RisError("give a bundle or --pytorch, not both")
    if asked.features:
        raise RisError(
            "--features keeps what a bundle's encoders give; it does not go with --pytorch"
        )
    if draws != ONE_DRAW:
        raise RisError("--seed and --draws are for a bundle; they do not go with --pytorch")
    own = Running("auto", running.device, running.threads, None)
    if running != own:
        raise RisError(
            "of the options that say what runs, --device and --threads alone go with --pytorch"
        )


def _print(name: str, found: Evaluation) -> None:
    places = {"image": "the image's own size", "model": "the model's square"}
    where = places.get(found.at, f"{found.at}x{found.at}")
    table = Table(title=name, caption=f"{SCENES.source}; masks compared at {where}")
    columns = ("samples", *SCENES.metrics)
    table.add_column("kind")
    for metric in columns:
        table.add_column(metric, justify="right")
    for kind, scores in found.kinds.items():
        table.add_row(kind, *(_cell(metric, scores) for metric in columns))
    Console(width=110).print(table)

    click.echo("samples: expressions")
    for metric, meaning in SCENES.metrics.items():
        click.echo(f"{metric}: {meaning}")
    if found.mirrored is not None:
        both = found.mirrored
        click.echo(
            f"left and right: {both.pairs} expressions asked with the words swapped too: "
            f"{both.right:.3f} of the answers right (IoU above 0.5), "
            f"{both.moved:.3f} of the masks moved"
        )


def _cell(metric: str, scores: dict[str, float]) -> str:
    """A share with three digits, a number of expressions as it is."""
    if metric not in scores:
        return ""
    return f"{scores[metric]:.0f}" if metric == "samples" else f"{scores[metric]:.3f}"


main.add_command(compare)
main.add_command(score_answers, "score")
main.add_command(tables)
