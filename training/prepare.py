"""From what `ris-train` is told to the `Trainer` that does it."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from ris.data.datasets import read_refer
from ris.engines.errors import RisError, Skipped, refuse
from ris.engines.processor import core_limit
from ris.reference.checkpoint import WeightFiles
from ris.reference.config import PRESETS
from ris.reference.model import RISModel
from ris.reference.tokenizer import tokenizer_from
from ris.training.data import Sources
from ris.training.initialise import starting_model
from ris.training.loop import Trainer
from ris.training.options import DataOptions, HardwareOptions, ModelOptions
from ris.training.recipe import Recipe
from ris.training.refer_source import ReferSource
from ris.training.scene_source import SceneSource

SEED_SCENES = 10**10
"""The scenes of a run are numbered from its seed times this."""

LESSONS_FIRST = 10**8
"""The scenes of its lessons are numbered from this far above the run's first scene."""

VALIDATION_FIRST = 10**9
"""The scenes of every run's validation are numbered from this, which runs of seed 0 never reach."""

LESSON_EXPRESSIONS = 4
"""Expressions per scene in the lessons."""

VALIDATION_STEPS = 25
"""The most batches that a validation has."""


def prepare_run(
    out: Path,
    recipe: Recipe,
    data: DataOptions,
    model: ModelOptions,
    hardware: HardwareOptions,
    skipped: Skipped = refuse,
) -> Trainer:
    """The run that is asked for, before its first step.

    Args:
        out: The run's folder.
        recipe: What the run does.
        data: What it trains on.
        model: The model it trains.
        hardware: What it computes with.
        skipped: Gets a sentence for each image of the data set whose file is missing.

    Raises:
        RisError: Where the device, a data set's file or a weight file is not as it must be, and by
            default in place of leaving an image out.
    """
    if threads := hardware.threads or core_limit():
        torch.set_num_threads(threads)
    if hardware.device != "cpu" and not torch.cuda.is_available():
        raise RisError(f"--device {hardware.device}: PyTorch sees no CUDA device here")

    config = PRESETS[model.preset]
    if model.variant == "category":
        config = config.with_category_query()
    side = config.sam.image_size
    sources = _scenes(recipe, side) if data.drawn else _data_set(data, recipe, side, skipped)

    def make_model() -> RISModel:
        return starting_model(config, recipe.seed, WeightFiles(**model.files), click.echo)

    return Trainer(
        out,
        recipe,
        make_model,
        sources,
        tokenizer_from(model.vocabulary or model.files["bert"], config),
        workers=hardware.workers,
        device=hardware.device,
        features=data.features,
    )


def _scenes(recipe: Recipe, side: int) -> Sources:
    """Drawn scenes for training, validation and lessons."""
    images, expressions, augment = recipe.images, recipe.expressions, recipe.augment
    first = recipe.seed * SEED_SCENES
    begin = first + LESSONS_FIRST
    return Sources(
        training=SceneSource("train", side, images, expressions, first, augment, recipe.mix),
        validation=SceneSource("train", side, images, expressions, VALIDATION_FIRST),
        validation_steps=VALIDATION_STEPS,
        lessons=SceneSource(
            "train", side, recipe.lesson_images, LESSON_EXPRESSIONS, begin, augment
        ),
    )


def _data_set(data: DataOptions, recipe: Recipe, side: int, skipped: Skipped) -> Sources:
    """A data set's train split for training, its val split for validation."""
    assert data.root is not None
    images, expressions = recipe.images, recipe.expressions
    train = read_refer(data.root, data.name, "train", images=data.images, skipped=skipped)
    val = read_refer(data.root, data.name, "val", images=data.images, skipped=skipped)
    validation = ReferSource(val, side, images, expressions, shuffle=False)
    return Sources(
        training=ReferSource(train, side, images, expressions, recipe.seed),
        validation=validation,
        validation_steps=min(VALIDATION_STEPS, len(validation)),
    )
