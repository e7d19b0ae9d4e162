"""SAM 2's image encoder: Hiera, and the neck on its four maps.

Of Ravi et al., "SAM 2: Segment Anything in Images and Videos" (2024), written from a description of
what it computes (docs/reference/models/evfsam.md). Attributes are named as the checkpoint's keys.
Maps are [B, side, side, channels] throughout the trunk.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.reference.evfsam.hiera_sizes import PATCH_STRIDE, HieraSizes

_EPS = 1e-6
_PATCH = 7  # side of a patch, in pixels


class PatchEmbed(nn.Module):
    """Overlapping patches; key `proj`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, _PATCH, PATCH_STRIDE, _PATCH // 2)

    def forward(self, image: Tensor) -> Tensor:
        """image [B, 3, S, S] -> [B, S/4, S/4, width]."""
        return self.proj(image).permute(0, 2, 3, 1)


class WindowAttention(nn.Module):
    """Multi-head self attention of a window; keys `qkv`, `proj`."""

    def __init__(self, inputs: int, outputs: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(inputs, 3 * outputs)
        self.proj = nn.Linear(outputs, outputs)

    def forward(self, x: Tensor, shrinks: bool) -> Tensor:
        """Attention among the places of each window.

        Args:
            x: Windows [M, w, w, inputs].
            shrinks: Whether queries are the largest of each 2x2 places.

        Returns:
            [M, w, w, outputs], or [M, w/2, w/2, outputs] where it shrinks.
        """
        query, key, value = self.qkv(x).chunk(3, -1)
        if shrinks:
            query = halved(query)
        shape = query.shape
        q, k, v = (
            part.flatten(1, 2).unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in (query, key, value)
        )
        read = F.scaled_dot_product_attention(q, k, v)
        return self.proj(read.transpose(1, 2).reshape(shape))


class HieraMLP(nn.Module):
    """Two linear layers with an exact GELU between them; keys `layers.0`, `layers.1`."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(width, 4 * width), nn.Linear(4 * width, width)])

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](F.gelu(self.layers[0](x)))


class HieraBlock(nn.Module):
    """One block; keys `norm1`, `attn`, `norm2`, `mlp`, and `proj` where the width grows."""

    def __init__(self, inputs: int, outputs: int, heads: int, window: int) -> None:
        """Makes a block.

        Args:
            inputs: Channels of what goes in.
            outputs: Channels of what comes out. Where they are more, the side is halved.
            heads: Attention heads.
            window: Side of an attention window before it is halved; 0: the whole map.
        """
        super().__init__()
        self.window = window
        self.norm1 = nn.LayerNorm(inputs, _EPS)
        self.attn = WindowAttention(inputs, outputs, heads)
        self.norm2 = nn.LayerNorm(outputs, _EPS)
        self.mlp = HieraMLP(outputs)
        self.proj = nn.Linear(inputs, outputs) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        """x [B, side, side, inputs] -> [B, side, side, outputs], or of half the side."""
        normed = self.norm1(x)
        # the shortcut of a growing block is of the normed map, not of x
        shortcut = x if self.proj is None else halved(self.proj(normed))
        window = self.window or x.shape[1]
        read = self.attn(cut(normed, window), shrinks=self.proj is not None)
        x = shortcut + join(read, shortcut.shape[1])
        return x + self.mlp(self.norm2(x))


class Hiera(nn.Module):
    """The trunk; keys `pos_embed`, `pos_embed_window`, `patch_embed`, `blocks`."""

    def __init__(self, sizes: HieraSizes) -> None:
        super().__init__()
        self.sizes = sizes
        side, window = sizes.position_side, sizes.windows[0]
        self.pos_embed = nn.Parameter(torch.zeros(1, sizes.width, side, side))
        self.pos_embed_window = nn.Parameter(torch.zeros(1, sizes.width, window, window))
        self.patch_embed = PatchEmbed(sizes.width)
        self.blocks = nn.ModuleList(self._block(i) for i in range(sum(sizes.depths)))

    def _block(self, index: int) -> HieraBlock:
        widths, sizes = self.sizes.widths(), self.sizes
        stage, before = sizes.stage_of(index), sizes.stage_of(max(index - 1, 0))
        heads = sizes.heads[stage]
        return HieraBlock(widths[before], widths[stage], heads, sizes.window_of(index))

    def positions(self) -> Tensor:
        """What is added to the patches: a constant of the weights, [1, side, side, width]."""
        side = self.sizes.sides()[0]
        times = side // self.pos_embed_window.shape[-1]
        whole = F.interpolate(self.pos_embed, size=(side, side), mode="bicubic")
        return (whole + self.pos_embed_window.tile(1, 1, times, times)).permute(0, 2, 3, 1)

    def forward(self, image: Tensor) -> list[Tensor]:
        """image [B, 3, S, S] -> the maps behind each stage, finest first."""
        x = self.patch_embed(image) + self.positions()
        maps, ends = [], self.sizes.ends()
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index in ends:
                maps.append(x)
        return maps


class _Projection(nn.Module):
    """One map's convolution; key `conv`."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)


class Neck(nn.Module):
    """The four maps at one width; keys `convs.j`, the coarsest first."""

    def __init__(self, widths: tuple[int, ...], outputs: int) -> None:
        super().__init__()
        self.convs = nn.ModuleList(_Projection(width, outputs) for width in reversed(widths))

    def forward(self, maps: list[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """The finest three maps, the coarsest of which has the last one's added.

        maps: of `Hiera`, finest first.

        Returns:
            [B, outputs, side, side] each, finest first.
        """
        finest, fine, coarse, last = (x.permute(0, 3, 1, 2) for x in maps)
        doubled = F.interpolate(self.convs[0](last), scale_factor=2.0, mode="nearest")
        return self.convs[3](finest), self.convs[2](fine), self.convs[1](coarse) + doubled


class HieraEncoder(nn.Module):
    """Trunk and neck; keys `trunk`, `neck`."""

    def __init__(self, sizes: HieraSizes, outputs: int) -> None:
        super().__init__()
        self.trunk = Hiera(sizes)
        self.neck = Neck(sizes.widths(), outputs)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """image [B, 3, S, S] -> three maps [B, outputs, side, side], finest first."""
        return self.neck(self.trunk(image))


def cut(x: Tensor, window: int) -> Tensor:
    """x [B, side, side, C] -> its windows [B*n, w, w, C], row by row."""
    count = x.shape[1] // window
    parts = x.unflatten(2, (count, window)).unflatten(1, (count, window))
    return parts.transpose(2, 3).flatten(0, 2)


def join(windows: Tensor, side: int) -> Tensor:
    """The inverse of `cut`: windows [B*n, w, w, C] -> [B, side, side, C]."""
    count = side // windows.shape[1]
    parts = windows.unflatten(0, (-1, count, count)).transpose(2, 3)
    return parts.flatten(3, 4).flatten(1, 2)


def halved(x: Tensor) -> Tensor:
    """The largest of each 2x2 places: x [M, h, w, C] -> [M, h/2, w/2, C]."""
    return F.max_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)
