"""`ris-eval compare`, thin over `compare_runs` and `write_report`."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from ris.data.scenes import make_scene
from ris.engines.errors import RisError
from ris.engines.text import one_line
from ris.evaluation.asking import Asked, evaluate_showing, open_bundle_to_ask, sample_options
from ris.evaluation.compare import Comparison, Run, compare_runs
from ris.evaluation.metrics import PROTOCOLS
from ris.evaluation.plots import require_matplotlib
from ris.evaluation.report import Pictures, to_dict, write_report
from ris.evaluation.results import SETUP
from ris.evaluation.sources import SampleSource
from ris.runtime.bundle import MANIFEST
from ris.runtime.commands.console import LeftOut, RisCommand, disk_errors, print_json
from ris.runtime.commands.running import Running
from ris.runtime.image import load_rgb


@click.command(cls=RisCommand)
@click.argument(
    "models",
    nargs=-1,
    required=True,
    type=click.Path(path_type=Path, exists=True, file_okay=False),
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
    """What differs between MODELS, each a bundle or a folder of `ris-eval --out`.

    The first is what the others are measured against.

    Bundles are evaluated first, on what --data says; their answers stay in the report's folder, and
    a comparison that was stopped goes on from there. Results of other engines, or of the PyTorch
    model, come from `ris-eval --out`.

    \b
    Examples:
      ris-eval compare fp32-bundle fp16-bundle --samples 500
      ris-eval --pytorch --checkpoint model.safetensors --out reference
      ris-eval compare reference fp32-bundle --out report
    """
    if len(models) < 2:
        raise RisError("give two models or more to compare")
    require_matplotlib()
    cache, left = asked.cache(), LeftOut()
    with disk_errors(out):
        out.mkdir(parents=True, exist_ok=True)

    def ask(bundle: Path, folder: Path) -> None:
        with open_bundle_to_ask(bundle, running, cache) as opened:
            evaluate_showing(asked, opened, folder, restart, left)

    runs = _runs(models, out / "answers", ask)
    # folders may have been evaluated on other samples than --data says; data sets state no number
    samples = runs[0].samples
    source = SampleSource(**{**samples, "samples": samples["samples"] or 1})
    for run in runs:
        for sentence in run.left_out:
            left(sentence)
    found = compare_runs(runs, asked.protocol or source.protocol, asked.threshold)
    found = dataclasses.replace(found, left_out=tuple(left.sentences))
    with disk_errors(out):
        files = write_report(found, out, worst, _pictures(source))

    if as_json:
        print_json(to_dict(found), indent=2)
    else:
        _print(found)
        click.echo(f"Wrote {', '.join(map(one_line, files))}")
    left.finish("the figures are of the others")


def _runs(models: Sequence[Path], answers: Path, ask: Callable[[Path, Path], None]) -> list[Run]:
    """The answers of each model, a bundle or a folder of `ris-eval --out`.

    A bundle is asked first: `ask` gets its path and a folder below `answers`, where it leaves them.
    """
    runs: list[Run] = []
    for number, model in enumerate(models, 1):
        folder = model
        if (model / MANIFEST).exists():
            folder = answers / f"{number}-{model.name}"
            ask(model, folder)
        elif not (model / SETUP).exists():
            raise RisError(f"{model} is neither a bundle nor a folder of ris-eval --out")

        run = Run.read(folder)
        if run.name in {other.name for other in runs}:
            run = dataclasses.replace(run, name=f"{run.name} ({number})")
        runs.append(run)
    return runs


def _pictures(source: SampleSource) -> Pictures:
    """Finds the pixels of an image by its name in the results; None where they are gone."""
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


def _print(found: Comparison) -> None:
    table = Table(title=f"{len(found.runs[0].answers)} expressions, against {found.runs[0].name}")
    for column in ("metric", *(run.name for run in found.runs)):
        table.add_column(column, justify="left" if column == "metric" else "right")
    for metric in PROTOCOLS[found.protocol].metrics:
        first = found.scores[0]["all"].get(metric)
        if metric == "samples" or first is None:
            continue
        cells = [f"{first:.4f}"]
        for scores, differences in zip(found.scores[1:], found.differences, strict=True):
            own = differences[metric]
            interval = f"[{own.low:+.4f}, {own.high:+.4f}]"
            cells.append(f"{scores['all'][metric]:.4f}  {own.value:+.4f} {interval}")
        table.add_row(metric, *cells)
    Console(width=max(110, 40 * len(found.runs))).print(table)
