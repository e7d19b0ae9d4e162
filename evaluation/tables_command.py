"""`ris-eval tables`: several systems on several benchmarks, beside what is published."""

from __future__ import annotations

from pathlib import Path

import click

from ris.data.datasets.refer_files import ReferFiles
from ris.engines.errors import RisError
from ris.engines.text import one_line
from ris.evaluation.asking import open_bundle_to_ask
from ris.evaluation.benchmarks import answer_showing, benchmark
from ris.evaluation.kept import dependencies, kept_answers, note_asked
from ris.evaluation.plots import require_matplotlib
from ris.evaluation.sources import SampleSource
from ris.evaluation.table_pages import write_tables
from ris.evaluation.table_specs import Part, read_spec
from ris.evaluation.tables import TableMaker
from ris.runtime.commands.console import LeftOut, RisCommand, disk_errors
from ris.runtime.commands.running import Running, running_options


@click.command(cls=RisCommand)
@click.argument("spec", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("ris-tables"),
    show_default=True,
    help="The folder for tables.md, .csv, .json and .html, and for what is kept.",
)
@click.option("--restart", is_flag=True, help="Ask the bundles anew.")
@running_options
def tables(spec: Path, out: Path, restart: bool, running: Running) -> None:
    """Makes the tables that SPEC describes: bundles and files of answers, beside published figures.

    SPEC is a TOML file; docs/reference/tables.md has the form, and examples/supplement.toml has the
    tables of the model's paper. Bundles are asked first. Answers and counts are kept in --out, so
    that the same command goes on after a stop. What is missing is said cell by cell; then the
    command ends with 2.

    \b
    Examples:
      ris-eval tables examples/supplement.toml --out tables
    """
    wanted = read_spec(spec)
    if wanted.histograms:
        require_matplotlib()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)
    left, begun = LeftOut(), set[Path]()

    def _ask(bundle: Path, part: Part, files: ReferFiles, folder: Path) -> Path:
        source = SampleSource(
            data=part.data,
            split=part.split,
            root=str(wanted.root),
            images=str(wanted.images) if wanted.images else None,
            split_by=part.split_by,
        )
        names, needs = [part.protocol], dependencies(bundle, running, source)
        anew = restart and folder not in begun  # evaluators share a folder
        if not anew and (kept := kept_answers(folder, needs, files, part.split, names)):
            return kept
        asked = benchmark(source, files, names)
        click.echo(f"{bundle.name}, {part.name}: asking", err=True)
        with open_bundle_to_ask(bundle, running, None) as opened:
            begun.add(folder)
            path = answer_showing(asked, opened, folder, anew, left)
        note_asked(folder, needs)
        return path

    maker = TableMaker(wanted, out, _ask, lambda sentence: click.echo(sentence, err=True))
    made = [maker.table(one) for one in wanted.tables]
    figures = [maker.histogram(one) for one in wanted.histograms]
    with disk_errors(out):
        files = write_tables(made, figures, out)
    click.echo((out / "tables.md").read_text(encoding="utf-8"))
    click.echo(f"Wrote {', '.join(map(one_line, files))}", err=True)

    cells = [cell for table in made for _, cells in table.rows for cell in cells]
    missing = sum(cell.missing is not None for cell in cells)
    absent = sum(len(figure.missing) for figure in figures)
    if missing or absent:
        raise RisError(
            f"{missing} of {len(cells)} cells and {absent} histograms are missing or not whole; "
            "the tables say why"
        )
