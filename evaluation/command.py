"""`ris-eval`: what a bundle, or the PyTorch model, scores.

`ris-eval compare`, what differs between several, is in `compare_command`.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ris.engines.errors import RisError
from ris.evaluation.answer_command import answer
from ris.evaluation.asking import (
    Asked,
    evaluate_showing,
    open_bundle_to_ask,
    open_reference,
    sample_options,
)
from ris.evaluation.compare_command import compare
from ris.evaluation.metrics import PROTOCOLS
from ris.evaluation.run import Evaluation
from ris.evaluation.score_command import score_answers
from ris.runtime.commands.console import (
    DefaultGroup,
    LeftOut,
    RisCommand,
    find_bundle,
    print_json,
)
from ris.runtime.commands.running import Running
from ris.runtime.commands.weight_files import require_flag, weight_file_options


@click.group(cls=DefaultGroup)
def main() -> None:
    """Says what a model scores.

    `ris-eval run --help` and `ris-eval compare --help` have the options.

    \b
    Examples:
      ris-eval ris-bundle                        one model: the same as ris-eval run ris-bundle
      ris-eval compare fp32-bundle fp16-bundle   several over the same samples, with pictures
      ris-eval score answers.jsonl --data refcoco --root data   any system's answers
    """


@main.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@sample_options
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
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def run(
    bundle: str | None,
    asked: Asked,
    running: Running,
    out: Path | None,
    restart: bool,
    pytorch: bool,
    files: dict[str, Path | None],
    as_json: bool,
) -> None:
    """Says what BUNDLE scores, by kind of expression.

    BUNDLE defaults to $RIS_BUNDLE, then ./ris-bundle, then the built-in demo.

    Scenes are drawn, the same on every machine; their held-out split has things, backgrounds and
    phrasings that training never saw. docs/reference/evaluation.md says how each benchmark counts.

    \b
    Examples:
      ris-eval ris-bundle --samples 200
      ris-eval ris-bundle --data grefcoco --root data --split val --out results
      ris-eval --pytorch --checkpoint checkpoints/demo/model.safetensors
    """
    require_flag(files, "--pytorch", pytorch)
    if restart and out is None:
        raise RisError("--restart throws away what --out has; there is no --out")
    if pytorch:
        _require_no_bundle(bundle, asked, running)

    cache, left = asked.cache(), LeftOut()
    if pytorch:
        model = open_reference(files, running.threads)
    else:
        model = open_bundle_to_ask(find_bundle(bundle), running, cache)
    with model as opened:
        found = evaluate_showing(asked, opened, out, restart, left)

    if cache is not None:
        click.echo(f"{cache.hits} images were encoded before, {cache.misses} were not", err=True)
    if as_json:
        print_json({**dataclasses.asdict(found), "left_out": left.sentences}, indent=2)
    else:
        _print(opened.name, found)
    left.finish("the figures are of the others")


def _require_no_bundle(bundle: str | None, asked: Asked, running: Running) -> None:
    """Raises RisError for what does not go with --pytorch."""
    if bundle:
        raise RisError("give a bundle or --pytorch, not both")
    if asked.features:
        raise RisError(
            "--features keeps what a bundle's encoders give; it does not go with --pytorch"
        )
    if running.chosen:
        raise RisError(
            "--engine, --device and --compute run a bundle; they do not go with --pytorch"
        )


def _print(name: str, found: Evaluation) -> None:
    protocol = PROTOCOLS[found.protocol]
    places = {"image": "the image's own size", "model": "the model's square"}
    where = places.get(found.at, f"{found.at}x{found.at}")
    table = Table(title=name, caption=f"{protocol.source}; masks compared at {where}")
    table.add_column("kind")
    for metric in protocol.metrics:
        table.add_column(metric, justify="right")
    for kind, scores in found.kinds.items():
        table.add_row(kind, *(_cell(metric, scores) for metric in protocol.metrics))
    Console(width=110).print(table)

    for metric, meaning in protocol.metrics.items():
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
main.add_command(answer)
main.add_command(score_answers, "score")
