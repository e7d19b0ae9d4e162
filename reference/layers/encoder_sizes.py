"""What the encoders are made of: frozen dataclasses, without PyTorch.

The defaults are the sizes of SAM ViT-B, CLIP ViT-L/14 at 336 pixels, bert-base-uncased and Swin-B
with windows of 12. Section numbers are those of docs/reference/models/dfam.md.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SamConfig:
    """SAM's ViT image encoder (section 3)."""

    image_size: int = 1024
    """Side of the square input, in pixels."""

    patch_size: int = 16
    """Side of a patch, in pixels."""

    width: int = 768
    """Channels of the transformer."""

    depth: int = 12
    """Number of blocks."""

    heads: int = 12
    """Attention heads of a block."""

    window: int = 14
    """Side of an attention window, in patches."""

    global_blocks: tuple[int, ...] = (2, 5, 8, 11)
    """Indices of the blocks that attend to the whole image instead of a window."""

    @property
    def grid(self) -> int:
        """Patches along a side of the input."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class ClipConfig:
    """CLIP's visual tower (section 4) and its text tower (section 15)."""

    image_size: int = 336
    """Side of the square input, in pixels."""

    patch_size: int = 14
    """Side of a patch, in pixels."""

    width: int = 1024
    """Channels of the visual tower."""

    layers: int = 24
    """Blocks of the visual tower."""

    heads: int = 16
    """Attention heads of a block of the visual tower."""

    embed_dim: int = 768
    """Channels of the vectors that both towers give: those of a row of the category table."""

    text_width: int = 768
    """Channels of the text tower."""

    text_layers: int = 12
    """Blocks of the text tower."""

    text_heads: int = 12
    """Attention heads of a block of the text tower."""

    text_vocab_size: int = 49408
    """Rows of the text tower's token table."""

    @property
    def grid(self) -> int:
        """Patches along a side of the input."""
        return self.image_size // self.patch_size


@dataclass(frozen=True)
class BertSpec:
    """BERT without pooler (section 5)."""

    vocab_size: int = 30522
    """Rows of the token table."""

    width: int = 768
    """Channels of the transformer."""

    layers: int = 12
    """Number of blocks."""

    heads: int = 12
    """Attention heads of a block."""

    mlp_width: int = 3072
    """Hidden channels of a block's feed-forward layer."""

    positions: int = 512
    """Rows of the position table: the most tokens of a text."""


@dataclass(frozen=True)
class SwinConfig:
    """The Swin transformer of the backbone: four stages, each with half the grid of the last."""

    patch_size: int = 4
    """Side of a patch, in pixels."""

    width: int = 128
    """Channels of the first stage; each further stage has twice as many."""

    depths: tuple[int, ...] = (2, 2, 18, 2)
    """Blocks of each stage."""

    heads: tuple[int, ...] = (4, 8, 16, 32)
    """Attention heads of each stage."""

    window: int = 12
    """Side of an attention window, in places of the grid; odd blocks shift it by half of it."""

    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.width << i for i in range(len(self.depths)))

    def grids(self, image_size: int) -> tuple[int, ...]:
        """Side of each stage's grid, for a square input of that side in pixels."""
        return tuple(image_size // self.patch_size >> i for i in range(len(self.depths)))
