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
from ris.engines.errors import RisError
from ris.reference.config import PRESETS
from ris.runtime.commands.console import RisCommand
from ris.runtime.commands.weight_files import weight_file_options
from ris.training.recipe import RECIPES, Recipe, changed

if TYPE_CHECKING:
    from ris.training.data import Source
    from ris.training.loop import Progress, Trainer

# scene numbers: a run's own start at its seed times SEED_SCENES, its lessons LESSONS_FIRST later;
# from VALIDATION_FIRST on, which the runs of seed 0 never reach, are those of every run's
# validation
LESSONS_FIRST, VALIDATION_FIRST, SEED_SCENES = 10**8, 10**9, 10**10


@click.command(cls=RisCommand)
@click.option(
    "--data",
    type=click.Choice(["scenes", *DATASETS]),
    default="scenes",
    show_default=True,
    help="Drawn scenes, or a data set in its authors' files.",
)
@click.option(
    "--root",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="The folder of the data set's files (docs/guide/train.md).",
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
    "--stop", type=click.IntRange(1), help="Leave after this step; the run goes on later."
)
@click.option(
    "--learning-rate", type=click.FloatRange(0, min_open=True), help="Peak learning rate."
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
    "--restart", is_flag=True, help="Start anew; the old run is renamed to *.old, not removed."
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
    checkpoint: Path | None,
    sam: Path | None,
    clip: Path | None,
    bert: Path | None,
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
    for package in ("torch", "segment_anything", "open_clip", "transformers", "matplotlib"):
        if importlib.util.find_spec(package) is None:
            raise RisError(f"ris-train needs {package}: {pip_install('export', 'train')}")
    scenes = data == "scenes"
    if not scenes and root is None:
        raise RisError(f"--data {data} needs --root, the folder of its files")
    if scenes and (root or images or features):
        raise RisError(
            "--root, --images and --features belong to data sets, --data scenes draws its own"
            " images"
        )
    if lessons and not scenes:
        raise RisError(
            "--lessons belong to --data scenes, which know what every patch of an image shows"
        )
    plan = changed(
        RECIPES[recipe or ("demo" if scenes else "supplement")],
        steps=steps,
        lessons=lessons,
        learning_rate=learning_rate,
        images=batch_images,
        expressions=batch_expressions,
        seed=seed,
    )
    if scenes and variant == "category":
        raise RisError(
            "--variant category needs a data set with COCO categories; some things in the scenes"
            " have none"
        )
    trainer = _trainer(
        plan,
        data,
        root,
        images,
        preset or ("demo" if scenes else "vitb-vitl336"),
        variant,
        out,
        vocabulary,
        {"checkpoint": checkpoint, "sam": sam, "clip": clip, "bert": bert},
        features,
        device,
        threads,
        workers,
    )
    if restart and out.exists():
        os.replace(out, _free_name(out))
    resumed = trainer.resume()
    click.echo(
        f"{out}: {'goes on at step ' + str(trainer.step) if resumed else 'a new run'}, to step"
        f" {plan.steps}"
    )
    if plan.bf16 and not trainer.bf16:
        click.echo("this processor has no bfloat16: computes in FP32")
    _run(trainer, plan, stop)
    weights = out / "model.safetensors"
    words = f" --vocabulary {vocabulary}" if vocabulary else f" --bert {bert}" if bert else ""
    click.echo(f"Wrote {weights}\nNext:\n  ris-export --checkpoint {weights}{words}")


def _free_name(path: Path) -> Path:
    numbers = (path.with_name(f"{path.name}.old{n or ''}") for n in range(10_000))
    return next(candidate for candidate in numbers if not candidate.exists())


def _trainer(
    plan: Recipe,
    data: str,
    root: Path | None,
    images: Path | None,
    preset: str,
    variant: str,
    out: Path,
    vocabulary: Path | None,
    files: dict[str, Path | None],
    features: Path | None,
    device: str,
    threads: int | None,
    workers: int,
) -> Trainer:
    import torch

    from ris.data.datasets import read_refer
    from ris.reference.checkpoint import WeightFiles
    from ris.reference.tokenizer import tokenizer_from
    from ris.training.initialise import starting_model
    from ris.training.loop import Trainer
    from ris.training.refer_source import ReferSource
    from ris.training.scene_source import SceneSource

    if threads:
        torch.set_num_threads(threads)
    if device != "cpu" and not torch.cuda.is_available():
        raise RisError(f"--device {device}: PyTorch sees no CUDA device here")
    config = PRESETS[preset]
    if variant == "category":
        config = config.with_category_query()
    size = config.sam.image_size
    source: Source
    validation: Source
    lessons: Source | None = None
    if data == "scenes":
        first = plan.seed * SEED_SCENES
        source = SceneSource(
            "train", size, plan.images, plan.expressions, first, plan.augment, plan.mix
        )
        validation = SceneSource("train", size, plan.images, plan.expressions, VALIDATION_FIRST)
        lessons = SceneSource(
            "train", size, plan.lesson_images, 4, first + LESSONS_FIRST, plan.augment
        )
        checks = 25
    else:
        assert root is not None
        source = ReferSource(
            read_refer(root, data, "train", images=images),
            size,
            plan.images,
            plan.expressions,
            plan.seed,
        )
        held = read_refer(root, data, "val", images=images)
        validation = ReferSource(held, size, plan.images, plan.expressions, shuffle=False)
        checks = min(25, len(validation))
    return Trainer(
        out,
        plan,
        lambda: starting_model(config, plan.seed, WeightFiles(**files), click.echo),
        source,
        validation,
        tokenizer_from(vocabulary or files["bert"], config),
        lesson_source=lessons,
        validation_steps=checks,
        workers=workers,
        device=device,
        features=features,
    )


def _run(trainer: Trainer, plan: Recipe, stop: int | None) -> None:
    console = Console()
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Bar(*columns, console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=stop or plan.steps, completed=trainer.step)

        def report(line: Progress) -> None:
            bar.update(task, completed=line.step)
            bar.console.print(_words(line), highlight=False, soft_wrap=True)
            if line.validation:
                from ris.training.plot import plot_log

                plot_log(trainer.folder / "log.jsonl", trainer.folder / "log.png")

        trainer.run(report=report, stop=stop)


def _words(line: Progress) -> str:
    losses = " ".join(f"{name} {value:.3f}" for name, value in line.losses.items())
    text = (
        f"{time.strftime('%H:%M:%S')} step {line.step}  {losses}  rate {line.rate:.1e} "
        f" {line.seconds:.0f} s"
    )
    if line.validation:
        for kind, figures in line.validation.items():
            text += f"\n  {kind:<10} " + " ".join(
                f"{name} {value:.3f}" for name, value in figures.items()
            )
    return text
