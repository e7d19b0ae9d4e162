"""`ris-parity`: how far a bundle is from its reference, on this machine and engine."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from ris.engines.errors import ExpressionError, ParityError
from ris.runtime.commands.console import RisCommand, find_bundle
from ris.runtime.commands.running import Running, running_options
from ris.runtime.commands.weight_files import require_flag, weight_file_options
from ris.runtime.image import load_rgb
from ris.runtime.model import Model
from ris.runtime.parity import ParityReport, check_model, load_golden, tolerance_of
from ris.runtime.reference import pytorch_reference, require_pytorch


@click.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.option(
    "--reference",
    is_flag=True,
    help="Compare with the PyTorch model itself instead of golden.npz; needs the [export] extra.",
)
@weight_file_options("--reference")
@click.option("--image", type=click.Path(path_type=Path), help="With --reference: your own image.")
@click.option(
    "-e",
    "--expression",
    "expressions",
    multiple=True,
    help="With --image: what to ask; may be repeated.",
)
@click.option(
    "--category", "categories", multiple=True, help="With --image: one category per expression."
)
@running_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(
    bundle: str | None,
    reference: bool,
    image: Path | None,
    expressions: tuple[str, ...],
    categories: tuple[str, ...],
    running: Running,
    as_json: bool,
    **files: Path | None,
) -> None:
    """Compares BUNDLE with its reference: every stage on its own, the host's steps, and masks end
    to end.

    Ends with exit code 1 where a stage is out of tolerance. BUNDLE defaults to $RIS_BUNDLE, then
    ./ris-bundle, then the built-in demo. The reference of a bundle that was made from a checkpoint
    needs that checkpoint, the very file.

    \b
    Examples:
      ris-parity ris-bundle
      ris-parity ris-bundle --reference --image photo.jpg -e "left man"
      ris-parity ris-bundle --reference --checkpoint model_final.pth
    """
    require_flag(files, "--reference", reference)
    if image is not None and not (reference and expressions):
        raise ExpressionError("--image needs --reference and at least one --expression")
    if (expressions or categories) and image is None:
        raise ExpressionError("--expression and --category need --image")
    with running.load(find_bundle(bundle)) as model:
        arrays = (
            _live_reference(model, image, expressions, categories, files)
            if reference
            else load_golden(model.bundle)
        )
        report = check_model(model, arrays)
        if as_json:
            click.echo(json.dumps(dataclasses.asdict(report), indent=2))
        else:
            _print(model, report, "the PyTorch model" if reference else "golden.npz")
    if report.failures:
        raise ParityError(f"out of tolerance: {'; '.join(report.failures)}")


def _live_reference(
    model: Model,
    image: Path | None,
    expressions: tuple[str, ...],
    categories: tuple[str, ...],
    files: dict[str, Path | None],
) -> dict[str, Any]:
    """PyTorch's arrays for the image and expressions given, else for those of golden.npz."""
    require_pytorch("--reference")
    if image is None:
        golden = load_golden(model.bundle)
        rgb, expressions = golden["rgb"], tuple(map(str, golden["expressions"]))
        categories = tuple(map(str, golden["categories"]))
    else:
        rgb = load_rgb(image)
    reference = pytorch_reference()
    return reference.live_reference(model.bundle, rgb, expressions, categories or None, files)


def _print(model: Model, report: ParityReport, against: str) -> None:
    manifest = model.bundle.manifest
    infos = {f"{i.engine} {i.version} on {i.device}" for i in model.sessions.values()}
    table = Table(
        title=(
            f"{model.bundle.path}, {manifest.precision}, {', '.join(sorted(infos))}, against"
            f" {against}"
        )
    )
    for heading in ("stage", "largest error", "mean error", "relative", "cosine"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, row in report.rows.items():
        table.add_row(
            name,
            f"{row.max_abs:.2e}",
            f"{row.mean_abs:.2e}",
            f"{row.relative:.2e}",
            f"{row.cosine:.8f}",
        )
    Console(width=110).print(table)
    tolerance = tolerance_of(model)
    click.echo(
        f"masks: IoU {report.mask_iou:.6f} (accepted from {tolerance.mask_iou}), flipped pixels"
        f" {report.flipped:.5%}; relative error accepted: {tolerance.stage:.0e} a stage,"
        f" {tolerance.no_target_logits:.0e} no-target logits, {tolerance.mask_logits:.0e} end"
        " to end"
    )
