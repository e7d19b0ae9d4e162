"""`ris-infer`: images and expressions in, masks out. Thin over `ris.runtime.load`."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from ris.engines.errors import ImageError, RisError
from ris.runtime.commands.console import RisCommand, disk_errors, find_bundle, track
from ris.runtime.commands.running import Running, running_options
from ris.runtime.image import load_rgb
from ris.runtime.model import Model
from ris.runtime.requests import Request, collect, looks_like_image
from ris.runtime.results import FORMATS, ResultWriter, describe
from ris.runtime.segmentation import Segmentation


@click.command(cls=RisCommand)
@click.argument("arguments", nargs=-1, required=True, metavar="IMAGE... [EXPRESSION...]")
@click.option("-e", "--expression", "more", multiple=True, help="An expression; may be repeated.")
@click.option(
    "--bundle",
    type=click.Path(),
    help="The bundle. Default: $RIS_BUNDLE, ./ris-bundle, the built-in demo.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ris-output"),
    show_default=True,
    help="Folder for the results.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    default=("mask", "overlay"),
    show_default=True,
    help="What to write; may be repeated.",
)
@click.option(
    "--category",
    "categories",
    multiple=True,
    help=(
        "The object's COCO category, for models that ask by category; once, or once per"
        ' expression. "auto" guesses it from the expression and says what it guessed.'
    ),
)
@click.option(
    "--no-target-threshold",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help='From this probability on the answer is "no target" and the mask is empty.',
)
@running_options
@click.option(
    "--draft",
    is_flag=True,
    help="Decode large JPEG files smaller: faster, and the encoders see slightly other values.",
)
@click.option("--no-verify", is_flag=True, help="Do not check the bundle's hashes at load.")
@click.option(
    "--no-build", is_flag=True, help="Fail where an engine would have to compile the graphs first."
)
@click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object per result on standard output."
)
@click.option(
    "-v", "--verbose", is_flag=True, help="Print what runs where, and the seconds per stage."
)
def main(
    arguments: tuple[str, ...],
    more: tuple[str, ...],
    bundle: str | None,
    out: Path,
    formats: tuple[str, ...],
    categories: tuple[str, ...],
    no_target_threshold: float,
    running: Running,
    draft: bool,
    no_verify: bool,
    no_build: bool,
    as_json: bool,
    verbose: bool,
) -> None:
    """Finds what EXPRESSIONs say in IMAGEs and writes masks.

    An IMAGE is a file, a folder, or a .jsonl file with one {"image": ..., "expression": ...} a
    line. The first argument that is neither a file nor named like one begins the expressions.

    \b
    Examples:
      ris-infer photo.jpg "left man"
      ris-infer photo.jpg "left man" "the dog" --format overlay --format rle
      ris-infer photos/ -e "red car" --out masks
      ris-infer requests.jsonl --json
      ris-infer photo.jpg "left man" --category auto
    """
    sources, expressions = _split(arguments)
    expressions += more
    requests = collect(sources, expressions, _per_expression(categories, len(expressions)))
    with running.load(find_bundle(bundle), verify=not no_verify, build=not no_build) as model:
        if not model.trained:
            click.echo(
                "Warning: this bundle has made-up weights; its masks mean nothing.", err=True
            )
        if verbose:
            _say_what_runs(model)
        writer = ResultWriter(out, formats)
        failures: list[str] = []
        for request in track(requests, len(requests), "Images"):
            try:
                results, files = _answer(request, model, writer, out, no_target_threshold, draft)
            except ImageError as error:
                failures.append(str(error))
                continue
            for result in results:
                if as_json:
                    click.echo(
                        json.dumps(describe(request.image, result, model), ensure_ascii=False)
                    )
                else:
                    _print(request, result, verbose)
            if not as_json:
                for file in files:
                    click.echo(f"  wrote {file}")
    if failures:
        done = len(requests) - len(failures)
        rest = f" ({done} of {len(requests)} images done)" if len(requests) > 1 else ""
        raise RisError("; ".join(failures) + rest)


def _split(arguments: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    # the first argument is an image whatever it looks like, so that a wrong name is said to be one
    count = 1
    while count < len(arguments) and looks_like_image(arguments[count]):
        count += 1
    return list(arguments[:count]), arguments[count:]


def _per_expression(categories: tuple[str, ...], expressions: int) -> tuple[str, ...] | None:
    if not categories:
        return None
    return categories * expressions if len(categories) == 1 else categories


def _answer(
    request: Request,
    model: Model,
    writer: ResultWriter,
    out: Path,
    no_target_threshold: float,
    draft: bool,
) -> tuple[list[Segmentation], list[Path]]:
    rgb = None
    if draft:  # an overlay, if one is wanted, reads the file again
        scene = model.encode_image(request.image, expressions=request.expressions, draft=True)
    else:
        start = time.perf_counter()
        rgb = load_rgb(request.image)
        loaded = time.perf_counter() - start
        scene = model.encode_image(rgb, expressions=request.expressions)
        scene.timings["image.load"] = (
            loaded  # of the file; `encode_image` was handed pixels, which the overlay needs too
        )
    results = scene.segment_many(
        request.expressions, categories=request.categories, no_target_threshold=no_target_threshold
    )
    with disk_errors(out):
        return results, writer.write(request.image, rgb, results, model)


def _print(request: Request, result: Segmentation, verbose: bool) -> None:
    share = result.mask.mean()
    found = (
        "no target"
        if result.is_no_target
        else f"{share:.1%} of the image, score {result.score:.2f}"
    )
    probability = (
        "" if result.no_target is None else f", no-target probability {result.no_target:.2f}"
    )
    click.echo(f'{request.image}: "{result.expression}": {found}{probability}')
    for note in result.notes:
        click.echo(f"  note: {note}", err=True)
    if verbose:
        times = ", ".join(
            f"{name} {seconds * 1000:.1f}" for name, seconds in result.timings.items()
        )
        click.echo(f"  milliseconds: {times}")


def _say_what_runs(model: Model) -> None:
    for stage, info in model.sessions.items():
        entry = model.bundle.manifest.graphs[stage]
        click.echo(
            f"{stage}: {entry.precision} graph on {info.engine} {info.version}, {info.device}"
            f"{f' in {info.precision}' if info.precision else ''} ({info.where})",
            err=True,
        )
