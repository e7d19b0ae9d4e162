"""`ris-calibrate`: what the numbers in a bundle do.

Thin over `measure_ranges`, `emulate_bundle` and `quantise_bundle`.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.table import Table

from ris import pip_install
from ris.calibration.asking import Asked, sample_options, threads_option
from ris.calibration.int8.command import int8
from ris.calibration.weights.command import weights
from ris.engines.errors import RisError
from ris.runtime import open_bundle
from ris.runtime.commands.console import (
    LeftOut,
    RisCommand,
    RisGroup,
    disk_errors,
    find_bundle,
    print_json,
    require_writable,
    track,
)

if TYPE_CHECKING:
    from ris.calibration.numerics import Ranges


@click.group(cls=RisGroup)
def main() -> None:
    """Measures what calculation in fewer bits would do to a bundle, writes INT8 bundles, and
    chooses the levels of narrow weights.

    \b
    Examples:
      ris-calibrate ranges ris-bundle
      ris-calibrate emulate fp16-bundle --out emulated
      ris-calibrate int8 ris-bundle --out int8-bundle
      ris-calibrate weights --checkpoint LISA-7B-v1 --out rounded.safetensors
    """


main.add_command(int8)
main.add_command(weights)


def _require_onnx() -> None:
    """The graphs are rewritten with the onnx package, which the thin runtime does without."""
    if importlib.util.find_spec("onnx") is None:
        raise RisError(f"ris-calibrate needs onnx: {pip_install('cpu', 'export')}")


@main.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@sample_options(default=100)
@click.option(
    "--out",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Write all ranges to this JSON file.",
)
@threads_option
@click.option("--json", "as_json", is_flag=True, help="Print all ranges as JSON.")
def ranges(
    bundle: str | None, asked: Asked, out: Path | None, threads: int | None, as_json: bool
) -> None:
    """Runs BUNDLE's graphs over IMAGES (files, folders, JSONL) and notes every value's largest
    magnitude.

    Without IMAGES the samples are drawn scenes. FP16 ends at 65504; `ris-export --precision fp16
    --ranges FILE` keeps in FP32 whatever comes near it. In a bundle of any precision it names what
    one graph hands to another in FP16 and FP16 cannot hold, with the picture.

    \b
    Examples:
      ris-calibrate ranges ris-bundle --samples 200 --out ranges.json
      ris-calibrate ranges ris-bundle photos -e "left man" -e "the dog" --out ranges.json
      ris-calibrate ranges ris-bundle requests.jsonl
    """
    _require_onnx()
    from ris.calibration.numerics import MeasuringStopped, measure_ranges

    asked.check()
    if out:
        if not out.parent.is_dir():
            raise RisError(f"{out.parent}: no such folder; make it, or choose another --out")
        require_writable(out.parent, folder=True)

    left = LeftOut()
    opened = open_bundle(find_bundle(bundle))
    samples, count = asked.stream(opened, left)
    tracked = track(samples, count, "Ranges")
    stopped: MeasuringStopped | None = None
    try:
        found = measure_ranges(opened, tracked, threads=threads, skipped=left)
    except MeasuringStopped as early:
        found, stopped = early.found, early
    finally:
        tracked.close()  # or the bar would stay while the table is printed

    try:
        if out:
            with disk_errors(out):
                found.write(out)
    finally:  # what was measured is shown though a disk is full
        if as_json:
            print_json(dataclasses.asdict(found), indent=1)
        else:
            _print(found)
    if out and not as_json:
        click.echo(f"Wrote {out}")
    if stopped is not None:
        click.echo(f"Stopped early: these are the ranges of {found.samples} expressions", err=True)
        raise stopped
    left.finish(f"the ranges are those of {found.samples} expressions")


def _print(found: Ranges) -> None:
    """A table with a row per graph, and a line for every value beyond FP16.

    What is handed on in FP16 comes last: the rest matters to FP16 graphs alone.
    """
    from ris.calibration.numerics import FP16_MAX

    table = Table(
        "graph",
        "values",
        "largest",
        "written by",
        "beyond FP16",
        title=f"Largest magnitudes over {found.samples} expressions (FP16 ends at {FP16_MAX:.0f})",
    )
    for stage, values in found.stages.items():
        entries = values.values()
        top = max(entries, key=lambda entry: entry.largest)
        beyond = sum(not entry.largest <= FP16_MAX for entry in entries)  # nan counts too
        writer = f"{top.node} ({top.operator})"
        table.add_row(stage, str(len(entries)), f"{top.largest:.4g}", writer, str(beyond))
    Console(width=120).print(table)

    for stage, name, entry in found.above(FP16_MAX):
        writer = f"{entry.node} ({entry.operator})"
        click.echo(f"{stage}: {name} reaches {entry.largest:.4g}, written by {writer}")
    for stage, name, edge in found.edges_above(FP16_MAX):
        click.echo(
            f"{stage}: {name} reaches {edge.largest:.4g} on {edge.picture} and is handed on in"
            f" FP16, where it is infinite; export again with --fp32 {stage}, which keeps it FP32"
        )


@main.command(cls=RisCommand)
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    required=True,
    help="The new bundle.",
)
def emulate(bundle: Path, out: Path) -> None:
    """Writes a bundle that computes on a CPU what the FP16 BUNDLE computes on FP16 hardware,
    overflow included.

    ONNX Runtime's CPU runs most of FP16 graphs in FP32, which hides rounding and overflow. Here
    every operator's result is rounded. `ris-parity` and `ris-eval` take the result like any bundle;
    it is slower than FP32 and no product.

    \b
    Examples:
      ris-calibrate emulate fp16-bundle --out emulated
      ris-parity emulated
      ris-eval emulated --samples 500
    """
    _require_onnx()
    from ris.calibration.numerics import emulate_bundle

    emulate_bundle(open_bundle(bundle), out)
    click.echo(f"Wrote {out}\nNext:\n  ris-parity {out}\n  ris-eval {out} --samples 500")
