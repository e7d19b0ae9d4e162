"""`ris-eval score`: what a file of any system's answers scores under the published evaluators."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ris.data.datasets.refer_files import DATASETS, read_files
from ris.evaluation.benchmarks import described, protocols_asked, score_showing, where_compared
from ris.evaluation.predictions import Key, Predictions
from ris.evaluation.problems import problems, references_of
from ris.evaluation.protocols.counting import LIMITS
from ris.evaluation.protocols.table import PROTOCOLS
from ris.evaluation.scoring import Scored, rules_of
from ris.runtime.commands.console import LeftOut, RisCommand, print_json

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)

SIDE_BY_SIDE = {
    "overall IoU": ("oIoU", "cIoU"),
    "mean IoU": ("mIoU",),
    "gIoU": ("gIoU",),
    **{f"Pr@{x}": (f"Pr@{x}", f"Pr@{x * 100:.0f}", f"precision@{x}") for x in LIMITS},
    "N-acc": ("N_acc",),
    "T-acc": ("T_acc",),
    "Acc (no target)": ("acc", "gres_acc"),
    "expressions": ("count",),
}
"""A row of the table -> the names that the evaluators give the figure."""


@click.command(cls=RisCommand)
@click.argument("predictions", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data", type=click.Choice(list(DATASETS)), required=True, help="The data set.")
@click.option("--root", type=_FOLDER, required=True, help="The folder of the data set's files.")
@click.option("--split", default="val", show_default=True, help="As the authors name it.")
@click.option("--split-by", help="Whose splits: umd or google for refcocog. Default: the usual.")
@click.option(
    "--protocol",
    type=click.Choice([*PROTOCOLS, "all"]),
    help="Whose evaluator counts; all: every one that can. Default: the data set's usual one.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures, unrounded, as JSON.")
def score_answers(
    predictions: Path,
    data: str,
    root: Path,
    split: str,
    split_by: str | None,
    protocol: str | None,
    as_json: bool,
) -> None:
    """Says what PREDICTIONS score, as a published evaluator counts them.

    PREDICTIONS is a .jsonl file with one answer a line, or COCO's results in a .json file;
    docs/reference/evaluation.md has the form. Answers are found by the data set's own ids. A
    question without an answer counts as an empty mask; it is named, and the command ends with 2.

    \b
    Examples:
      ris-eval score rela.jsonl --data grefcoco --root data --split testA
      ris-eval score lisa.jsonl --data refcocog --root data --split-by umd --protocol all
    """
    files = read_files(root, data, split_by)
    answers = Predictions(predictions)
    names = protocols_asked(data, protocol)
    found = [score_showing(files, split, name, answers) for name in names]
    print_scored(found, answers, described(files, split), predictions.name, as_json)
    left_out = LeftOut()
    say_problems(found, answers, left_out)
    left_out.finish(f"{len(found[0].questions)} questions are counted all the same")


def print_scored(
    found: Sequence[Scored],
    answers: Predictions,
    where: dict[str, Any],
    title: str,
    as_json: bool,
    **more: Any,
) -> None:
    """Prints what answers score, as a table or as JSON.

    Args:
        found: One for each evaluator; of a single one, JSON has its figures at the top.
        answers: The file.
        where: What `described` gave.
        title: Whose answers they are, for the table.
        as_json: Whether to print JSON.
        more: Further fields of the JSON.
    """
    data = where["data"]
    if as_json:
        each = {one.protocol: to_json(one, data, answers.doubled) for one in found}
        shown = each[found[0].protocol] if len(each) == 1 else {"protocols": each}
        print_json(where | shown | more)
    else:
        print_side_by_side(found, data, f"{title}: {', '.join(where.values())}")


def say_problems(found: Sequence[Scored], answers: Predictions, left_out: LeftOut) -> None:
    """Names what the loaders leave out, and what is wrong with the answers."""
    for one in found:
        dropped = [number for number in one.left_out if number not in one.stops]
        if dropped:
            left_out.note(f"{one.protocol} leaves out {references_of(one, dropped)}")
        if one.stops:
            left_out(f"{one.protocol} would stop at {references_of(one, sorted(one.stops))}")
        if one.other_words:
            left_out.note(
                f"{one.other_words} of the answers that {one.protocol} counts are to other words "
                "than it asks"
            )
    for sentence in problems(found, answers.doubled):
        left_out(sentence)


def to_json(found: Scored, data: str, doubled: Sequence[Key] = ()) -> dict[str, Any]:
    """What was found under one evaluator; `metrics` unrounded under the evaluator's own names."""
    side = rules_of(found.protocol, data).truth.side
    return {
        "protocol": found.protocol,
        "source": PROTOCOLS[found.protocol].source,
        "compared_at": side if isinstance(side, int) else "image",
        "metrics": found.metrics,
        "printed": found.printed,
        "left_out": {str(number): reason for number, reason in found.left_out.items()},
        "stops_at": sorted(found.stops),
        "missing": [list(ids) for ids in found.missing],
        "doubled": [list(key[:2]) for key in doubled],
        "unreadable": list(found.unreadable),
    }


def print_side_by_side(found: Sequence[Scored], data: str, title: str) -> None:
    """A table with a column for each evaluator, and what each of them is."""
    table = Table(title=title)
    table.add_column("")
    for one in found:
        table.add_column(one.protocol, justify="right")
    for row, names in SIDE_BY_SIDE.items():
        cells = [_cell(one, names) for one in found]
        if any(cells):
            table.add_row(row, *cells)
    Console(width=110).print(table)
    for one in found:
        where = where_compared(one.protocol, data)
        click.echo(f"{one.protocol}: {PROTOCOLS[one.protocol].source}, masks compared at {where}")


def _cell(found: Scored, names: Sequence[str]) -> str:
    """A figure as it is usually printed: percent with two decimals, shares with four."""
    value = next((found.metrics[name] for name in names if name in found.metrics), None)
    counted = "gres_acc" not in names or "zero_count" in found.metrics  # else it is always 0
    if value is None or not counted:
        return ""
    if "count" in names:
        return f"{value:.0f}"
    return f"{value:.4f}" if names[0] in ("N_acc", "T_acc") else f"{value:.2f}"
