"""`ris-calibrate int8`. Thin over `quantise_bundle`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ris import pip_install
from ris.calibration.asking import Asked, sample_options, threads_option
from ris.calibration.int8.options import Execution, Int8Options
from ris.engines.errors import RisError
from ris.runtime import open_bundle
from ris.runtime.bundle_folder import behind_links
from ris.runtime.commands.console import (
    LeftOut,
    RisCommand,
    disk_errors,
    find_bundle,
    require_writable,
    track,
)
from ris.runtime.commands.options import Command, Option, add_options

if TYPE_CHECKING:
    from ris.calibration.int8.report import Int8Report


_QUANTISING: tuple[Option, ...] = (
    click.option(
        "--graph",
        "graphs",
        multiple=True,
        help="A graph to quantise; may be repeated. Default: what the bundle says, such as its "
        "image encoders.",
    ),
    click.option(
        "--calibrator",
        type=click.Choice(["auto", "minmax", "percentile", "entropy"]),
        default="auto",
        show_default=True,
        help="How the range of an activation is chosen. auto: tries all three.",
    ),
    click.option(
        "--percentile",
        type=click.FloatRange(50, 100),
        default=99.99,
        show_default=True,
        help="The share of magnitudes that the percentile calibrator keeps.",
    ),
    click.option(
        "--alpha",
        type=click.FloatRange(0, 1),
        default=0.5,
        show_default=True,
        help="Smoothing: how much of the outlier channels' difficulty moves into the weights.",
    ),
    click.option("--no-smooth", is_flag=True, help="Leave outlier channels as they are."),
    click.option("--attention", is_flag=True, help="Quantise attention's own products too."),
    click.option(
        "--max-iou-drop",
        type=click.FloatRange(0, 1),
        default=0.005,
        show_default=True,
        help="The mean mask IoU that may be lost; the worst layers stay FP32 until this holds.",
    ),
    click.option(
        "--against",
        type=click.Choice(["fp32", "truth"]),
        default="fp32",
        show_default=True,
        help="What it is lost of: the IoU with the FP32 model's masks, or with the true masks "
        "(scenes have those).",
    ),
    click.option(
        "--quick",
        is_flag=True,
        help="Measure single layers only where the target does not hold with all.",
    ),
)


def quantising_options(command: Command) -> Command:
    """What `quantise_bundle` is to do; the command gets it as one argument, `options`."""

    return add_options(command, _QUANTISING, "options", _take_options)


def _take_options(given: dict[str, Any]) -> Int8Options:
    alpha, smooth = given.pop("alpha"), not given.pop("no_smooth")
    as_they_are = ("calibrator", "percentile", "attention", "max_iou_drop", "against")
    return Int8Options(
        graphs=given.pop("graphs") or None,
        alpha=alpha if smooth else None,
        sensitivity=not given.pop("quick"),
        **{name: given.pop(name) for name in as_they_are},
    )


@click.command("int8", cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    required=True,
    help="The new bundle, a folder.",
)
@sample_options(default=64)
@quantising_options
@click.option(
    "--report",
    "report_folder",
    type=click.Path(path_type=Path),
    help="Folder of the report. Default: <OUT>-report.",
)
@threads_option
@click.option("--force", is_flag=True, help="Replace the bundle if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def int8(
    bundle: str | None,
    out: Path,
    asked: Asked,
    options: Int8Options,
    report_folder: Path | None,
    threads: int | None,
    force: bool,
    as_json: bool,
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
    _require_packages()
    from ris.calibration.int8.quantise import planned, quantise_bundle
    from ris.calibration.int8.report import write_report

    _check(asked, options)
    left = LeftOut()
    opened = open_bundle(find_bundle(bundle))
    options = planned(opened, out, options, force)
    reports = report_folder or out.with_name(f"{out.name}-report")
    _require_report(reports, out)
    samples = asked.sample_set(opened, left)
    execution = Execution(threads, track, say=lambda line: click.echo(line, err=True))
    with disk_errors(out):
        report = quantise_bundle(
            opened, samples, out, options, overwrite=force, execution=execution
        )

    try:
        written = write_report(report, reports)
    finally:  # what was found is shown though a disk is full
        _show(report, out, as_json)
    if not as_json:
        _say_next(opened.path, out, written)
    left.finish(f"INT8 was calibrated on {report.samples} expressions")


def _require_packages() -> None:
    for package, extra in (("onnx", "export"), ("onnxruntime", "cpu"), ("matplotlib", "eval")):
        if importlib.util.find_spec(package) is None:
            raise RisError(f"ris-calibrate int8 needs {package}: {pip_install(extra)}")


def _check(asked: Asked, options: Int8Options) -> None:
    """Raises RisError for options that do not go together."""
    asked.check()
    if asked.images and options.against == "truth":
        raise RisError(
            "--against truth needs true masks, which only the drawn scenes have; leave IMAGES out"
        )


def _require_report(folder: Path, out: Path) -> None:
    """Raises RisError where the files of the report cannot be written to its folder."""
    from ris.calibration.int8.report import files_of

    if behind_links(folder).is_relative_to(behind_links(out)):
        return  # it is in the new bundle, which is not there yet
    for file in files_of(folder):
        require_writable(file)


def _show(report: Int8Report, out: Path, as_json: bool) -> None:
    """The findings."""
    from ris.calibration.int8.report import lines

    if as_json:
        click.echo(report.to_json(), nl=False)
        return
    click.echo(f"Wrote {out}")
    click.echo("\n".join(lines(report)))


def _say_next(bundle: Path, out: Path, written: list[Path]) -> None:
    """The files of the report, and what to do next."""
    click.echo(f"Wrote {', '.join(map(str, written))}")
    click.echo(f"Next:\n  ris-parity {out}\n  ris-eval compare {bundle} {out} --samples 500")
