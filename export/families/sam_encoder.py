"""SAM's image encoder in tokens, in the form that exports well."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d as SamLayerNorm2d
from segment_anything.modeling.image_encoder import Block, ImageEncoderViT, get_rel_pos
from torch import Tensor, nn


class ChannelsLastNorm(nn.Module):
    """SAM's LayerNorm2d as a LayerNorm of tokens.

    It becomes one LayerNormalization node, which engines accumulate in FP32.
    """

    def __init__(self, norm: SamLayerNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # as in `ris.reference.layers.attention.LayerNorm2d`
        normed = F.layer_norm(tokens, self.weight.shape, self.weight, self.bias, self.eps)
        return normed.transpose(1, 2).unflatten(2, x.shape[2:])


def channels_last(layers: nn.Sequential) -> nn.Sequential:
    """The layers with each LayerNorm2d of SAM as a `ChannelsLastNorm` of the same weights."""
    return nn.Sequential(
        *(ChannelsLastNorm(m) if isinstance(m, SamLayerNorm2d) else m for m in layers)
    )


_LARGE = 1024
"""A window of more tokens than this computes its attention head by head, in strips of queries."""

_STRIP = 2048
"""So many queries of a large window are asked at once (docs/measurements/performance.md)."""


class _SamAttention(nn.Module):
    """SAM's attention over an H x W window with decomposed relative positions.

    [M, H*W, C] -> [M, H*W, C], before `proj`, which `_SamBlock` applies.

    There are two forms. On CPUs a large window goes head by head and in strips of its rows, as the
    logits of all heads are gigabytes, and even those of one fit into no cache. The terms of the
    positions are added to a 5-D view of the logits, which fuses with the softmax. TensorRT computes
    a whole attention in one kernel where it finds product, sum, softmax and product of 4-D values.
    Logits then exist nowhere, and what is added to them is all that is held, 0.4 GB in FP16 for a
    global block at full size.
    """

    def __init__(self, block: Block, side: int, for_tensorrt: bool) -> None:
        super().__init__()
        self.for_tensorrt = for_tensorrt
        self.qkv, self.proj, self.heads = block.attn.qkv, block.attn.proj, block.attn.num_heads
        # tables [S, d, S]: for a query at row i, the term of every key row k
        rows = get_rel_pos(side, side, block.attn.rel_pos_h).transpose(1, 2)
        columns = get_rel_pos(side, side, block.attn.rel_pos_w).transpose(1, 2)
        self.rows = nn.Buffer(rows.contiguous())
        self.columns = nn.Buffer(columns.contiguous())
        self.side = side

    def forward(self, x: Tensor) -> Tensor:
        side, heads, width = self.side, self.heads, x.shape[-1]
        qkv = self.qkv(x).unflatten(2, (3, heads, width // heads)).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.unbind()  # [M, heads, H*W, d]
        parts = (q, k, v, *self._positions(q))
        if self.for_tensorrt:
            attended = self._attend_at_once(*parts)
        elif side * side > _LARGE:
            each = zip(*(part.split(1, 1) for part in parts), strict=True)
            attended = torch.cat([self._attend_in_strips(*head) for head in each], 1)
        else:
            attended = self._attend(*parts)
        return attended.transpose(1, 2).flatten(2)

    def _positions(self, q: Tensor) -> tuple[Tensor, Tensor]:
        """The terms of key rows [M, heads, H, W, H] and of key columns [M, heads, H, W, W].

        There is one product for each row of queries and one for each column, over all heads.
        """
        grid = q.unflatten(2, (self.side, self.side))  # [M, heads, H, W, d]
        shape = (-1, self.heads, self.side)
        by_row = grid.permute(2, 0, 1, 3, 4).flatten(1, 3) @ self.rows
        by_column = grid.permute(3, 0, 1, 2, 4).flatten(1, 3) @ self.columns
        return (
            by_row.unflatten(1, shape).permute(1, 2, 0, 3, 4),
            by_column.unflatten(1, shape).permute(1, 2, 3, 0, 4),
        )

    @staticmethod
    def _attend_at_once(
        q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor
    ) -> Tensor:
        """`_attend` of all heads, in the form that TensorRT has a kernel for."""
        positions = (by_row[..., None] + by_column[..., None, :]).flatten(4, 5).flatten(2, 3)
        logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3) + positions
        return logits.softmax(-1) @ v

    def _attend_in_strips(
        self, q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor
    ) -> Tensor:
        """`_attend` of some rows of queries after the other."""
        rows = max(_STRIP // self.side, 1)
        asked = (q.split(rows * self.side, 2), by_row.split(rows, 2), by_column.split(rows, 2))
        strips = zip(*asked, strict=True)
        return torch.cat([self._attend(some, k, v, row, col) for some, row, col in strips], 2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, by_row: Tensor, by_column: Tensor) -> Tensor:
        """q [M, heads, rows*W, d], k and v [M, heads, H*W, d] -> the attended values, as q."""
        side, depth = self.side, q.shape[-1]
        logits = (
            ((q * depth**-0.5) @ k.transpose(2, 3))
            .unflatten(3, (side, side))
            .unflatten(2, (q.shape[2] // side, side))
        )
        logits = logits + by_row[..., None] + by_column[..., None, :]
        return logits.flatten(4, 5).flatten(2, 3).softmax(-1) @ v


class _SamBlock(nn.Module):
    """One block of SAM's image encoder, with window or global attention; keeps [B, s*s, C]."""

    def __init__(self, block: Block, grid: int, for_tensorrt: bool) -> None:
        super().__init__()
        self.norm1, self.norm2, self.mlp = block.norm1, block.norm2, block.mlp
        self.window = block.window_size
        self.grid = grid
        self.attn = _SamAttention(block, self.window or grid, for_tensorrt)

    def forward(self, x: Tensor) -> Tensor:
        normed = self.norm1(x)
        x = x + self.attn.proj(self._windowed(normed) if self.window else self.attn(normed))
        return x + self.mlp(self.norm2(x))

    def _windowed(self, x: Tensor) -> Tensor:
        """Attention within windows of the padded map; keeps [B, s*s, C]."""
        window, grid, width = self.window, self.grid, x.shape[-1]
        count = math.ceil(grid / window)
        padding = count * window - grid
        x = x.unflatten(1, (grid, grid))
        # padded positions take part as keys and values
        x = F.pad(x, (0, 0, 0, padding, 0, padding))
        x = x.unflatten(2, (count, window)).unflatten(1, (count, window)).transpose(2, 3)
        x = self.attn(x.reshape(-1, window * window, width))
        x = x.reshape(-1, count, count, window, window, width).transpose(2, 3)
        # the padding is cut off before the projection
        return x.flatten(3, 4).flatten(1, 2)[:, :grid, :grid].flatten(1, 2)


class SamImageEncoder(nn.Module):
    """`image` [B, 3, S, S] -> `image_embeddings` [B, C, s, s] (docs/reference/models/dfam.md 3)."""

    def __init__(self, encoder: ImageEncoderViT, grid: int, *, for_tensorrt: bool = False) -> None:
        """Takes SAM's layers.

        Args:
            encoder: SAM's image encoder.
            grid: The side of the embeddings.
            for_tensorrt: Write attention in the form that TensorRT computes in one kernel.
        """
        super().__init__()
        self.grid = grid
        self.patches, positions = encoder.patch_embed.proj, encoder.pos_embed
        assert positions is not None
        self.positions = nn.Buffer(positions.detach().flatten(1, 2))
        self.blocks = nn.ModuleList(
            _SamBlock(block, self.grid, for_tensorrt) for block in encoder.blocks
        )
        self.neck = channels_last(encoder.neck)

    def forward(self, image: Tensor) -> Tensor:
        # tokens [B, s*s, C] throughout: sums of maps [B, s, s, C] would be reordered by OpenVINO
        x = self.patches(image).flatten(2).transpose(1, 2) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.neck(x.transpose(1, 2).unflatten(2, (self.grid, self.grid)))
