"""Layers folded into the linear one beside them, with weights of its own; the model's stay.

All of it is exact but for rounding, and done in double precision.
"""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import Tensor, nn

Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)
"""A linear layer."""


def conv_with_norm(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution that does what `conv` and the batch norm behind it do at inference.

    The convolution is square, with a stride of 1.
    """
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale = norm.weight.double() / (variance.double() + norm.eps).sqrt()
    own = torch.zeros_like(mean) if conv.bias is None else conv.bias
    bias = (own.double() - mean.double()) * scale + norm.bias.double()
    size, padding = conv.kernel_size[0], conv.padding[0]
    with torch.device("meta"):  # without weights, which are assigned
        folded = nn.Conv2d(conv.in_channels, conv.out_channels, size, padding=int(padding))
    return _with(folded, conv.weight.double() * scale[:, None, None, None], bias)


def linear_behind_norm(norm: nn.LayerNorm, linear: nn.Linear) -> nn.Linear:
    """A linear layer for what `norm` normalises without its affine part.

    Behind the plain normalisation it gives what `linear` gives behind `norm`.
    """
    weight = linear.weight.double()
    bias = weight @ norm.bias.double()
    if linear.bias is not None:
        bias = bias + linear.bias.double()
    with torch.device("meta"):
        folded = nn.Linear(linear.in_features, linear.out_features)
    return _with(folded, weight * norm.weight.double(), bias)


def pointwise(conv: nn.Conv2d) -> nn.Linear:
    """A 1x1 convolution as a linear layer of tokens, of the same weights."""
    with torch.device("meta"):
        linear = nn.Linear(conv.in_channels, conv.out_channels, conv.bias is not None)
    linear.weight = nn.Parameter(conv.weight.detach().flatten(1), requires_grad=False)
    if conv.bias is not None:
        linear.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
    return linear


def linear_behind_linear(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    """A linear layer that does what `second` does behind `first`."""
    weight, bias = second.weight.double(), second.bias.double()
    with torch.device("meta"):
        folded = nn.Linear(first.in_features, second.out_features)
    return _with(folded, weight @ first.weight.double(), weight @ first.bias.double() + bias)


def scaled(linear: nn.Linear, factor: float) -> nn.Linear:
    """A linear layer that gives `factor` times what `linear` gives."""
    with torch.device("meta"):
        folded = nn.Linear(linear.in_features, linear.out_features)
    return _with(folded, linear.weight.double() * factor, linear.bias.double() * factor)


def plain(norm: nn.LayerNorm) -> nn.LayerNorm:
    """A layer norm without its affine part, which `linear_behind_norm` has."""
    return nn.LayerNorm(norm.normalized_shape, norm.eps, elementwise_affine=False)


def _with(layer: Layer, weight: Tensor, bias: Tensor) -> Layer:
    layer.weight, layer.bias = (
        nn.Parameter(value.float(), requires_grad=False) for value in (weight, bias)
    )
    return layer
