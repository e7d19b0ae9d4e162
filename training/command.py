"""`ris-train`: trains a model on drawn scenes or on RefCOCO's files. Thin over `Trainer`."""

from __future__ import annotations

import importlib.util
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.progress import Progress as Bar

from ris import pip_install
from ris.data.datasets import DATASETS
from ris.engines.errors import RisError, Skipped
from ris.reference.config import PRESETS
from ris.runtime.commands.console import LeftOut, RisCommand
from ris.runtime.commands.weight_files import weight_file_options
from ris.training.options import SCENES, DataOptions, HardwareOptions, ModelOptions
from ris.training.recipe import RECIPES, changed

if TYPE_CHECKING:
    from ris.training.loop import Trainer
    from ris.training.run_folder import Progress

PACKAGES = ("torch", "segment_anything", "open_clip", "transformers", "matplotlib")
"""What the command needs beyond the runtime."""


@click.command(cls=RisCommand)
@click.option(
    "--data",
    type=click.Choice([SCENES, *DATASETS]),
    default=SCENES,
    show_default=True,
    help="Drawn scenes, or a data set in its authors' files.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The folder of the data set's files (docs/reference/data.md).",
)
@click.option(
    "--images",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The folder of COCO's train2014 images; default: looked for below --root.",
)
@click.option(
    "--preset",
    type=click.Choice(sorted(PRESETS)),
    help="The architecture. Default: demo on scenes, vitb-vitl336 on data sets.",
)
@click.option(
    "--variant",
    type=click.Choice(["cls", "category"]),
    default="cls",
    show_default=True,
    help="What the sparse branch asks with.",
)
@click.option(
    "--recipe",
    type=click.Choice(sorted(RECIPES)),
    help="Losses, optimiser and schedule. Default: demo on scenes, supplement on data sets.",
)
@click.option(
    "--out",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path("checkpoints/run"),
    show_default=True,
    help="The run's folder. A run that is there goes on.",
)
@click.option("--steps", type=click.IntRange(1), help="Optimiser steps of the whole run.")
@click.option(
    "--lessons",
    type=click.IntRange(0),
    help="First steps, for the encoders alone; 0 if they are trained.",
)
@click.option(
    "--stop",
    type=click.IntRange(1),
    help="Leave after this step; the run goes on later.",
)
@click.option(
    "--learning-rate",
    type=click.FloatRange(0, min_open=True),
    help="Peak learning rate.",
)
@click.option("--batch-images", type=click.IntRange(1), help="Images a step.")
@click.option("--batch-expressions", type=click.IntRange(1), help="Expressions an image.")
@click.option("--seed", type=click.IntRange(0), help="Seed of weights, scenes, batches and order.")
@click.option(
    "--vocabulary",
    type=click.Path(path_type=Path, exists=True),
    help="A vocab.txt or tokenizer.json. Default: the preset's.",
)
@weight_file_options()
@click.option(
    "--features",
    type=click.Path(path_type=Path, file_okay=False),
    help="Keep the frozen encoders' outputs in this folder and read them from there.",
)
@click.option("--device", default="cpu", show_default=True, help="cpu, or a CUDA device.")
@click.option("--threads", type=click.IntRange(1), help="CPU threads. Default: all.")
@click.option(
    "--workers",
    type=click.IntRange(0),
    default=1,
    show_default=True,
    help="Processes that make batches.",
)
@click.option(
    "--restart",
    is_flag=True,
    help="Start anew; the old run is renamed to *.old, not removed.",
)
def main(
    data: str,
    root: Path | None,
    images: Path | None,
    preset: str | None,
    variant: str,
    recipe: str | None,
    out: Path,
    steps: int | None,
    lessons: int | None,
    stop: int | None,
    learning_rate: float | None,
    batch_images: int | None,
    batch_expressions: int | None,
    seed: int | None,
    vocabulary: Path | None,
    files: dict[str, Path | None],
    features: Path | None,
    device: str,
    threads: int | None,
    workers: int,
    restart: bool,
) -> None:
    """Trains a model; a run that was stopped or killed goes on where its state was saved.

    \b
    Examples:
      ris-train --out checkpoints/demo
      ris-train --data grefcoco --root data --out checkpoints/grefcoco --features features \\
          --sam-checkpoint sam_vit_b_01ec64.pth --clip-checkpoint ViT-L-14-336px.pt \\
          --bert bert-base-uncased --device cuda
    """
    _require_packages()
    data_options = DataOptions(data, root, images, features)
    scenes = data_options.drawn
    _check(data_options, lessons, variant)

    architecture = preset or ("demo" if scenes else "vitb-vitl336")
    model_options = ModelOptions(architecture, variant, vocabulary, files)
    hardware = HardwareOptions(device, threads, workers)
    plan = changed(
        RECIPES[recipe or ("demo" if scenes else "supplement")],
        steps=steps,
        lessons=lessons,
        learning_rate=learning_rate,
        images=batch_images,
        expressions=batch_expressions,
        seed=seed,
    )

    from ris.training.prepare import prepare_run

    left = LeftOut()
    trainer = prepare_run(out, plan, data_options, model_options, hardware, left)
    if restart and out.exists():
        os.replace(out, _free_name(out))
    resumed = trainer.resume()
    begun = f"goes on at step {trainer.step}" if resumed else "a new run"
    click.echo(f"{out}: {begun}, to step {plan.steps}")
    if plan.bf16 and not trainer.bf16:
        click.echo("this processor has no bfloat16: computes in FP32")

    _run(trainer, stop, left)
    weights = out / "model.safetensors"
    words = ""
    if vocabulary:
        words = f" --vocabulary {vocabulary}"
    elif files["bert"]:
        words = f" --bert {files['bert']}"
    click.echo(f"Wrote {weights}\nNext:\n  ris-export --checkpoint {weights}{words}")
    left.finish("the model was trained on the others")


