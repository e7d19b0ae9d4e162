"""`ris-parity`: how far a bundle is from its reference, on this machine and engine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from ris.engines.errors import ExpressionError, ParityError
from ris.runtime.bundle import Bundle, open_bundle
from ris.runtime.choice import AUTO
from ris.runtime.commands.console import RisCommand, print_json
from ris.runtime.commands.named_files import with_named
from ris.runtime.commands.running import Running, running_options
from ris.runtime.commands.weight_files import require_flag, weight_file_options
from ris.runtime.computing import VARIABLE, as_written
from ris.runtime.image import load_rgb
from ris.runtime.loading import select_for
from ris.runtime.model import Model
from ris.runtime.parity import ParityReport, check_model, load_golden
from ris.runtime.reference import pytorch_reference, require_pytorch
from ris.runtime.tolerance import Tolerance, thresholded_rows, tolerance_of


@click.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.option(
    "--reference",
    is_flag=True,
    help="Compare with the PyTorch model itself instead of golden.npz; needs the [export] extra.",
)
@weight_file_options("--reference")
@click.option(
    "--image",
    type=click.Path(path_type=Path),
    help="With --reference: your own image.",
)
@click.option(
    "-e",
    "--expression",
    "expressions",
    multiple=True,
    help="With --image: what to ask; may be repeated.",
)
@click.option(
    "--category",
    "categories",
    multiple=True,
    help="With --image: one category per expression.",
)
@running_options
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def main(
    bundle: str | None,
    running: Running,
    as_json: bool,
    **given: Any,
) -> None:
    """Compares BUNDLE with its reference: each stage alone, the host's steps, masks end to end.

    Ends with exit code 1 where a stage is out of tolerance. Without --compute and $RIS_COMPUTE the
    graphs compute in what they are written in (on a CPU FP16 ones in FP32), whatever "auto" would
    take. What was computed in is printed, with the tolerance of that. BUNDLE defaults to
    $RIS_BUNDLE, then ./ris-bundle, then the built-in demo. The reference of a bundle that was made
    from a checkpoint needs that checkpoint, the very file.

    \b
    Examples:
      ris-parity ris-bundle
      ris-parity ris-bundle --reference --image photo.jpg -e "left man"
      ris-parity ris-bundle --reference --checkpoint model_final.pth
    """
    against = Against(**given)
    against.check()
    path = running.find_bundle(bundle)
    against = against.with_files(open_bundle(path, verify=False))  # `load` checks the hashes
    with _as_asked(running, path).load(path) as model:
        _say_precision(model)
        report = check_model(model, against.arrays(model))
        if as_json:
            print_json(dataclasses.asdict(report), indent=2)
        else:
            _print(model, report, against.name)
    if report.failures:
        raise ParityError(f"out of tolerance: {'; '.join(report.failures)}")


@dataclass(frozen=True)
class Against:
    """What the command line asked to compare the bundle with."""

    reference: bool
    """The PyTorch model; else the arrays of golden.npz."""

    files: dict[str, Path | None]
    """The weight files of that model, by the names of `WeightFiles`."""

    image: Path | None
    """The user's own image. None: that of golden.npz."""

    expressions: tuple[str, ...]
    """What to ask of that image; empty without one."""

    categories: tuple[str, ...]
    """One for each expression; empty for a model that does not ask by category."""

    @property
    def name(self) -> str:
        """The reference, for people."""
        return "the PyTorch model" if self.reference else "golden.npz"

    def check(self) -> None:
        """Raises CheckpointError and ExpressionError for options that do not go together.

        Raises ImageError where the image cannot be read.
        """
        require_flag(self.files, "--reference", self.reference)
        if self.image is not None and not (self.reference and self.expressions):
            raise ExpressionError("--image needs --reference and at least one --expression")
        if (self.expressions or self.categories) and self.image is None:
            raise ExpressionError("--expression and --category need --image")
        if self.image is not None:
            load_rgb(self.image)

    def with_files(self, bundle: Bundle) -> Against:
        """The same, with paths for the weight files that were named: those are fetched.

        Raises CheckpointError for weight files that are not the bundle's, before its graphs are
        opened, HubError where one cannot be fetched, and RisError where PyTorch is not installed.
        """
        if not self.reference:
            return self
        require_pytorch("--reference")
        files = with_named(self.files)
        pytorch_reference().require_files(bundle, files)
        return dataclasses.replace(self, files=files)

    def arrays(self, model: Model) -> Mapping[str, NDArray[Any]]:
        """The reference's arrays, as `check_model` takes them.

        Raises BundleError, CheckpointError and ImageError for files that do not fit or cannot be
        read.
        """
        if not self.reference:
            return load_golden(model.bundle)
        if self.image is not None:
            rgb, expressions, categories = load_rgb(self.image), self.expressions, self.categories
        else:
            golden = load_golden(model.bundle)
            rgb = golden["rgb"]
            expressions = tuple(map(str, golden["expressions"]))
            categories = tuple(map(str, golden.get("categories", ())))
        return pytorch_reference().live_reference(
            model.bundle, rgb, expressions, categories or None, self.files
        )


