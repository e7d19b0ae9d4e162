"""The options of `ris-train`."""

from __future__ import annotations

from pathlib import Path

import click

from ris.reference.dfam.config import PRESETS
from ris.runtime.commands.named_files import FolderOrName
from ris.runtime.commands.options import Command
from ris.runtime.commands.weight_files import weight_file_options
from ris.training.options import SCENES, TRACKERS
from ris.training.recipe import RECIPES

_NEW_FOLDER = click.Path(path_type=Path, file_okay=False)
_MANY = click.IntRange(1)

_DATA = (
    click.option(
        "--data",
        multiple=True,
        default=(SCENES,),
        show_default=True,
        metavar="NAME[:WEIGHT]",
        help="scenes, refcoco, refcoco+, refcocog, grefcoco, ref-zom or a .jsonl file; several are"
        " mixed by weight.",
    ),
    click.option(
        "--root",
        type=FolderOrName(),
        help="The folder of the data sets (see Data in the docs), or the name of one.",
    ),
    click.option(
        "--images",
        type=FolderOrName(),
        help="The folder of COCO's images, or coco-train2014; default: looked for below --root.",
    ),
    click.option(
        "--validation",
        metavar="NAME[:SPLIT]",
        help="A data set, its val split unless another is named (ref-zom has none: ref-zom:test),"
        " or a .jsonl file. Default: --data's first published set, else a twentieth of its first"
        " file, held out.",
    ),
    click.option(
        "--validation-samples",
        type=_MANY,
        help="Data sets: expressions of a validation, drawn once (500).",
    ),
    click.option(
        "--protocol",
        help="The published evaluator that counts them. Default: that of the data set's papers.",
    ),
)
_MODEL = (
    click.option(
        "--preset",
        type=click.Choice(sorted(PRESETS)),
        help="The architecture. Default: demo on scenes, vitb-vitl336 on data sets, a checkpoint's"
        " own.",
    ),
    click.option(
        "--variant",
        type=click.Choice(["cls", "category"]),
        help="What the sparse branch asks with. Default: category on RefCOCO, RefCOCO+ and"
        " RefCOCOg, cls on others, a checkpoint's own.",
    ),
    click.option(
        "--supplement", is_flag=True, help="The supplement's architecture, not the released code's."
    ),
    click.option(
        "--vocabulary",
        type=click.Path(path_type=Path, exists=True),
        help="A vocab.txt or tokenizer.json. Default: the preset's.",
    ),
    click.option(
        "--random-encoders",
        is_flag=True,
        help="Let SAM, CLIP and BERT start at random on data sets, which teaches nothing.",
    ),
)
_RECIPE = (
    click.option(
        "--recipe",
        type=click.Choice(sorted(RECIPES)),
        help="Losses, optimiser and schedule. Default: demo on scenes, supplement on data sets.",
    ),
    click.option("--steps", type=_MANY, help="Optimiser steps of the whole run."),
    click.option(
        "--lessons",
        type=click.IntRange(0),
        help="First steps, for the encoders alone; 0 if they are trained.",
    ),
    click.option(
        "--learning-rate",
        type=click.FloatRange(0, min_open=True),
        help="Peak learning rate; of a run that goes on, from there on.",
    ),
    click.option("--batch", "samples", type=_MANY, help="Data sets: samples a step."),
    click.option(
        "--group", type=_MANY, help="Data sets: samples whose sentences are contrasted (16)."
    ),
    click.option("--batch-images", "images_", type=_MANY, help="Scenes: images a step."),
    click.option("--batch-expressions", "expressions", type=_MANY, help="Scenes: per image."),
    click.option("--seed", type=click.IntRange(0), help="Seed of weights, data and order."),
)
_RUN = (
    click.option(
        "--out",
        type=_NEW_FOLDER,
        default=Path("checkpoints/run"),
        show_default=True,
        help="The run's folder. A run that is there goes on.",
    ),
    click.option("--stop", type=_MANY, help="Leave after this step; the run goes on later."),
    click.option("--log-every", type=_MANY, default=20, show_default=True, help="Steps."),
    click.option("--save-every", type=_MANY, default=200, show_default=True, help="Steps."),
    click.option("--validate-every", type=_MANY, default=500, show_default=True, help="Steps."),
    click.option("--keep", type=_MANY, default=2, show_default=True, help="States that are kept."),
    click.option(
        "--best-by",
        "metric",
        help="The validation's figure that says which weights are best. Default: gIoU or mIoU.",
    ),
    click.option(
        "--log",
        "trackers",
        type=click.Choice(TRACKERS),
        multiple=True,
        default=("csv", "tensorboard"),
        show_default=True,
        help="Where figures go besides log.jsonl.",
    ),
    click.option(
        "--features",
        type=_NEW_FOLDER,
        help="Keep the frozen encoders' outputs in this folder and read them from there.",
    ),
    click.option("--restart", is_flag=True, help="Start anew; the old run is renamed to *.old."),
    click.option(
        "--dry-run",
        is_flag=True,
        help="Say what is missing and what the run takes, as measured; write nothing.",
    ),
)
_HARDWARE = (
    click.option("--device", default="cpu", show_default=True, help="cpu, or a CUDA device."),
    click.option("--threads", type=_MANY, help="CPU threads. Default: all."),
    click.option(
        "--workers",
        type=click.IntRange(0),
        default=1,
        show_default=True,
        help="Processes that make batches, for each device.",
    ),
    click.option(
        "--gradient-checkpointing",
        "fewer_activations",
        is_flag=True,
        help="Compute activations anew on the way back: less memory, more time.",
    ),
)


def run_options(command: Command) -> Command:
    """Adds all options; the weight files come as one argument, `files`."""
    command = weight_file_options()(command)
    for option in reversed((*_DATA, *_MODEL, *_RECIPE, *_RUN, *_HARDWARE)):
        command = option(command)
    return command
