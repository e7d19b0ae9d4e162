"""`ris-bench`: seconds per stage on this machine, beside PyTorch in the same run if asked."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
from pathlib import Path

import click
import numpy as np
from rich.console import Console
from rich.table import Table

from ris.engines.errors import RisError
from ris.runtime.bench import Alternative, BenchReport, Spread, bench
from ris.runtime.commands.console import RisCommand, StepProgress, find_bundle
from ris.runtime.commands.running import Running, running_options
from ris.runtime.commands.weight_files import require_flag, weight_file_options
from ris.runtime.image import load_rgb
from ris.runtime.parity import load_golden

EXPRESSIONS = ("left man", "second car from the right")


@click.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.option("--image", type=click.Path(path_type=Path), help="Default: noise of 1024x1024 pixels.")
@click.option("--runs", type=click.IntRange(1), default=5, show_default=True)
@click.option("--pytorch", is_flag=True, help="Time PyTorch eager FP32 in turn; needs the [export] extra.")
@weight_file_options("--pytorch")
@running_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(
    bundle: str | None,
    image: Path | None,
    runs: int,
    pytorch: bool,
    running: Running,
    as_json: bool,
    **files: Path | None,
) -> None:
    """Times BUNDLE: first mask, next expression, every stage, and the runtime's own share.

    PyTorch beside a bundle that was made from a checkpoint needs that checkpoint, the very file.

    \b
    Examples:
      ris-bench ris-bundle
      ris-bench full-size --pytorch --runs 5
      ris-bench ris-bundle --pytorch --checkpoint model_final.pth
    """
    require_flag(files, "--pytorch", pytorch)
    if image is None:
        rgb = np.random.default_rng(0).integers(0, 256, (1024, 1024, 3), dtype=np.uint8)
    else:
        rgb = load_rgb(image)
    with running.load(find_bundle(bundle)) as model:
        alternatives: dict[str, Alternative] = {}
        if pytorch:
            if importlib.util.find_spec("torch") is None:
                raise RisError('--pytorch needs PyTorch: pip install "ris-runtime[cpu,export]"')
            # loaded by name, here only: the runtime does not depend on `ris.export`
            live = importlib.import_module("ris.export.live_reference")
            alternatives["PyTorch eager FP32"] = live.timed_reference(
                model.bundle, rgb, EXPRESSIONS, running.threads, files
            )
        categories = None
        if model.categories:
            categories = tuple(map(str, load_golden(model.bundle)["categories"][:2]))
        with StepProgress("Bench", runs + 1) as progress:
            report = bench(model, rgb, EXPRESSIONS, categories, runs, alternatives, progress)  # type: ignore[arg-type]
        infos = sorted({f"{i.engine} {i.version} on {i.device}" for i in model.sessions.values()})
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(report) | {"engines": infos}, indent=2))
        else:
            title = f"{model.bundle.path}, {model.bundle.manifest.precision}, {', '.join(infos)}, {runs} runs"
            _print(report, title)


def _print(report: BenchReport, title: str) -> None:
    table = Table(title=title)
    table.add_column("what")
    for heading in ("median ms", "spread ms", "of first mask"):
        table.add_column(heading, justify="right")
    whole = report.first_mask.median

    def row(name: str, spread: Spread) -> None:
        low, high = spread.smallest * 1000, spread.largest * 1000
        table.add_row(name, f"{spread.median * 1000:.1f}", f"{low:.1f} to {high:.1f}", f"{spread.median / whole:.1%}")

    row("first mask", report.first_mask)
    row("next expression", report.next_expression)
    row("the runtime's own work", report.host)
    for name, spread in report.stages.items():
        row(f"  {name}", spread)
    for name, (first, following) in report.alternatives.items():
        row(f"{name}: first mask", first)
        row(f"{name}: next expression", following)
    Console(width=100).print(table)
    for name, (first, following) in report.alternatives.items():
        click.echo(
            f"{name} / this bundle: first mask {first.median / whole:.2f}, "
            f"next expression {following.median / report.next_expression.median:.2f}"
        )
