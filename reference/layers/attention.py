"""Attention that the models share: multi-head attention as plain matrix products, masked or not.

Parameter names follow the official checkpoints.
"""

from __future__ import annotations

import functools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCKED = -1e4
"""Added to the logit of a blocked key: exp(-1e4) is 0 in every precision, and FP16 can hold it."""


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


def blocked_keys(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Which keys each query may not see on a level of `size`, before the all-blocked rule.

    mask_logits [B, Q, s, s] -> bool [B, Q, H*W].
    """
    if tuple(mask_logits.shape[-2:]) != size:
        mask_logits = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
    return (mask_logits < 0).flatten(2)


def attention_bias(blocked: Tensor) -> Tensor:
    """The logit bias of blocked keys; a query for which every key is blocked sees all of them.

    blocked [B, Q, K] -> [B, 1, Q, K].
    """
    hidden = blocked & ~blocked.all(-1, keepdim=True)
    return torch.where(hidden, BLOCKED, 0.0)[:, None]
