"""From what `ris-train` is told to the `Trainer` that does it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import click
import torch
from tokenizers import Tokenizer

from ris.data.datasets import DATASETS, ReferData
from ris.data.datasets.refer_files import read_files
from ris.engines.errors import CheckpointError, Skipped, refuse
from ris.engines.processor import core_limit
from ris.reference.checkpoint import WeightFiles, inspect
from ris.reference.checkpoint.loading import partial_weights
from ris.reference.dfam.config import FAMILY, PRESETS, ModelConfig
from ris.reference.dfam.keys import BERT, CLIP_VISUAL, SAM
from ris.reference.dfam.model import RISModel, empty_model
from ris.reference.dfam.rules import key_rules
from ris.reference.tokenizer import tokenizer_from
from ris.training.devices import is_main
from ris.training.initialise import starting_model
from ris.training.loading import say_aside
from ris.training.loop import Trainer
from ris.training.measure import BatchValidation, Validation
from ris.training.options import DataOptions, HardwareOptions, ModelOptions, RunOptions
from ris.training.published import PublishedValidation
from ris.training.reading import hold_out, read_for_training
from ris.training.recipe import Recipe
from ris.training.refer_source import ReferSource, ReferSubset
from ris.training.samples import Sources
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
"""Batches of drawn scenes that a validation has."""

_OPTIONS = {SAM: "--sam-checkpoint", CLIP_VISUAL: "--clip-checkpoint", BERT: "--bert"}
"""What the released code begins with from files, whether it trains or not, and the options."""


@dataclass(frozen=True)
class Request:
    """A run as it is asked for."""

    recipe: Recipe
    """What the run does."""

    data: DataOptions
    """What it trains on."""

    model: ModelOptions
    """The model it trains."""

    hardware: HardwareOptions
    """What it computes with."""

    options: RunOptions
    """How it is kept and watched."""


def prepare_run(out: Path, request: Request, skipped: Skipped = refuse) -> Trainer:
    """The run that is asked for, before its first step.

    Args:
        out: The run's folder.
        request: The run.
        skipped: Gets a sentence for each image of the data set whose file is missing.

    Raises:
        RisError: Where the device, a data set's file or a weight file is not as it must be, and by
            default in place of leaving an image out.
    """
    if threads := request.hardware.threads or core_limit():
        torch.set_num_threads(threads)
    data, model, recipe = request.data, request.model, request.recipe
    files = WeightFiles(**model.files)
    config = model_config(model)
    tokenizer = tokenizer_from(model.vocabulary or files.bert, config)
    validation: Validation | None = None
    if data.drawn:
        sources = _scenes(recipe, config.sam.image_size)
    else:
        sources, validation = _data_sets(data, recipe, config, tokenizer, skipped)
    if not model.random_encoders:
        require_encoders(config, recipe, files)

    say = click.echo if is_main() else _nothing

    def make_model() -> RISModel:
        return starting_model(config, recipe, files, say)

    return Trainer(
        out, recipe, make_model, sources, tokenizer, request.hardware, request.options, validation
    )


def _nothing(line: str) -> None:
    """What processes other than the main one say."""


def model_config(model: ModelOptions) -> ModelConfig:
    """The architecture: a preset's, or the checkpoint's own.

    Raises RisError for a checkpoint that cannot be read, and without either.
    """
    if model.preset is not None:
        config = PRESETS[model.preset]
    else:
        config = inspect(WeightFiles(**model.files), only=FAMILY).config
    if model.supplement:
        config = config.with_supplement()
    if model.variant == "category":
        return config.with_category_query()
    if model.variant == "cls" and config.query == "category":
        return replace(config, query="cls", no_target="linear" if model.supplement else "mlp")
    return config


def require_encoders(config: ModelConfig, recipe: Recipe, files: WeightFiles) -> None:
    """Raises CheckpointError where SAM, CLIP's image tower or BERT would start at random.

    The demo's recipe trains all of them from nothing.
    """
    if recipe.objective == "demo":
        return
    entries, _ = partial_weights(files, config, FAMILY)
    module_of = key_rules(config).module_of
    parts = {
        module_of(name): option
        for name, _ in empty_model(config).named_parameters()
        for prefix, option in _OPTIONS.items()
        if name.startswith(prefix) and name not in entries
    }
    if parts:
        options = dict.fromkeys(parts.values())
        raise CheckpointError(
            f"no file has the weights of {', '.join(parts)}, with which the recipe {recipe.name}"
            f" begins: give {', '.join(options)}, or a whole --checkpoint, or --random-encoders to"
            " try what nothing can come of"
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


def read_data(
    data: DataOptions, name: str, split: str, skipped: Skipped = lambda sentence: None
) -> ReferData:
    """A data set's split, or a JSONL file.

    Args:
        data: Where the files are.
        name: A data set, or the path of a JSONL file.
        split: "train", or the one to validate on.
        skipped: Gets a sentence for whatever cannot be used.

    Raises:
        RisError: As `read_for_training`.
    """
    return read_for_training(name, split, root=data.root, images=data.images, skipped=skipped)


def _data_sets(
    data: DataOptions,
    recipe: Recipe,
    config: ModelConfig,
    tokenizer: Tokenizer,
    skipped: Skipped,
) -> tuple[Sources, Validation]:
    """The data sets' train splits, mixed, and what is validated on.

    Args:
        data: The data sets.
        recipe: How many samples a step has, and the seed of their order.
        config: The model's sizes.
        tokenizer: Its tokenizer.
        skipped: Gets a sentence for whatever cannot be used.
    """
    side = config.sam.image_size

    mix = [(read_data(data, name, "train", skipped), weight) for name, weight in data.mix]
    name, split = data.validates_on, data.validation_split
    if name is None:
        (own, weight), *others = mix
        own, judged = hold_out(own)
        mix = [(own, weight), *others]
        count = sum(len(image.references) for image in judged.images)
        if is_main():
            say_aside(
                f"without --validation {count} sentences of {own.name}, about"
                f" {len(judged.images)} of its images, are held out of training to validate on"
            )
    else:
        judged = read_data(data, name, split, skipped)
    training = ReferSource(mix, side, recipe.samples, recipe.group, recipe.seed)
    subset = ReferSubset(judged, side, data.validation_samples, group=recipe.group)
    sources = Sources(training, subset, subset.steps)
    if name is None or name not in DATASETS:
        return sources, BatchValidation(subset, subset.steps, tokenizer)
    assert data.root is not None
    files = read_files(data.root, name, images=data.images)
    return sources, PublishedValidation(subset, files, split, tokenizer, data.protocol)