def _require_packages() -> None:
    """Raises RisError where a package is not installed."""
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise RisError(f"ris-train needs {package}: {pip_install('export', 'train')}")


def _check(data: DataOptions, lessons: int | None, variant: str) -> None:
    """Raises RisError for options that do not go together."""
    data.check()
    if lessons and not data.drawn:
        raise RisError(
            "--lessons belong to --data scenes, which know what every patch of an image shows"
        )
    if data.drawn and variant == "category":
        raise RisError(
            "--variant category needs a data set with COCO categories; some things in the scenes"
            " have none"
        )


def _free_name(path: Path) -> Path:
    """The first of `path`.old, .old1, .old2 and so on that does not exist."""
    numbers = (path.with_name(f"{path.name}.old{n or ''}") for n in range(10_000))
    return next(candidate for candidate in numbers if not candidate.exists())


def _run(trainer: Trainer, stop: int | None, skipped: Skipped) -> None:
    """Runs the trainer, with its log on the terminal and as a picture in its folder."""
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        total = stop or trainer.recipe.steps
        task = bar.add_task("training", total=total, completed=trainer.step)

        def report(line: Progress) -> None:
            bar.update(task, completed=line.step)
            bar.console.print(_words(line), highlight=False, soft_wrap=True)
            if line.validation:
                from ris.training.plot import plot_log

                plot_log(trainer.folder / "log.jsonl", trainer.folder / "log.png")

        trainer.run(report=report, stop=stop, skipped=skipped)


def _words(line: Progress) -> str:
    """A line of the log for people; the validation's figures in lines of their own."""
    now = time.strftime("%H:%M:%S")
    losses = _figures(line.losses)
    text = f"{now} step {line.step}  {losses}  rate {line.rate:.1e}  {line.seconds:.0f} s"
    for kind, figures in (line.validation or {}).items():
        text += f"\n  {kind:<10} {_figures(figures)}"
    return text


def _figures(values: dict[str, float]) -> str:
    return " ".join(f"{name} {value:.3f}" for name, value in values.items())
