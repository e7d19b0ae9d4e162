"""The model that a run starts with: pre-trained weights, and starting values for the rest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles
from ris.reference.checkpoint.entries import Entry
from ris.reference.checkpoint.finite import require_finite
from ris.reference.checkpoint.loading import partial_weights
from ris.reference.dfam.category_table import compute_sentence_start, text_tower
from ris.reference.dfam.config import FAMILY, ModelConfig
from ris.reference.dfam.keys import TABLE
from ris.reference.dfam.model import RISModel
from ris.reference.layers.deformable import DeformableAttention
from ris.training.initial_values import released_values, spread_samples
from ris.training.recipe import Objective, Recipe
from ris.training.sentence_start import set_sentence_start


def fresh_model(config: ModelConfig, seed: int, objective: Objective = "released") -> RISModel:
    """An untrained model of `config`, float32, every parameter drawn from `seed`.

    objective: whose starting values (`Recipe.objective`). The encoders' are the same ones.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RISModel(config)
        for module in model.modules():
            if isinstance(module, DeformableAttention):
                spread_samples(module)
        _set_positions(model)
        _scale_bert(model)
        model.text_embeddings.zero_()
        if objective == "demo":
            for scale in (model.decoder.logit_scale, model.decoder.logit_scale_condsim):
                nn.init.constant_(scale, math.log(1 / 0.07))
        else:
            released_values(model)
    set_sentence_start(model, None)
    return model


def starting_model(
    config: ModelConfig, recipe: Recipe, files: WeightFiles, say: Callable[[str], None]
) -> RISModel:
    """`fresh_model`, with every tensor that the weight files have.

    Args:
        config: The preset.
        recipe: Its seed is that of the tensors that the files do not have; its class term needs
            what CLIP's text tower says.
        files: Pre-trained encoders, or a whole checkpoint.
        say: Called with each line about which tensors came from which file.

    Raises:
        CheckpointError: For files that cannot be read, for tensors of other sizes than the
            preset's, for values that are NaN or infinite, and where the category table or CLIP's
            state of a sentence is needed and missing.
    """
    model = fresh_model(config, recipe.seed, recipe.objective)
    classes = recipe.objective == "released" and recipe.weights.classes > 0
    # the [CLS] variant needs no table but for the class term
    asked = config.with_category_query() if classes else config
    entries, notes = partial_weights(files, asked, FAMILY)
    if config.query == "category" and TABLE not in entries:
        raise CheckpointError(
            "the category variant needs its table: give --clip-checkpoint with CLIP's text tower,"
            " or a checkpoint with text_embeddings"
        )
    if classes:
        _require_class_texts(entries, config, recipe)
        set_sentence_start(model, compute_sentence_start(entries, config))
    if not entries:
        return model

    _load(model, entries)
    for note in notes:
        say(note)
    state = model.state_dict()
    given = sum(key in entries for key in state)
    say(f"{given} of {len(state)} tensors come from the files, the others start at random")
    return model


def _require_class_texts(entries: dict[str, Entry], config: ModelConfig, recipe: Recipe) -> None:
    """Raises CheckpointError where the files lack what the class term compares queries with."""
    lacking = []
    if TABLE not in entries:
        lacking.append("a category table (text_embeddings)")
    if text_tower(entries, config) is None:
        lacking.append("CLIP's text tower, which says what a sentence's vector is")
    elif config.clip.text_width != config.clip.embed_dim:
        lacking.append("a text tower whose states are as long as its vectors")
    if lacking:
        raise CheckpointError(
            f"the recipe {recipe.name} has a class term, and the weight files lack"
            f" {' and '.join(lacking)}: give --clip-checkpoint with CLIP's text tower, or a recipe"
            " without the term (supplement)"
        )


def _load(model: RISModel, entries: dict[str, Entry]) -> None:
    """Gives the model the tensors of the files. Raises CheckpointError as `starting_model`."""
    state = model.state_dict()
    given = [key for key in state if key in entries]
    wrong = [
        f"{key} is {list(entries[key].shape)}, the preset's is {list(state[key].shape)}"
        for key in given
        if entries[key].shape != tuple(state[key].shape)
    ]
    if wrong:
        raise CheckpointError(
            f"the weight files are not the preset's ({model.config.preset}): {'; '.join(wrong[:3])}"
        )
    require_finite(entries, given)
    model.load_state_dict({key: entries[key].read() for key in given}, strict=False)


def _set_positions(model: RISModel) -> None:
    """Gives both image encoders positions that tell left from right from the first step on."""
    sam, clip = model.config.sam, model.config.clip
    positions = model.sam.image_encoder.pos_embed
    assert positions is not None
    visual: Any = model.clip_dense.clip_model.visual
    with torch.no_grad():
        on_grid = _grid_positions(sam.grid, sam.width).unflatten(1, positions.shape[1:3])
        positions.copy_(on_grid)
        # the first position is the class token's
        visual.positional_embedding[1:] = _grid_positions(clip.grid, clip.width)[0]


def _grid_positions(side: int, width: int) -> Tensor:
    """[1, side * side, width]: half the channels are sines and cosines of x, half of y."""
    rates = 1e-4 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos(), torch.zeros(side, (width % 4) // 2)], 1)
    x, y = line[None].expand(side, -1, -1), line[:, None].expand(-1, side, -1)
    return 0.5 * torch.cat([x, y, torch.zeros(side, side, width % 2)], -1).flatten(0, 1)[None]


def _scale_bert(model: RISModel) -> None:
    """Draws BERT's matrices anew by their width: its own deviation of 0.02 is for 768 channels."""
    for name, parameter in model.bert.named_parameters():
        if name.startswith("encoder.") and parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
