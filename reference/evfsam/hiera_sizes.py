"""What SAM 2's image encoder is made of: a frozen dataclass, without PyTorch.

The defaults are the sizes of Hiera-L.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate

PATCH_STRIDE = 4
"""Pixels from one patch to the next; patches overlap."""


@dataclass(frozen=True)
class HieraSizes:
    """Hiera in four stages, each with twice the width and half the side of the last."""

    image_size: int = 1024
    """Side of the square input, in pixels."""

    width: int = 144
    """Channels of the first stage."""

    depths: tuple[int, ...] = (2, 6, 36, 4)
    """Blocks of each stage. The first block of every stage but the first changes the width."""

    heads: tuple[int, ...] = (2, 4, 8, 16)
    """Attention heads of each stage."""

    windows: tuple[int, ...] = (8, 4, 16, 8)
    """Side of an attention window of each stage, a power of two that divides the stage's map."""

    global_blocks: tuple[int, ...] = (23, 33, 43)
    """Indices of the blocks that attend to the whole map instead of a window."""

    position_side: int = 7
    """Side of the map of positions that is enlarged to the whole map."""

    def __post_init__(self) -> None:
        """Raises ValueError for sizes that make no encoder."""
        if not len(self.depths) == len(self.heads) == len(self.windows) == 4:
            raise ValueError("a Hiera has four stages, with depths, heads and windows of each")
        if self.image_size % (PATCH_STRIDE << 3):
            raise ValueError(f"a picture of {self.image_size} pixels is not halved three times")
        if any(h < 1 or w % h for h, w in zip(self.heads, self.widths(), strict=True)):
            raise ValueError(f"{self.heads} heads do not divide widths of {self.widths()}")
        for side, window in zip(self.sides(), self.windows, strict=True):
            if window < 2 or side < window or side % window or window & (window - 1):
                raise ValueError(
                    f"a window of {window} is no power of two that divides a map of {side}"
                )

    def widths(self) -> tuple[int, ...]:
        """Channels of each stage."""
        return tuple(self.width << i for i in range(len(self.depths)))

    def sides(self) -> tuple[int, ...]:
        """Side of each stage's map."""
        return tuple(self.image_size // PATCH_STRIDE >> i for i in range(len(self.depths)))

    def ends(self) -> tuple[int, ...]:
        """Index of the last block of each stage."""
        return tuple(end - 1 for end in accumulate(self.depths))

    def stage_of(self, block: int) -> int:
        """The stage of a block."""
        return sum(end < block for end in self.ends())

    def window_of(self, block: int) -> int:
        """Side of a block's attention window; 0: it attends to the whole map.

        The first block of a stage still has the window of the stage before.
        """
        if block in self.global_blocks:
            return 0
        return self.windows[self.stage_of(max(block - 1, 0))]
