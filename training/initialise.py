"""Starting values for what has no pre-trained weights.

Most of them are drawn by the modules' own constructors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ris.engines.errors import CheckpointError
from ris.reference.checkpoint import WeightFiles
from ris.reference.checkpoint.finite import require_finite
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
        _set_positions(model)
        _scale_bert(model)
        model.text_embeddings.zero_()
        for scale in (model.decoder.logit_scale, model.decoder.logit_scale_condsim):
            nn.init.constant_(scale, math.log(1 / 0.07))
    return model


def starting_model(
    config: ModelConfig, seed: int, files: WeightFiles, say: Callable[[str], None]
) -> RISModel:
    """`fresh_model`, with every tensor that the weight files have.

    Args:
        config: The preset.
        seed: Seed of the tensors that the files do not have.
        files: Pre-trained encoders, or a whole checkpoint.
        say: Called with each line about which tensors came from which file.

    Raises:
        CheckpointError: For files that cannot be read, for tensors of other sizes than the
            preset's, for values that are NaN or infinite, and where the category variant's table is
            missing.
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
    given = [key for key in state if key in entries]
    wrong = [
        f"{key} is {list(entries[key].shape)}, the preset's is {list(state[key].shape)}"
        for key in given
        if entries[key].shape != tuple(state[key].shape)
    ]
    if wrong:
        raise CheckpointError(
            f"the weight files are not the preset's ({config.preset}): {'; '.join(wrong[:3])}"
        )

    require_finite(entries, given)
    model.load_state_dict({key: entries[key].read() for key in given}, strict=False)
    for note in notes:
        say(note)
    say(f"{len(given)} of {len(state)} tensors come from the files, the others start at random")
    return model


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
    for name, parameter in model.text_encoder.named_parameters():
        if name.startswith("encoder.") and parameter.ndim == 2:
            nn.init.normal_(parameter, std=parameter.shape[1] ** -0.5)


def _spread_samples(attention: DeformableAttention) -> None:
    """Spreads the points that the attention samples, all with equal weight.

    Each head looks in a direction of its own, each of its points one pixel further out.
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
