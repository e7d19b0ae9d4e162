"""The fused maps: one step of a pyramid, a convolution twice over a coarse map and a finer one."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Fuse(nn.Module):
    """Brings a coarse map to the size of a finer one, and mixes both."""

    def __init__(self, inputs: int, width: int) -> None:
        """Builds the modules, with random weights.

        inputs: channels of both maps together. width: channels of the result.
        """
        super().__init__()
        self.fusion = nn.Sequential(
            nn.Conv2d(inputs, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(),
        )

    def resize(self, small: Tensor, large: Tensor) -> Tensor:
        """small [N, C, h, w] at the size of large [N, D, H, W], corners on corners."""
        return F.interpolate(small, size=large.shape[-2:], mode="bilinear", align_corners=True)

    def forward(self, small: Tensor, large: Tensor) -> Tensor:
        """small [N, C, h, w], large [N, D, H, W], C + D inputs -> [N, width, H, W]."""
        return self.fusion(torch.cat([self.resize(small, large), large], 1))