def _as_asked(running: Running, path: Path) -> Running:
    """How to run the bundle: where nobody asks for a precision, in that of its graphs.

    What `auto` takes has passed this comparison with the tolerance of its precision, and would hide
    what is wrong with the graphs behind that.
    """
    if running.compute is not None or os.environ.get(VARIABLE):
        return running
    bundle = open_bundle(path, verify=False)  # `load` checks the hashes
    row = select_for(bundle, running.engine, running.device)
    return dataclasses.replace(running, compute=as_written(bundle, row, running.device))


def _say_precision(model: Model) -> None:
    """A line with what the graphs compute in, and why where that was chosen."""
    ran = {info.precision for info in model.sessions.values() if info.precision}
    why = f" ({model.choice.words})" if model.choice and model.choice.asked == AUTO else ""
    if ran:
        click.echo(f"compute: {', '.join(sorted(ran))}{why}", err=True)


def _print(model: Model, report: ParityReport, against: str) -> None:
    manifest, sessions = model.bundle.manifest, model.sessions.values()
    ran_on = ", ".join(sorted({f"{i.engine} {i.version} on {i.device}" for i in sessions}))
    table = Table(title=f"{model.bundle.path}, {manifest.precision}, {ran_on}, against {against}")
    for heading in ("stage", "largest error", "mean error", "relative", "cosine"):
        table.add_column(heading, justify="left" if heading == "stage" else "right")
    for name, row in report.rows.items():
        errors = [f"{error:.2e}" for error in (row.max_abs, row.mean_abs, row.relative)]
        table.add_row(name, *errors, f"{row.cosine:.8f}")
    Console(width=110).print(table)

    tolerance = tolerance_of(model)
    logits = tolerance.no_target_logits
    head = "" if logits is None else f" {logits:.0e} no-target logits,"
    step = max(thresholded_rows(manifest, tolerance).values(), default=0.0)
    behind = f", {step:.0e} behind a threshold" if tolerance.stage < step else ""
    click.echo(
        f"masks: IoU {report.mask_iou:.6f} (accepted from {tolerance.mask_iou:.5g}),"
        f" flipped pixels {report.flipped:.5%}; relative error accepted:"
        f" {tolerance.stage:.0e} a stage,{_of_graphs(tolerance)}{head}"
        f" {tolerance.mask_logits:.0e} end to end{behind}"
    )
    if (found := report.no_target) is not None:
        click.echo(
            f"no target: {found.differ} of {found.asked} decided differently (accepted where the"
            f" reference's probability is within {tolerance.no_target_margin:g} of 0.5);"
            f" probabilities moved by {found.moved:.1e} at most"
        )


def _of_graphs(tolerance: Tolerance) -> str:
    """What is accepted of single graphs, where it is more than of others."""
    return "".join(
        f" {accepted:.0e} of {graph},"
        for graph, accepted in tolerance.graphs.items()
        if accepted > tolerance.stage
    )
