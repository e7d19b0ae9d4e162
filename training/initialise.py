"""Starting values for what has no pre-trained weights. The modules' own constructors do most of
it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles
from ris.reference.checkpoint.loading import partial_weights
from ris.reference.config import ModelConfig
from ris.reference.model import RISModel
from ris.reference.pixel_decoder import DeformableAttention


def fresh_model(config: ModelConfig, seed: int) -> RISModel:
    """An untrained model of `config`, float32, every parameter drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = RISModel(config)
        for module in model.modules():
            if isinstance(module, DeformableAttention):
                _spread_samples(module)
        positions = model.sam.image_encoder.pos_embed
        assert positions is not None
        visual: Any = model.clip_dense.clip_model.visual
        with torch.no_grad():
            positions.copy_(
                _grid_positions(config.sam.grid, config.sam.width).unflatten(
                    1, positions.shape[1:3]
                )
            )
            visual.positional_embedding[1:] = _grid_positions(config.clip.grid, config.clip.width)[
                0
            ]
        for name, parameter in model.text_encoder.named_parameters():
            if (
                name.startswith("encoder.") and parameter.ndim == 2
            ):  # BERT's own 0.02 is for 768 channels
                nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)
        model.text_embeddings.zero_()
        for scale in (model.decoder.logit_scale, model.decoder.logit_scale_condsim):
            nn.init.constant_(scale, math.log(1 / 0.07))
    return model


def starting_model(
    config: ModelConfig, seed: int, files: WeightFiles, say: Callable[[str], None]
) -> RISModel:
    """`fresh_model`, with every tensor that the weight files have: pre-trained encoders, or a whole
    checkpoint.

    say: called with a line on what came from where. Raises CheckpointError for files that cannot be
    read and for tensors of other sizes than the preset's.
    """
    model = fresh_model(config, seed)
    entries, notes = partial_weights(files, config)
    if config.query == "category" and "text_embeddings" not in entries:
        raise CheckpointError(
            "the category variant needs its table: give --clip-checkpoint with CLIP's text tower,"
            " or a checkpoint with text_embeddings"
        )
    if not entries:
        return model
    state = model.state_dict()
    wrong = [
        f"{key} is {list(entries[key].shape)}, the preset's is {list(value.shape)}"
        for key, value in state.items()
        if key in entries and entries[key].shape != tuple(value.shape)
    ]
    if wrong:
        raise CheckpointError(
            f"the weight files are not the preset's ({config.preset}): {'; '.join(wrong[:3])}"
        )
    given = [key for key in state if key in entries]
    model.load_state_dict({key: entries[key].read() for key in given}, strict=False)
    for note in notes:
        say(note)
    say(f"{len(given)} of {len(state)} tensors come from the files, the others start at random")
    return model


def _grid_positions(side: int, width: int) -> torch.Tensor:
    """[1, side * side, width]: half the channels sines and cosines of x, half of y. From these,
    left and right can be told apart from the first step on."""
    rates = 1e-4 ** (torch.arange(width // 4) / (width // 4))
    angles = torch.arange(side)[:, None] * rates
    line = torch.cat([angles.sin(), angles.cos(), torch.zeros(side, (width % 4) // 2)], 1)
    x, y = line[None].expand(side, -1, -1), line[:, None].expand(-1, side, -1)
    return 0.5 * torch.cat([x, y, torch.zeros(side, side, width % 2)], -1).flatten(0, 1)[None]


def _spread_samples(attention: DeformableAttention) -> None:
    """Each head starts looking in a direction of its own, each point a pixel further out, all with
    equal weight.
    """
    nn.init.zeros_(attention.sampling_offsets.weight)
    nn.init.zeros_(attention.attention_weights.weight)
    nn.init.zeros_(attention.attention_weights.bias)
    angles = torch.arange(attention.heads) * (2 * math.pi / attention.heads)
    direction = torch.stack([angles.cos(), angles.sin()], -1)
    direction = direction / direction.abs().amax(-1, keepdim=True)
    steps = torch.arange(1, attention.points + 1)[None, None, :, None]
    offsets = direction[:, None, None] * steps
    offsets = offsets.expand(-1, attention.levels, -1, -1)
    with torch.no_grad():
        attention.sampling_offsets.bias.copy_(offsets.reshape(-1))
    for layer in (attention.value_proj, attention.output_proj):
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
