"""SAM 2's image encoder in tokens, in the form that exports well.

The places of a map are in nested order: the four of each 2x2 stand together, and so do the four of
each 2x2 of these, and so on. So each window is a run of tokens, as are the places that become one
where the side is halved, in every stage. Nothing is moved between the patches and the three
outputs.
"""

from __future__ import annotations

from typing import cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.export.families.folding import linear_behind_linear, pointwise
from ris.reference.evfsam.hiera import HieraBlock
from ris.reference.evfsam.sam2_decoder import Sam2

_LARGE = 1024
"""A window of more tokens than this computes its attention in groups of heads."""

_HEADS_AT_ONCE = 2


def nested_places(side: int) -> np.ndarray:
    """The place of a square map, counted row by row, at each place of its nested order.

    int64 [side*side]. Where the side is no power of two, nested squares stand row by row.
    """
    levels = (side & -side).bit_length() - 1
    axes = (side >> levels, *(2,) * levels)
    grid = np.arange(side * side, dtype=np.int64).reshape(*axes, *axes)
    order = [axis for level in range(levels + 1) for axis in (level, level + len(axes))]
    return grid.transpose(order).reshape(-1)


class _Attention(nn.Module):
    """Attention within each window, [M, L, C] -> [M, L, C'] or [M, L/4, C'], before `proj`."""

    def __init__(self, block: HieraBlock) -> None:
        super().__init__()
        self.qkv, self.heads = block.attn.qkv, block.attn.heads
        self.shrinks = block.proj is not None

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.qkv(x).chunk(3, -1)
        if self.shrinks:
            query = _largest_of_four(query)
        q, k, v = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (query, key, value)
        )
        if x.shape[1] > _LARGE:
            # 4096 x 4096 logits of all heads at once would take half a gigabyte
            groups = zip(*(part.split(_HEADS_AT_ONCE, 1) for part in (q, k, v)), strict=True)
            read = torch.cat([_attend(*group) for group in groups], 1)
        else:
            read = _attend(q, k, v)
        return read.transpose(1, 2).flatten(2)


class _Block(nn.Module):
    """One block, [B, P, C] -> [B, P, C], or [B, P/4, 2C] where the width grows."""

    def __init__(self, block: HieraBlock) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.attn, self.attn_proj = _Attention(block), block.attn.proj
        self.grow = block.proj
        self.window = block.window

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        shortcut = x if self.grow is None else _largest_of_four(self.grow(normed))
        read = self.attn_proj(self._windowed(normed))
        x = shortcut + read.reshape(-1, *shortcut.shape[1:])
        first, second = self.mlp.layers
        return x + second(F.gelu(first(self.norm2(x))))

    def _windowed(self, normed: Tensor) -> Tensor:
        """Attention within windows, which are runs of tokens."""
        if not self.window:
            return self.attn(normed)
        return self.attn(normed.reshape(-1, self.window**2, normed.shape[2]))


class Sam2ImageEncoder(nn.Module):
    """`image` [B, 3, S, S] -> `image_embeddings`, `high_res_1` and `high_res_0`.

    [B, C, s, s], [B, C/4, 2s, 2s] and [B, C/8, 4s, 4s]. The neck's convolutions and those of the
    mask decoder behind them are one each.
    """

    def __init__(self, sam2: Sam2) -> None:
        super().__init__()
        trunk = sam2.image_encoder.trunk
        self.sides, self.ends = trunk.sizes.sides(), trunk.sizes.ends()
        places = torch.from_numpy(nested_places(self.sides[0]))
        self.patches = trunk.patch_embed.proj
        self.places = nn.Buffer(places)
        self.positions = nn.Buffer(trunk.positions().flatten(1, 2)[:, places])
        self.blocks = nn.ModuleList(_Block(cast(HieraBlock, block)) for block in trunk.blocks)
        self.neck = _Neck(sam2, self.sides)

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        patches = self.patches(image).flatten(2).transpose(1, 2)
        x = patches.index_select(1, self.places) + self.positions
        maps = []
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in self.ends:
                maps.append(x)
        return self.neck(*maps)


class _Neck(nn.Module):
    """The maps behind the stages, in nested order -> the encoder's outputs."""

    def __init__(self, sam2: Sam2, sides: tuple[int, ...]) -> None:
        super().__init__()
        decoder = sam2.sam_mask_decoder
        last, coarse, fine, finest = (
            pointwise(cast(nn.Conv2d, part.conv)) for part in sam2.image_encoder.neck.convs
        )
        self.last, self.coarse = last, coarse
        self.fine = linear_behind_linear(fine, pointwise(decoder.conv_s1))
        self.finest = linear_behind_linear(finest, pointwise(decoder.conv_s0))
        # what is added at every position, as there is no memory
        no_memory = last.bias.detach() + sam2.no_mem_embed.flatten()
        last.bias = nn.Parameter(no_memory, requires_grad=False)
        self.sides = sides
        finest_back, fine_back, coarse_back = (
            torch.from_numpy(np.argsort(nested_places(side))) for side in sides[:3]
        )
        self.finest_places, self.fine_places = nn.Buffer(finest_back), nn.Buffer(fine_back)
        self.coarse_places = nn.Buffer(coarse_back)
        self.last_places = nn.Buffer(coarse_back // 4)

    def forward(
        self, finest: Tensor, fine: Tensor, coarse: Tensor, last: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The outputs, coarse to fine.

        Args:
            finest: The map behind the first stage [B, 16*s*s, C0].
            fine: Behind the second [B, 4*s*s, 2*C0].
            coarse: Behind the third [B, s*s, 4*C0].
            last: Behind the fourth [B, s*s/4, 8*C0].
        """
        # nearest doubling: four places of the map before read one of the last
        above = self.last(last).index_select(1, self.last_places)
        embeddings = self.coarse(coarse).index_select(1, self.coarse_places) + above
        return (
            _map(embeddings, self.sides[2]),
            _map(self.fine(fine).index_select(1, self.fine_places), self.sides[1]),
            _map(self.finest(finest).index_select(1, self.finest_places), self.sides[0]),
        )


def _map(tokens: Tensor, side: int) -> Tensor:
    """tokens [B, P, C], row by row -> [B, C, side, side]."""
    return tokens.transpose(1, 2).unflatten(2, (side, side))


def _attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """q [M, some heads, Q, d], k and v [M, some heads, L, d] -> the values read, as q."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)).softmax(-1) @ v


def _largest_of_four(x: Tensor) -> Tensor:
    """The 2x2 max-pool of places in nested order, [..., P, C] -> [..., P/4, C]."""
    return x.unflatten(-2, (-1, 4)).amax(-2)
