"""Small layers that the models share: norms, convolutions and linear layers.

Parameter names follow the official checkpoints. The layers are written so that they also export
well: channel LayerNorm as a LayerNorm of tokens.
"""

from __future__ import annotations

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a map [B, C, H, W] at each position, eps 1e-6.

    "LN2d" in docs/reference/models/dfam.md.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels, eps=1e-6)

    def forward(self, input: Tensor) -> Tensor:
        # through [B, H*W, C]: OpenVINO copies for a permutation of four axes, not for this one
        tokens = super().forward(input.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).unflatten(2, input.shape[2:])


class ConvNorm(nn.Conv2d):
    """A convolution without bias and its norm, stored as `weight` and `norm.*`."""

    def __init__(self, inputs: int, outputs: int, kernel: int, norm: nn.Module) -> None:
        super().__init__(inputs, outputs, kernel, padding=kernel // 2, bias=False)
        self.norm = norm

    def forward(self, input: Tensor) -> Tensor:
        return self.norm(super().forward(input))


def fpn_step(coarse: Tensor, skip: Tensor, adapter: nn.Module, layer: nn.Module) -> Tensor:
    """One step of a feature pyramid network.

    Args:
        coarse: The map so far, [B, C, h, w].
        skip: The map whose size the result has, [B, inputs, H, W].
        adapter: Brings `skip` to C channels.
        layer: A convolution of the sum, C to C channels.

    Returns:
        [B, C, H, W].
    """
    resized = F.interpolate(coarse, size=skip.shape[-2:], mode="bilinear", align_corners=False)
    return F.relu(layer(adapter(skip) + resized))


class PointwiseConv1d(nn.Conv1d):
    """A linear layer on [B, N, C] whose weight is stored as a kernel-1 Conv1d's, [out, in, 1]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, 1)

    def forward(self, input: Tensor) -> Tensor:
        return F.linear(input, self.weight[..., 0], self.bias)


class InstanceNorm(nn.Module):
    """Normalises each channel of [B, N, C] over the N positions of an image; not affine, eps 1e-5.

    Spelled out, because FP16 implementations of the InstanceNormalization operator are wrong in
    places.
    """

    def forward(self, input: Tensor) -> Tensor:
        mean = input.mean(dim=1, keepdim=True)
        centred = input - mean
        variance = (centred * centred).mean(dim=1, keepdim=True)
        return centred / torch.sqrt(variance + 1e-5)


class GeluMLP(nn.Module):
    """Two linear layers with an exact GELU between them; keys `fc1`, `fc2`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, width)

    def forward(self, input: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(input)))


class MLP(nn.Module):
    """`layers` linear layers with ReLU between them; keys `layers.i.*`."""

    def __init__(self, inputs: int, hidden: int, outputs: int, layers: int) -> None:
        super().__init__()
        widths = [inputs] + [hidden] * (layers - 1) + [outputs]
        self.layers = nn.ModuleList(nn.Linear(n, k) for n, k in itertools.pairwise(widths))

    def forward(self, input: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            input = F.relu(layer(input))
        return self.layers[-1](input)
