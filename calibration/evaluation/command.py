"""`ris-eval`: what a bundle, or the PyTorch model, scores on drawn scenes or a data set. Thin over `evaluate`."""

from __future__ import annotations

import dataclasses
import importlib
import importlib.util
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from ris.calibration.datasets import DATASETS, read_refer
from ris.calibration.evaluation.metrics import METRICS, Figures
from ris.calibration.evaluation.run import BundleSegmenter, Evaluation, Segmenter, evaluate
from ris.calibration.evaluation.samples import EvaluationImage, refer_images, scene_images
from ris.engines import DEVICE_NAMES, ENGINE_NAMES
from ris.engines.errors import RisError
from ris.runtime.commands.compile import load_showing
from ris.runtime.commands.console import RisCommand, find_bundle
from ris.runtime.commands.weight_files import require_flag, weight_file_options

REPORT_SECONDS = 10  # between progress lines off a terminal


@click.command(cls=RisCommand)
@click.argument("bundle", required=False, type=click.Path())
@click.option("--data", type=click.Choice(["scenes", *DATASETS]), default="scenes", show_default=True)
@click.option("--split", help="Default: heldout for scenes, val for data sets.")
@click.option(
    "--samples", type=click.IntRange(1), default=2000, show_default=True, help="Scenes: how many expressions."
)
@click.option("--root", type=click.Path(path_type=Path, exists=True, file_okay=False), help="The data set's folder.")
@click.option(
    "--images", type=click.Path(path_type=Path, exists=True, file_okay=False), help="COCO's train2014 images."
)
@click.option("--no-target-threshold", type=click.FloatRange(0, 1), default=0.5, show_default=True)
@click.option("--pytorch", is_flag=True, help="Evaluate the PyTorch model of --checkpoint instead of a bundle.")
@weight_file_options("--pytorch")
@click.option("--engine", type=click.Choice(ENGINE_NAMES), default="auto", show_default=True)
@click.option("--device", type=click.Choice(DEVICE_NAMES), default="auto", show_default=True)
@click.option("--threads", type=click.IntRange(1), help="CPU threads. Default: all cores.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON.")
def main(
    bundle: str | None,
    data: str,
    split: str | None,
    samples: int,
    root: Path | None,
    images: Path | None,
    no_target_threshold: float,
    pytorch: bool,
    engine: str,
    device: str,
    threads: int | None,
    as_json: bool,
    **files: Path | None,
) -> None:
    """Says what BUNDLE scores, by kind of expression. BUNDLE defaults to $RIS_BUNDLE, then ./ris-bundle.

    Masks are compared at the image's own size. Scenes are drawn, the same on every machine; their held-out split has
    things, backgrounds and phrasings that training never saw.

    \b
    Examples:
      ris-eval ris-bundle --samples 200
      ris-eval ris-bundle --data grefcoco --root data --split val
      ris-eval --pytorch --checkpoint checkpoints/demo/model.safetensors
    """
    require_flag(files, "--pytorch", pytorch)
    if pytorch and bundle:
        raise RisError("give a bundle or --pytorch, not both")
    if data == "scenes" and (root or images):
        raise RisError("--root and --images belong to data sets; --data scenes draws its own images")
    if data != "scenes" and root is None:
        raise RisError(f"--data {data} needs --root, the folder of its files")
    stream, total = _samples(data, split, samples, root, images)
    with _segmenter(bundle, pytorch, files, engine, device, threads) as (name, segmenter):
        found = _evaluate(segmenter, stream, total, no_target_threshold)
    if as_json:
        click.echo(json.dumps(dataclasses.asdict(found), indent=2))
    else:
        _print(name, found)


def _samples(
    data: str, split: str | None, samples: int, root: Path | None, images: Path | None
) -> tuple[Iterator[EvaluationImage], int]:
    """(the images, the number of expressions)."""
    if data == "scenes":
        if split not in (None, "train", "heldout"):
            raise RisError(f"scenes have no split {split!r}; they have train and heldout")
        return scene_images("train" if split == "train" else "heldout", samples), samples
    assert root is not None
    found = read_refer(root, data, split or "val", images=images)
    return refer_images(found), sum(len(image.references) for image in found.images)


@contextmanager
def _segmenter(
    bundle: str | None, pytorch: bool, files: dict[str, Path | None], engine: str, device: str, threads: int | None
) -> Iterator[tuple[str, Segmenter]]:
    """(its name, what to ask). The PyTorch model lives in `ris.export`: it is loaded by name, here only."""
    if not pytorch:
        path = find_bundle(bundle)
        with load_showing(path, engine=engine, device=device, threads=threads) as model:
            yield f"{path}, {model.bundle.manifest.precision}", BundleSegmenter(model)
        return
    if importlib.util.find_spec("torch") is None:
        raise RisError('--pytorch needs PyTorch: pip install "ris-runtime[cpu,export]"')
    live = importlib.import_module("ris.export.live_reference")
    yield f"{files['checkpoint']}, PyTorch FP32", live.ReferenceSegmenter(files, threads)


def _evaluate(segmenter: Segmenter, images: Iterator[EvaluationImage], total: int, threshold: float) -> Evaluation:
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    last = time.perf_counter()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("evaluating", total=total)

        def report(done: int, figures: Figures) -> None:
            nonlocal last
            if time.perf_counter() - last < (1 if console.is_terminal else REPORT_SECONDS):
                return
            last = time.perf_counter()
            so_far = f"mean IoU {figures.summary().get('miou', 0.0):.3f}"
            bar.update(task, completed=done, description=so_far)
            if not console.is_terminal:
                click.echo(f"{done} of {total} expressions, {so_far}", err=True)

        return evaluate(segmenter, images, threshold=threshold, report=report)


def _print(name: str, found: Evaluation) -> None:
    table = Table(title=name)
    table.add_column("kind")
    for metric in METRICS:
        table.add_column(metric, justify="right")
    for kind, figures in found.kinds.items():
        cells = [figures.get(metric) for metric in METRICS]
        table.add_row(kind, *("" if v is None else f"{v:.0f}" if v > 1 else f"{v:.3f}" for v in cells))
    Console(width=110).print(table)
    for metric, meaning in METRICS.items():
        click.echo(f"{metric}: {meaning}")
    if found.mirrored is not None:
        m = found.mirrored
        click.echo(
            f"left and right: {m.pairs} expressions asked with the words swapped too: {m.right:.3f} of the answers "
            f"right (IoU above 0.5), {m.moved:.3f} of the masks moved"
        )
