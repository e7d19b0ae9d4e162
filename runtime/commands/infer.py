"""`ris-infer`: images and expressions in, masks out. Thin over `ris.runtime.load`."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from ris.engines.errors import ExpressionError, ImageError, Skipped, refuse
from ris.engines.text import one_line, typed
from ris.runtime.asking import segment_each
from ris.runtime.bundle import open_bundle
from ris.runtime.commands.console import (
    LeftOut,
    RisCommand,
    disk_errors,
    print_json,
    require_writable,
    track,
)
from ris.runtime.commands.drawing import draw_options
from ris.runtime.commands.forms import form_option
from ris.runtime.commands.running import Running, running_options
from ris.runtime.cost import once_an_image_words, operations_in
from ris.runtime.drawn import Draws
from ris.runtime.image import load_rgb
from ris.runtime.model import Model, Scene
from ris.runtime.requests import Request, collect, looks_like_image
from ris.runtime.results import FORMATS, ResultWriter, describe
from ris.runtime.segmentation import Segmentation


@click.command(cls=RisCommand)
@click.argument(
    "arguments",
    nargs=-1,
    required=True,
    metavar="IMAGE... [EXPRESSION...]",
)
@click.option(
    "-e",
    "--expression",
    "more",
    multiple=True,
    help="An expression; may be repeated.",
)
@click.option(
    "--bundle",
    type=click.Path(),
    help="The bundle, a folder or hf://ORGANISATION/NAME. Default: $RIS_BUNDLE, ./ris-bundle, the "
    "built-in demo.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default=Path("ris-output"),
    show_default=True,
    help="Folder for the results. Where it is below a folder of images, it is passed over.",
)
@click.option(
    "--format",
    "formats",
    type=click.Choice(FORMATS),
    multiple=True,
    default=("mask", "overlay"),
    show_default=True,
    help="What to write; may be repeated. coco, yolo and labelme are labels of all images, which"
    " never replace a file that is there.",
)
@click.option(
    "--simplify",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    metavar="PIXELS",
    help="How far the polygons of polygons, yolo and labelme may be from the mask's edge, for fewer"
    " points; 0 is exact, 1 is smooth.",
)
@click.option(
    "--category",
    "categories",
    multiple=True,
    help="The object's COCO category, for models that ask by category; once, or once per "
    'expression. "auto" guesses it from the expression and says what it guessed.',
)
@click.option(
    "--no-target-threshold",
    type=click.FloatRange(0, 1),
    default=0.5,
    show_default=True,
    help='Above this probability the answer is "no target" and the mask is empty.',
)
@form_option
@draw_options
@running_options
@click.option(
    "--draft",
    is_flag=True,
    help="Decode large JPEG files smaller: faster, and the model sees slightly other values.",
)
@click.option("--no-verify", is_flag=True, help="Do not check the bundle's hashes at load.")
@click.option(
    "--no-build",
    is_flag=True,
    help="Fail where an engine would have to compile the graphs first.",
)
@click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object per result on standard output.",
)
@click.option(
    "-v",
    "--verbose",
    is_flag=True,
    help="Print what runs where, and the seconds per stage.",
)
def main(
    arguments: tuple[str, ...],
    more: tuple[str, ...],
    categories: tuple[str, ...],
    bundle: str | None,
    running: Running,
    no_verify: bool,
    no_build: bool,
    **given: Any,
) -> None:
    """Finds what EXPRESSIONs say in IMAGEs and writes masks.

    An IMAGE is a file, a folder, or a .jsonl file with one {"image": ..., "expression": ...} a
    line. The first argument that is neither a file nor named like one begins the expressions.

    \b
    Examples:
      ris-infer photo.jpg "left man"
      ris-infer photo.jpg "left man" "the dog" --format overlay --format rle
      ris-infer photos/ -e "red car" --out masks
      ris-infer dataset/images -e "red car" --format yolo --out dataset/labels
      ris-infer requests.jsonl --json
      ris-infer photo.jpg "left man" --category auto
    """
    options = Options(**given)
    require_writable(options.out, folder=True)
    left = LeftOut()
    sources, expressions = _split(arguments)
    asked = [typed(expression) for expression in (*expressions, *more)]
    requests = collect(sources, asked, categories, left, left.note, options.out)
    images = [request.image for request in requests]
    writer = ResultWriter(options.out, options.formats, images, options.simplify)
    path = running.find_bundle(bundle)
    host = open_bundle(path, verify=False).manifest.host  # `load` checks the hashes
    options.draws.check(host.drawn)
    host.text.form_named(options.form)  # raises for an unknown one
    with running.load(path, verify=not no_verify, build=not no_build) as model:
        if not model.trained:
            click.echo(
                "Warning: this bundle has made-up weights; its masks mean nothing.", err=True
            )
        if options.verbose:
            _say_what_runs(model)
        # a single question needs no list of what was left out
        single = len(requests) == 1 and len(requests[0].expressions) == 1 and not left.sentences
        answered = _answer_all(requests, model, writer, options, refuse if single else left)
        if options.verbose:
            _say_notes(model)
    answers = f"{sum(answered)} answer{'s' * (sum(answered) != 1)}"
    left.finish(f"{answers} about {len(answered)} of {len(requests)} images")


@dataclass(frozen=True)
class Options:
    """How the command line asked to answer the requests, and what to show and write."""

    out: Path
    """The folder for the results."""

    formats: tuple[str, ...]
    """What to write, of `FORMATS`."""

    simplify: float
    """How far polygons may be from the mask's edge, in pixels."""

    no_target_threshold: float
    """Above this probability the answer is "no target"."""

    form: str | None
    """The form that expressions are asked in; None for the model's own choice."""

    draws: Draws
    """The random numbers, for models that draw any."""

    draft: bool
    """Decode large JPEG files smaller."""

    as_json: bool
    """Print a JSON object for each result, in place of text."""

    verbose: bool
    """Print what runs where, and the seconds of each stage."""


