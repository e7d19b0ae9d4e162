"""Deformable attention, and the pixel encoder that Mask2Former's kin build on it.

transformers' Mask2Former pixel decoder does not fit: its FPN goes from coarse to fine only, without
adapters, so its encoder layer alone could have been shared, under other key names. The layer is
short; it is written out here.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.reference.layers.attention import sine_positions

Sampling = Literal["native", "gather"]
"""How bilinear samples are written (docs/reference/models/dfam.md, 23).

"native" is torch's grid_sample, one GridSample node; "gather" is the same sum as four row gathers,
for engines whose GridSample is wrong.
"""

Size = tuple[int, int]
"""Height and width of a map."""


class SampleGrid(nn.Module):
    """Where to sample.

    It has no weights, and is a module so that an FP16 export finds what has to stay FP32: FP16's 11
    bits are 0.03 pixels at pixel 48.
    """

    def forward(self, centres: Tensor, offsets: Tensor, size: Size) -> Tensor:
        """centres [Q, 2] in [0, 1], offsets [G, P, Q, 2] in pixels, both (x, y) -> [G, P, Q, 2].

        The result is as grid_sample takes it, from -1 to 1.
        """
        return 2 * (centres + offsets / _width_and_height(size, offsets)) - 1


class Neighbours(nn.Module):
    """The four pixels that a bilinear sample reads, and their weights.

    A module for the same reason as `SampleGrid`: always FP32, FP16 counts pixels to 2048 only.
    """

    def forward(self, grid: Tensor, size: Size) -> list[tuple[Tensor, Tensor]]:
        """grid [G, P, Q, 2] -> for each of the four neighbours of every place (index, weight).

        The index in H*W is int64 [G, P, Q]; the weight [G, P, Q] is 0 outside of the map. Pixel
        centres are at half integers.
        """
        height, width = size
        pixel = ((grid + 1) * _width_and_height(size, grid) - 1) / 2
        floor = pixel.floor()
        fraction = pixel - floor

        found = []
        for dy in (0, 1):
            for dx in (0, 1):
                x, y = floor[..., 0] + dx, floor[..., 1] + dy
                inside = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
                weight_x = fraction[..., 0] if dx else 1 - fraction[..., 0]
                weight_y = fraction[..., 1] if dy else 1 - fraction[..., 1]
                index = y.clamp(0, height - 1).long() * width + x.clamp(0, width - 1).long()
                found.append((index, weight_x * weight_y * inside.to(weight_x.dtype)))
        return found


def _width_and_height(size: Size, like: Tensor) -> Tensor:
    """What scales (x, y): [2], of the dtype and device of `like`."""
    return torch.from_numpy(np.array([size[1], size[0]], np.float32)).to(like)


class DeformableAttention(nn.Module):
    """Multi-scale deformable attention: each query samples `points` places of every level."""

    sampling: Sampling
    """How `sample` is written; `PixelEncoder.set_sampling` sets it."""

    def __init__(self, width: int, heads: int, levels: int, points: int) -> None:
        super().__init__()
        self.heads, self.levels, self.points = heads, levels, points
        self.sampling = "native"
        self.sampling_offsets = nn.Linear(width, heads * levels * points * 2)
        self.attention_weights = nn.Linear(width, heads * levels * points)
        self.value_proj = nn.Linear(width, width)
        self.output_proj = nn.Linear(width, width)
        self.grid = SampleGrid()
        self.neighbours = Neighbours()

    def forward(self, query: Tensor, centres: Tensor, tokens: Tensor, sizes: list[Size]) -> Tensor:
        """Reads the levels around each query's own place.

        Args:
            query: [B, Q, C].
            centres: Where the queries are, [Q, 2], (x, y) in [0, 1].
            tokens: The maps of all levels, flattened and joined, [B, S, C].
            sizes: The levels' sizes, in the order of the tokens.

        Returns:
            [B, Q, C].
        """
        heads, levels, points = self.heads, self.levels, self.points
        depth = query.shape[2] // heads
        value = self.value_proj(tokens).unflatten(2, (heads, depth)).transpose(1, 2).flatten(0, 1)

        offsets = self.sampling_offsets(query).unflatten(2, (heads, levels, points, 2))
        weights = self.attention_weights(query).unflatten(2, (heads, levels * points)).softmax(-1)
        # [B*heads, levels, points, Q, 2], and the weights without the 2
        offsets = offsets.permute(0, 2, 3, 4, 1, 5).flatten(0, 1)
        weights = weights.unflatten(3, (levels, points)).permute(0, 2, 3, 4, 1).flatten(0, 1)
        weights = weights.contiguous()

        mixed: Tensor | None = None  # [B*heads, depth, 1, Q]
        start = 0
        for level, size in enumerate(sizes):
            end = start + size[0] * size[1]
            own = value[:, start:end]
            grid = self.grid(centres, offsets[:, level], size)
            term = _weighted_sum(self.sample(own, grid, size), weights[:, level])
            mixed = term if mixed is None else mixed + term
            start = end

        assert mixed is not None
        mixed = mixed.squeeze(2).unflatten(0, (-1, heads)).flatten(1, 2).transpose(1, 2)
        return self.output_proj(mixed)

    def sample(self, value: Tensor, grid: Tensor, size: Size) -> Tensor:
        """Bilinear samples of maps, zeros outside, in the form that `sampling` names.

        value [G, H*W, D], grid [G, P, Q, 2] from -1 to 1, size (H, W) -> [G, D, P, Q].
        """
        if self.sampling == "native":
            maps = value.transpose(1, 2).unflatten(2, size)
            return F.grid_sample(maps, grid, align_corners=False)

        groups, points, queries = grid.shape[:3]
        rows = value.flatten(0, 1)
        first = (torch.arange(groups, device=value.device) * (size[0] * size[1]))[:, None, None]
        result: Tensor | None = None
        for index, weight in self.neighbours(grid, size):
            picked = rows.index_select(0, (index + first).flatten())
            picked = picked.reshape(groups, points, queries, -1)
            term = picked * weight.to(value.dtype)[..., None]
            result = term if result is None else result + term
        assert result is not None
        return result.permute(0, 3, 1, 2)


def _weighted_sum(sampled: Tensor, weights: Tensor) -> Tensor:
    """sampled [G, D, P, Q], weights [G, P, Q] -> their sum over the points, [G, D, 1, Q].

    Point by point: engines fuse these products and sums into one pass, a sum over an axis is one
    more.
    """
    each = weights[:, :, None].to(sampled).split(1, 1)  # [G, 1, 1, Q]
    parts = [point * weight for point, weight in zip(sampled.split(1, 2), each, strict=True)]
    return functools.reduce(torch.add, parts)


class EncoderLayer(nn.Module):
    """Post-norm deformable attention and feed-forward, keys as in the checkpoint."""

    def __init__(self, width: int, heads: int, levels: int, points: int, hidden: int) -> None:
        super().__init__()
        self.self_attn = DeformableAttention(width, heads, levels, points)
        self.norm1 = nn.LayerNorm(width)
        self.linear1 = nn.Linear(width, hidden)
        self.linear2 = nn.Linear(hidden, width)
        self.norm2 = nn.LayerNorm(width)

    def forward(
        self, tokens: Tensor, positions: Tensor, centres: Tensor, sizes: list[Size], first: int = 0
    ) -> Tensor:
        """Updates the tokens from index `first` on; all of them are read.

        Args:
            tokens: The maps of all levels, flattened and joined, [B, S, C].
            positions: Added to the queries, [1, S, C].
            centres: Where the tokens are, [S, 2], (x, y) in [0, 1].
            sizes: The levels' sizes, in the order of the tokens.
            first: Index of the first token that is updated.

        Returns:
            The updated tokens alone, [B, S - first, C].
        """
        x = tokens[:, first:]
        x = self.norm1(x + self.self_attn(x + positions[:, first:], centres[first:], tokens, sizes))
        return self.norm2(x + self.linear2(F.relu(self.linear1(x))))


class _Encoder(nn.Module):
    def __init__(
        self, layers: int, width: int, heads: int, levels: int, points: int, hidden: int
    ) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(width, heads, levels, points, hidden) for _ in range(layers)
        )


class _Transformer(nn.Module):
    def __init__(
        self, layers: int, width: int, heads: int, levels: int, points: int, hidden: int
    ) -> None:
        super().__init__()
        self.level_embed = nn.Parameter(torch.empty(levels, width).normal_())
        self.encoder = _Encoder(layers, width, heads, levels, points, hidden)


class PixelEncoder(nn.Module):
    """Maps of several sizes, projected to one width, that read each other.

    The keys are those of Mask2Former's pixel decoder: `input_proj.*` and `transformer.*`.
    """

    def __init__(
        self, inputs: Sequence[int], width: int, heads: int, layers: int, points: int, hidden: int
    ) -> None:
        """Builds the modules, with random weights.

        Args:
            inputs: Channels of each map, coarse to fine.
            width: Channels C of the encoder.
            heads: Attention heads of a layer.
            layers: Number of layers.
            points: Places that a head samples on each level.
            hidden: Hidden channels of a layer's feed-forward part.
        """
        super().__init__()
        self.input_proj = nn.ModuleList(
            nn.Sequential(nn.Conv2d(channels, width, 1), nn.GroupNorm(32, width))
            for channels in inputs
        )
        self.transformer = _Transformer(layers, width, heads, len(inputs), points, hidden)

    def set_sampling(self, sampling: Sampling) -> None:
        """Chooses the form of the bilinear sampling for every layer."""
        for module in self.modules():
            if isinstance(module, DeformableAttention):
                module.sampling = sampling

    def encode(self, maps: Sequence[Tensor], finest_only: bool = False) -> list[Tensor]:
        """The maps after all layers.

        Args:
            maps: Coarse to fine, [B, inputs, H, W] each.
            finest_only: Whether the last layer updates the finest level alone, and only that map is
                returned.

        Returns:
            Coarse to fine, [B, C, H, W] each.
        """
        sizes: list[Size] = []
        tokens, positions, centres = [], [], []
        for level, (project, feature) in enumerate(zip(self.input_proj, maps, strict=True)):
            feature = project(feature)
            height, width = feature.shape[-2:]
            sizes.append((height, width))
            tokens.append(feature.flatten(2).transpose(1, 2))
            sine = sine_positions(height, width, feature.shape[1], feature)
            positions.append(sine + self.transformer.level_embed[level])
            centres.append(_pixel_centres(height, width))
        sequence, position = torch.cat(tokens, 1), torch.cat(positions, 1)
        centre = torch.from_numpy(np.concatenate(centres)).to(sequence)

        layers = self.transformer.encoder.layers
        for layer in layers[:-1]:
            sequence = layer(sequence, position, centre, sizes)
        first = sum(h * w for h, w in sizes[:-1]) if finest_only else 0
        sequence = layers[-1](sequence, position, centre, sizes, first)

        kept = sizes[-1:] if finest_only else sizes
        parts = sequence.split([h * w for h, w in kept], 1)
        return [
            part.transpose(1, 2).unflatten(2, size) for part, size in zip(parts, kept, strict=True)
        ]


def _pixel_centres(height: int, width: int) -> np.ndarray:
    """The centres of a map's pixels, float32 [height*width, 2], (x, y) in [0, 1], row by row."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    return np.stack([(x + 0.5) / width, (y + 0.5) / height], -1).reshape(-1, 2)
