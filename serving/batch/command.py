"""`ris-batch`: many images on one machine or a Ray cluster.

A thin layer over `plan_batch` and `run_batch`.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ris import pip_install
from ris.engines.errors import RisError
from ris.engines.processor import usable_cores
from ris.engines.text import one_line, typed
from ris.runtime import open_bundle
from ris.runtime.commands.console import (
    LeftOut,
    RisCommand,
    disk_errors,
    find_bundle,
    print_json,
)
from ris.runtime.commands.forms import form_option
from ris.runtime.commands.running import Running, running_options
from ris.runtime.computing import computes_by_stage
from ris.runtime.hub.address import is_address
from ris.serving.batch.addresses import Address, is_remote, local_bundle
from ris.serving.batch.watch import MAX_SECONDS

if TYPE_CHECKING:
    from ris.serving.batch.run import BatchReport

_MOST_REASONS = 3  # that a sentence repeats


@click.command(cls=RisCommand)
@click.argument(
    "sources",
    nargs=-1,
    required=True,
    type=Address(),
    metavar="SOURCE...",
)
@click.option(
    "-e",
    "--expression",
    "expressions",
    multiple=True,
    help="Asked of images that bring none of their own.",
)
@click.option(
    "--category",
    help='For models that ask by category, where the source names none; "auto" guesses it.',
)
@click.option(
    "--bundle",
    type=click.Path(),
    help="The bundle, a folder or hf://ORGANISATION/NAME. Default: $RIS_BUNDLE, ./ris-bundle, the "
    "built-in demo.",
)
@click.option(
    "--out",
    type=Address(),
    default="ris-batch",
    show_default=True,
    help="Folder for the answers. A batch that was stopped goes on from it.",
)
@click.option("--restart", is_flag=True, help="Throw away the batch that --out has.")
@click.option(
    "--retry-errors",
    is_flag=True,
    help="Ask the rows again that have an error in place of an answer. Images of folders may have"
    " been mended meanwhile.",
)
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Models that run at once.",
)
@click.option(
    "--cpus",
    type=click.FloatRange(0, min_open=True),
    help="Cores for each worker. Default: its share of this machine.",
)
@click.option(
    "--gpus",
    type=click.FloatRange(0),
    default=0.0,
    help="GPUs for each worker, such as 0.5. Default: none.",
)
@click.option("--address", help='A Ray cluster: "auto", or HOST:PORT. Default: this machine alone.')
@click.option(
    "--part-rows",
    type=click.IntRange(1),
    default=256,
    show_default=True,
    help="Rows of one file.",
)
@click.option(
    "--no-target-threshold",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help='Above this probability the answer is "no target" and the mask is empty.',
)
@click.option(
    "--max-seconds",
    type=click.FloatRange(1),
    default=MAX_SECONDS,
    show_default=True,
    help="A worker that is longer at one step, an image or a group of its expressions, is ended,"
    " and its part tried by another. Opening the model may take four times as long.",
)
@form_option
@running_options
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print the report as JSON on standard output.",
)
def main(
    sources: tuple[Path, ...],
    expressions: tuple[str, ...],
    category: str | None,
    bundle: str | None,
    out: Path,
    restart: bool,
    retry_errors: bool,
    workers: int,
    cpus: float | None,
    gpus: float,
    address: str | None,
    part_rows: int,
    no_target_threshold: float,
    max_seconds: float,
    form: str | None,
    running: Running,
    as_json: bool,
) -> None:
    """Segments many images and writes Parquet with COCO run lengths, each row exactly once.

    A SOURCE is a folder of images, a .jsonl file, a .parquet table (columns image, expression,
    maybe category) or a web-dataset shard (.tar). An image is encoded once for all its rows. What
    cannot be read becomes a row with its error. Where an engine fails, its part is tried again by
    another worker, or stays open. Run the same command again to go on with a batch that was stopped
    or has open parts. SOURCE, --bundle and --out may be addresses, such as s3://bucket/folder.

    \b
    Examples:
      ris-batch photos -e "red car" -e "left man"
      ris-batch requests.jsonl --out answers --workers 2
      ris-batch shards/*.tar --address auto --workers 16 --cpus 4
      ris-batch s3://data/shards/one.tar --out s3://data/answers
      ris-batch table.parquet --engine tensorrt --workers 2 --gpus 0.5
    """
    if importlib.util.find_spec("ray") is None or importlib.util.find_spec("pyarrow") is None:
        raise RisError(f"ris-batch needs Ray and pyarrow: {pip_install('cpu', 'ray')}")
    from ris.serving.batch.asked import Given
    from ris.serving.batch.run import BatchOptions, check_run, plan_batch, run_batch

    if cpus is None:
        cpus = float(running.threads or 1) if address else usable_cores() / workers
    options = BatchOptions(workers, cpus, gpus, address, part_rows, no_target_threshold)
    options = replace(
        options,
        retry_errors=retry_errors,
        form=form,
        max_seconds=max_seconds,
        bundle_address=_remote_bundle(bundle),
    )
    given = Given(tuple(map(typed, expressions)), category)
    elsewhere = options.bundle_address
    here = str(find_bundle(bundle)) if elsewhere is None or is_address(elsewhere) else elsewhere
    with local_bundle(here) as found:
        # or each worker says so
        computes_by_stage(running.compute, open_bundle(found, verify=False))
        if restart:
            check_run(found, running, options, restart)
        with disk_errors(out):
            job, parts = plan_batch(out, found, sources, given, options, restart, LeftOut.note)
            before = parts - len(job.open_parts(parts))
            if before:
                click.echo(f"{before} of {parts} parts are done already", err=True)
            report = run_batch(job, parts, found, running, options)

    if as_json:
        print_json(asdict(report))
    else:
        rate = f"; {report.new_rows / report.seconds:.1f} rows/s now" if report.new_rows else ""
        click.echo(
            f"{report.rows} rows, {report.errors} of them errors, "
            f"in {report.files} files in {one_line(out)}{rate}"
        )
    _refuse_what_is_missing(report)


def _remote_bundle(given: str | None) -> str | None:
    """The address of the bundle, where it is not on this machine."""
    named = given or os.environ.get("RIS_BUNDLE")
    return named if named and is_remote(named) else None


def _refuse_what_is_missing(report: BatchReport) -> None:
    """Raises OpenPartsError for parts that could not be done, RisError for rows with errors."""
    said = f"{report.errors} of {report.rows} rows have no answer; their column `error` says why"
    if report.open_parts:
        because = "; ".join(report.open_because[:_MOST_REASONS])
        raise OpenPartsError(
            f"{report.open_parts} of {report.parts} parts could not be done and stay open"
            f" ({because}); the same command goes on" + (f". {said}" if report.errors else "")
        )
    if report.errors:
        raise RisError(said)


class OpenPartsError(RisError):
    """Parts of a batch that could not be done, for a reason that is no image's."""

    exit_code = 1
