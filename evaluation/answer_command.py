"""`ris-eval answer`: a bundle's answers to a data set, as the file that `ris-eval score` counts."""

from __future__ import annotations

from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from ris.data.datasets.refer_files import DATASETS, read_files
from ris.engines.errors import RisError
from ris.evaluation.answers import answer_all, to_ask
from ris.evaluation.run import BundleSegmenter
from ris.runtime.commands.console import LeftOut, RisCommand, disk_errors
from ris.runtime.commands.running import Running, running_options

_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)


@click.command(cls=RisCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--data", type=click.Choice(list(DATASETS)), required=True, help="The data set.")
@click.option("--root", type=_FOLDER, required=True, help="The folder of the data set's files.")
@click.option("--split", default="val", show_default=True, help="As the authors name it.")
@click.option("--split-by", help="Whose splits: umd or google for refcocog. Default: the usual.")
@click.option("--images", type=_FOLDER, help="The folder of COCO's images.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    required=True,
    help="The .jsonl file. Where it is there, the answers that it lacks are added.",
)
@running_options
def answer(
    bundle: Path,
    data: str,
    root: Path,
    split: str,
    split_by: str | None,
    images: Path | None,
    out: Path,
    running: Running,
) -> None:
    """Asks BUNDLE all that the published evaluators ask, and writes the answers.

    The masks are written at every size at which one of them compares. A run that was stopped goes
    on when the same command is given again; give each bundle a file of its own.

    \b
    Examples:
      ris-eval answer ris-bundle --data refcoco --root data --out ours.jsonl
      ris-eval score ours.jsonl --data refcoco --root data --protocol all
    """
    files = read_files(root, data, split_by, images)
    asked = to_ask(files, split)
    if not asked:
        raise RisError(f"{data} has nothing to be asked in the split {split!r}")

    left_out, console = LeftOut(), Console(stderr=True)
    columns = (TextColumn("answers"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    shows = console.is_terminal
    with (
        running.load(bundle) as model,
        disk_errors(out),
        Progress(*columns, console=console, transient=True, disable=not shows) as bar,
    ):
        task = bar.add_task("answers", total=None)
        answer_all(
            BundleSegmenter(model),
            files,
            asked,
            out,
            lambda done, total: bar.update(task, completed=done, total=total),
            left_out,
        )
    click.echo(f"Wrote {out}\nNext:\n  ris-eval score {out} --data {data} --root {root}")
    left_out.finish("the others are answered")
