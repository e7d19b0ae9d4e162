"""Small layers that several parts of the model share.

Parameter names follow the official checkpoints. The layers are written so that they also export
well: channel LayerNorm as a LayerNorm of tokens, attention as plain matrix products.
"""

from __future__ import annotations

import functools
import itertools

import numpy as np
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


class Attention(nn.MultiheadAttention):
    """torch's multi-head attention, batch first, as plain matrix products.

    Parameters and initialisation are torch's.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__(width, heads, batch_first=True)

    def forward(  # type: ignore[override]
        self, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Reads values at keys like the query.

        Args:
            query: [B, Q, C].
            key: [B, K, C].
            value: [B, K, C].
            bias: Added to the logits; broadcasts to [B, heads, Q, K]. None adds nothing.

        Returns:
            [B, Q, C].
        """
        width, heads = self.embed_dim, self.num_heads
        assert self.in_proj_weight is not None
        parts = [slice(i * width, (i + 1) * width) for i in range(3)]
        q, k, v = (
            F.linear(x, self.in_proj_weight[part], self.in_proj_bias[part])
            .unflatten(-1, (heads, width // heads))
            .transpose(1, 2)
            for x, part in zip((query, key, value), parts, strict=True)
        )

        logits = (q * (width // heads) ** -0.5) @ k.transpose(-1, -2)
        if bias is not None:
            logits = logits + bias
        return self.out_proj((logits.softmax(-1) @ v).transpose(1, 2).flatten(2))


class CrossAttentionLayer(nn.Module):
    """Post-norm cross attention; keys `multihead_attn.*` and `norm.*`."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.multihead_attn = Attention(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x: Tensor, query: Tensor, key: Tensor, value: Tensor, bias: Tensor | None = None
    ) -> Tensor:
        """Adds what the attention reads to x.

        Args:
            x: The state, [B, Q, C].
            query: x, with positions added where the layer uses them, [B, Q, C].
            key: [B, K, C].
            value: [B, K, C].
            bias: As of `Attention.forward`.

        Returns:
            The new state, [B, Q, C].
        """
        return self.norm(x + self.multihead_attn(query, key, value, bias))


class SelfAttentionLayer(nn.Module):
    """Post-norm self attention; keys `self_attn.*` and `norm.*`.

    `positions` is added to queries and keys.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        placed = x if positions is None else x + positions
        return self.norm(x + self.self_attn(placed, placed, x))


class FeedForwardLayer(nn.Module):
    """Post-norm feed-forward layer with ReLU; keys `linear1`, `linear2`, `norm`."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.linear2(F.relu(self.linear1(x))))


@functools.lru_cache(maxsize=32)
def _sine_positions(height: int, width: int, channels: int) -> np.ndarray:
    half = channels // 2
    frequency = 10000.0 ** (2 * (np.arange(half) // 2) / half)

    encoded = []
    for size in (height, width):
        angle = (np.arange(1, size + 1) / (size + 1e-6) * 2 * np.pi)[:, None] / frequency
        encoded.append(np.where(np.arange(half) % 2 == 0, np.sin(angle), np.cos(angle)))

    rows, columns = encoded
    grid = np.concatenate(
        [
            np.broadcast_to(rows[:, None], (height, width, half)),
            np.broadcast_to(columns[None], (height, width, half)),
        ],
        axis=-1,
    )
    return np.ascontiguousarray(grid.reshape(height * width, channels), np.float32)


def sine_positions(height: int, width: int, channels: int, like: Tensor) -> Tensor:
    """The normalised sine encoding of a grid (docs/reference/models/dfam.md 8).

    Args:
        height: Rows of the grid.
        width: Columns of the grid.
        channels: An even number; the first half encodes the row, the second the column.
        like: A tensor with the dtype and device of the result.

    Returns:
        [1, height*width, channels], row by row.
    """
    return torch.from_numpy(_sine_positions(height, width, channels)).to(like)[None]