def _split(arguments: tuple[str, ...]) -> tuple[list[str], tuple[str, ...]]:
    """The images and the expressions among the arguments."""
    # the first is an image whatever it looks like, so that a misspelt name is reported as one
    count = 1
    while count < len(arguments) and looks_like_image(arguments[count]):
        count += 1
    return list(arguments[:count]), arguments[count:]


def _answer_all(
    requests: list[Request],
    model: Model,
    writer: ResultWriter,
    options: Options,
    skipped: Skipped,
) -> list[int]:
    """Answers each request, prints and writes the results.

    Whatever ends it early, the labels have all that was answered before.

    Returns:
        How many answers there are about each image that has any.
    """
    counts: list[int] = []
    try:
        for request in track(requests, len(requests), "Images"):
            try:
                results, files = _answer(request, model, writer, options, skipped)
            except ImageError as error:
                skipped(f"{error} ({request.places[0]})" if request.places else str(error))
                continue
            if results:
                counts.append(len(results))
            _say(request, results, files, model, options)
    finally:
        if counts:
            with disk_errors(options.out):
                _say_written(writer.finish(), options)
    return counts


def _say(
    request: Request,
    results: list[Segmentation],
    files: list[Path],
    model: Model,
    options: Options,
) -> None:
    """Prints the answers about an image, and the files that were written."""
    if options.as_json:
        for result in results:
            print_json(describe(request.image, result, model))
        return
    for result in results:
        _print(request, result, options.verbose)
    _say_written(files, options)


def _say_written(files: list[Path], options: Options) -> None:
    if not options.as_json:
        for file in files:
            click.echo(f"  wrote {one_line(file)}")


def _answer(
    request: Request, model: Model, writer: ResultWriter, options: Options, skipped: Skipped
) -> tuple[list[Segmentation], list[Path]]:
    """The results, and the files they were written to."""
    rgb = None
    if options.draft:  # an overlay, if one is wanted, reads the file again
        scene = model.encode_image(request.image, expressions=request.expressions, draft=True)
    else:
        start = time.perf_counter()
        rgb = load_rgb(request.image)
        loaded = time.perf_counter() - start
        scene = model.encode_image(rgb, expressions=request.expressions)
        # `encode_image` timed pixels, since the overlay needs them too; reading the file is here
        scene.timings["image.load"] = loaded
    results = _ask(request, scene, model, options, skipped)
    with disk_errors(options.out):
        return results, writer.write(request.image, rgb, results, model)


def _ask(
    request: Request, scene: Scene, model: Model, options: Options, skipped: Skipped
) -> list[Segmentation]:
    """The answers to what can be asked.

    Raises ExpressionError where none of what was given by hand can be: no image would be answered.
    """
    texts, names = request.expressions, request.categories
    threshold, step = options.no_target_threshold, model.max_expressions
    answers = segment_each(
        scene, texts, names, threshold, step, draws=options.draws, form=options.form
    )
    results = [answer for answer in answers if isinstance(answer, Segmentation)]
    for number, answer in enumerate(answers):
        if isinstance(answer, ExpressionError):
            if request.places is None and not results:
                raise answer
            where = request.places[number] if request.places else f'"{texts[number]}"'
            skipped(f"{where}: {answer}")
    return results


def _print(request: Request, result: Segmentation, verbose: bool) -> None:
    """A line for the result, notes, and the seconds of each stage where asked for."""
    if result.is_no_target:
        found = "no target"
    else:
        found = f"{result.mask.mean():.1%} of the image, score {result.score:.2f}"
    if result.no_target is not None:
        found += f", no-target probability {result.no_target:.2f}"
    else:
        found += ' (the model cannot tell "no target")'
    click.echo(f'{one_line(request.image)}: "{one_line(result.expression)}": {found}')
    for note in result.notes:
        click.echo(f"  note: {one_line(note)}", err=True)
    if verbose:
        times = [f"{name} {seconds * 1000:.1f}" for name, seconds in result.timings.items()]
        click.echo(f"  milliseconds: {', '.join(times)}")


def _say_what_runs(model: Model) -> None:
    """A line for each graph, and one on those that run once an image."""
    for stage, info in model.sessions.items():
        graph = model.bundle.manifest.graphs[stage]
        computes = f" in {info.computes}" if info.computes else ""
        click.echo(
            f"{stage}: {graph.precision} graph on {info.engine} {info.version},"
            f" {info.device}{computes} ({info.where})",
            err=True,
        )
    if model.choice:
        click.echo(f"compute {model.choice.asked}: {model.choice.words}", err=True)
    bundle = model.bundle
    operations = operations_in(bundle.manifest)
    click.echo(once_an_image_words(bundle.wiring.image_stages, operations), err=True)
    if again := bundle.wiring.drawn_stages:
        click.echo(f"random numbers go into {again[0]}; a draw runs {', '.join(again)}", err=True)


def _say_notes(model: Model) -> None:
    """A line for each thing that the engines have to say, such as why there is no CUDA graph."""
    for stage, session in model.open_sessions.items():
        for note in session.notes:
            click.echo(f"note: {stage}: {one_line(note)}", err=True)
