"""The Swin transformer's layers, as `ris.reference.layers.worded_swin` runs them.

They are written out here. timm's Swin has other names for its keys, masks and resolutions of its
own and one output a stage without the words between; fitting it would take more than these layers.
Attribute names are the checkpoints' key names. Places move through constant gathers, not through
rolls and pads, so that an exported block is a few nodes and the batch is the one free extent.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.reference.layers.basic import GeluMLP
from ris.reference.layers.windows import relative_positions, window_places


class PatchEmbed(nn.Module):
    """Patches as tokens: a convolution, then a LayerNorm over channels."""

    def __init__(self, width: int, patch_size: int) -> None:
        super().__init__()
        self.patch_size = patch_size
        self.proj = nn.Conv2d(3, width, patch_size, stride=patch_size)
        self.norm = nn.LayerNorm(width)

    def forward(self, image: Tensor) -> Tensor:
        """image [B, 3, H, W] -> [B, h*w, C]; zeros fill the last patches up where a side is odd."""
        height, width = image.shape[-2:]
        right, below = -width % self.patch_size, -height % self.patch_size
        if right or below:
            image = F.pad(image, (0, right, 0, below))
        return self.norm(self.proj(image).flatten(2).transpose(1, 2))


class WindowAttention(nn.Module):
    """Attention within the windows of a square grid, shifted or not.

    Padding takes part, as a key and a value that the bias of `qkv` alone makes.
    """

    gather: Tensor
    scatter: Tensor
    pairs: Tensor
    mask: Tensor | None

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int) -> None:
        """Builds the modules, with random weights.

        Args:
            width: Channels C of the tokens.
            heads: Attention heads.
            side: Places along a side of the grid.
            window: Places along a side of a window.
            shift: How far the windows are shifted.
        """
        super().__init__()
        self.heads, self.places = heads, window * window
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

        found = window_places(side, window, shift)
        self.windows = found.number
        self.has_padding = found.number * self.places > side * side
        # not from the checkpoint: every file's are these
        constants = {
            "gather": found.gather,
            "scatter": found.scatter,
            "pairs": relative_positions(window).reshape(-1),
            "mask": found.mask,
        }
        for name, value in constants.items():
            tensor = None if value is None else torch.from_numpy(value)
            self.register_buffer(name, tensor, persistent=False)

    def position_bias(self) -> Tensor:
        """What the logits get by head, query and key of a window: [heads, w*w, w*w]."""
        rows = self.relative_position_bias_table.index_select(0, self.pairs)
        return rows.reshape(self.places, self.places, self.heads).permute(2, 0, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        """tokens [B, side*side, C], row by row -> the same shape."""
        if self.has_padding:
            tokens = F.pad(tokens, (0, 0, 0, 1))  # one more place, of zeros
        windows = self.qkv(tokens.index_select(1, self.gather))
        depth = windows.shape[2] // (3 * self.heads)
        shape = (-1, self.windows, self.places, self.heads, depth)
        q, k, v = (part.reshape(shape).transpose(2, 3) for part in windows.chunk(3, -1))

        logits = (q * depth**-0.5) @ k.transpose(-1, -2) + self.position_bias()
        if self.mask is not None:
            logits = logits + self.mask
        read = (logits.softmax(-1) @ v).transpose(2, 3)
        read = read.reshape(-1, self.windows * self.places, self.heads * depth)
        return self.proj(read.index_select(1, self.scatter))


class SwinBlock(nn.Module):
    """Pre-norm window attention and feed-forward."""

    def __init__(self, width: int, heads: int, side: int, window: int, shift: int) -> None:
        """Builds the modules; the arguments are those of `WindowAttention`.

        Args:
            width: Channels C.
            heads: Attention heads.
            side: Places along a side of the grid.
            window: Places along a side of a window.
            shift: How far the windows are shifted.
        """
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = WindowAttention(width, heads, side, window, shift)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = GeluMLP(width, 4 * width)

    def attend(self, tokens: Tensor) -> Tensor:
        """The first half of the block, [B, side*side, C] -> the same shape."""
        return tokens + self.attn(self.norm1(tokens))

    def forward(self, tokens: Tensor) -> Tensor:
        tokens = self.attend(tokens)
        return tokens + self.mlp(self.norm2(tokens))


class PatchMerging(nn.Module):
    """Two by two places become one with twice the channels."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """tokens [B, height*width, C] -> [B, h*w, 2C], half of each side, rounded up."""
        channels = tokens.shape[2]
        if height % 2 or width % 2:
            grid = tokens.reshape(-1, height, width, channels)
            tokens = F.pad(grid, (0, 0, 0, width % 2, 0, height % 2))
            height, width = height + height % 2, width + width % 2
        cells = tokens.reshape(-1, height // 2, 2, width // 2, 2, channels)
        # the places of a cell column by column
        cells = cells.permute(0, 1, 3, 4, 2, 5)
        return self.reduction(self.norm(cells.reshape(-1, height * width // 4, 4 * channels)))
