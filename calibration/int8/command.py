"""`ris-calibrate int8`. Thin over `quantise_bundle`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import click

from ris import pip_install
from ris.calibration.samples import request_set, scene_set
from ris.engines.errors import RisError
from ris.runtime import open_bundle
from ris.runtime.bundle import STAGES
from ris.runtime.commands.console import RisCommand, disk_errors, find_bundle, track
from ris.runtime.requests import collect


@click.command("int8", cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.argument("images", nargs=-1, type=click.Path())
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="The new bundle, a folder."
)
@click.option(
    "-e",
    "--expression",
    "expressions",
    multiple=True,
    help="What to ask of IMAGES; may be repeated.",
)
@click.option(
    "--category",
    "categories",
    multiple=True,
    help="For models that ask by category; once per expression.",
)
@click.option(
    "--samples",
    type=click.IntRange(1),
    default=64,
    show_default=True,
    help="Without IMAGES: scenes' expressions.",
)
@click.option(
    "--graph",
    "graphs",
    multiple=True,
    type=click.Choice(STAGES),
    help="A graph to quantise; may be repeated. Default: the two image encoders.",
)
@click.option(
    "--calibrator",
    type=click.Choice(["auto", "minmax", "percentile", "entropy"]),
    default="auto",
    show_default=True,
    help="How the range of an activation is chosen. auto: tries all three.",
)
@click.option(
    "--percentile",
    type=click.FloatRange(50, 100),
    default=99.99,
    show_default=True,
    help="The share of magnitudes that the percentile calibrator keeps.",
)
@click.option(
    "--alpha",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help="Smoothing: how much of the outlier channels' difficulty moves into the weights.",
)
@click.option("--no-smooth", is_flag=True, help="Leave outlier channels as they are.")
@click.option("--attention", is_flag=True, help="Quantise attention's own products too.")
@click.option(
    "--max-iou-drop",
    type=click.FloatRange(0, 1),
    default=0.005,
    show_default=True,
    help="The mean mask IoU that may be lost; the worst layers stay FP32 until this holds.",
)
@click.option(
    "--against",
    type=click.Choice(["fp32", "truth"]),
    default="fp32",
    show_default=True,
    help=(
        "What it is lost of: the IoU with the FP32 model's masks, or with the true masks (scenes"
        " have those)."
    ),
)
@click.option(
    "--quick",
    is_flag=True,
    help="Measure single layers only where the target does not hold with all.",
)
@click.option(
    "--report", type=click.Path(path_type=Path), help="Folder of the report. Default: <OUT>-report."
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads. Default: all cores.")
@click.option("--force", is_flag=True, help="Replace the bundle if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def int8(
    bundle: str | None,
    images: tuple[str, ...],
    out: Path,
    expressions: tuple[str, ...],
    categories: tuple[str, ...],
    samples: int,
    graphs: tuple[str, ...],
    alpha: float,
    no_smooth: bool,
    quick: bool,
    report: Path | None,
    threads: int | None,
    force: bool,
    as_json: bool,
    **options: Any,
) -> None:
    """Writes the FP32 BUNDLE with products in INT8, calibrated on IMAGES (files, folders, JSONL) or
    drawn scenes.

    It says what each layer costs in mask IoU and leaves the worst in FP32. A stopped run goes on
    where it was when the same command is given again.

    \b
    Examples:
      ris-calibrate int8 ris-bundle --out int8-bundle
      ris-calibrate int8 ris-bundle photos -e "left man" -e "the dog" --out int8-bundle
      ris-calibrate int8 ris-bundle requests.jsonl --out int8-bundle --calibrator percentile
    """
    for package, extra in (("onnx", "export"), ("onnxruntime", "cpu"), ("matplotlib", "eval")):
        if importlib.util.find_spec(package) is None:
            raise RisError(f"ris-calibrate int8 needs {package}: {pip_install(extra)}")
    from ris.calibration.int8.quantise import IMAGE_ENCODERS, Int8Options, quantise_bundle
    from ris.calibration.int8.report import lines, write_report

    if expressions and not images:
        raise RisError("--expression is asked of IMAGES; give some")
    if images and options["against"] == "truth":
        raise RisError(
            "--against truth needs true masks, which only the drawn scenes have; leave IMAGES out"
        )
    opened = open_bundle(find_bundle(bundle))
    found = (
        request_set(collect(list(images), expressions, categories or None))
        if images
        else scene_set(samples)
    )
    with disk_errors(out):
        done = quantise_bundle(
            opened,
            found,
            out,
            Int8Options(
                graphs=graphs or IMAGE_ENCODERS,
                alpha=None if no_smooth else alpha,
                sensitivity=not quick,
                **options,
            ),
            threads=threads,
            overwrite=force,
            track=track,
            say=lambda line: click.echo(line, err=True),
        )
    written = write_report(done, report or out.with_name(f"{out.name}-report"))
    if as_json:
        click.echo(done.to_json(), nl=False)
        return
    click.echo(f"Wrote {out}")
    click.echo("\n".join(lines(done)))
    click.echo(f"Wrote {', '.join(map(str, written))}")
    click.echo(f"Next:\n  ris-parity {out}\n  ris-eval compare {opened.path} {out} --samples 500")
