"""Starting values of the modules between the encoders, where they are not PyTorch's own."""

from __future__ import annotations

import math

import torch
from torch import nn

from ris.reference.dfam.model import RISModel
from ris.reference.layers.attention import Attention, FeedForwardLayer
from ris.reference.layers.deformable import DeformableAttention, EncoderLayer


def released_values(model: RISModel) -> None:
    """The released code's: Xavier for transformers, Kaiming for the pixel decoder's maps.

    Deformable attention has been given its own (`spread_samples`). Logit scales start at 1, which
    is a factor of e.
    """
    for module in model.modules():
        if isinstance(module, Attention):
            nn.init.xavier_uniform_(module.out_proj.weight)
        elif isinstance(module, FeedForwardLayer | EncoderLayer):
            nn.init.xavier_uniform_(module.linear1.weight)
            nn.init.xavier_uniform_(module.linear2.weight)

    decoder = model.clip_pixel_decoder
    for name, module in decoder.named_children():
        if name.startswith(("adapter_", "layer_")) or name == "mask_features":
            assert isinstance(module, nn.Conv2d)
            nn.init.kaiming_uniform_(module.weight, a=1)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for projection in decoder.input_proj:
        assert isinstance(projection, nn.Sequential)
        convolution = projection[0]
        assert isinstance(convolution, nn.Conv2d)
        assert convolution.bias is not None
        nn.init.xavier_uniform_(convolution.weight)
        nn.init.zeros_(convolution.bias)
    for scale in (model.decoder.logit_scale, model.decoder.logit_scale_condsim):
        nn.init.ones_(scale)


def spread_samples(attention: DeformableAttention) -> None:
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
