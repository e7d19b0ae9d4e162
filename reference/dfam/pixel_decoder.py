"""The deformable pixel decoder: Mask2Former's encoder with three levels and an altered FPN.

Section numbers are those of docs/reference/models/dfam.md; the decoder's is 8.
"""

from __future__ import annotations

from torch import Tensor, nn

from ris.reference.layers.basic import ConvNorm, fpn_step
from ris.reference.layers.deformable import PixelEncoder


class PixelDecoder(PixelEncoder):
    """p2 (2g), p3 (g), p4 (g/2) of CLIP's pyramid -> mask features and the three encoder maps."""

    levels = 3
    """Maps that the encoder reads and writes."""

    def __init__(
        self,
        inputs: int,
        width: int,
        heads: int,
        layers: int,
        points: int,
        hidden: int,
        clip_grid_only: bool,
    ) -> None:
        """Builds the modules, with random weights.

        Args:
            inputs: Channels of the pyramid.
            width: Channels C of the encoder, the FPN and the results.
            heads: Attention heads of an encoder layer.
            layers: Encoder layers.
            points: Places that a head samples on each level.
            hidden: Hidden channels of an encoder layer's feed-forward part.
            clip_grid_only: Whether the FPN ends at CLIP's own grid; its last step, `adapter_1` and
                `layer_1`, does not exist then.
        """
        super().__init__([inputs] * self.levels, width, heads, layers, points, hidden)
        self.clip_grid_only = clip_grid_only
        for step in (2, 3) if clip_grid_only else (1, 2, 3):
            setattr(self, f"adapter_{step}", ConvNorm(inputs, width, 1, nn.GroupNorm(32, width)))
            setattr(self, f"layer_{step}", ConvNorm(width, width, 3, nn.GroupNorm(32, width)))
        self.mask_features = nn.Conv2d(width, width, 1)

    def fpn(self, finest: Tensor, p2: Tensor, p3: Tensor, p4: Tensor) -> list[Tensor]:
        """The FPN's maps from the encoder's finest one.

        Args:
            finest: [B, C, 2g, 2g].
            p2: The pyramid's finest map, [B, inputs, 2g, 2g].
            p3: [B, inputs, g, g].
            p4: [B, inputs, g/2, g/2].

        Returns:
            [B, C, g/2, g/2], [B, C, g, g] and, if the FPN has its last step, [B, C, 2g, 2g].
        """
        steps = [(3, p4), (2, p3)] if self.clip_grid_only else [(3, p4), (2, p3), (1, p2)]
        maps = []
        feature = finest
        for step, skip in steps:
            adapter, layer = getattr(self, f"adapter_{step}"), getattr(self, f"layer_{step}")
            feature = fpn_step(feature, skip, adapter, layer)
            maps.append(feature)
        return maps

    def forward(
        self, p2: Tensor, p3: Tensor, p4: Tensor, finest_only: bool = False
    ) -> tuple[Tensor, list[Tensor]]:
        """The whole decoder.

        Args:
            p2: The pyramid's finest map, [B, inputs, 2g, 2g].
            p3: [B, inputs, g, g].
            p4: [B, inputs, g/2, g/2].
            finest_only: As of `encode`: nothing but the finest map of the last layer reaches the
                mask or the no-target logits (section 17).

        Returns:
            Mask features [B, C, d, d], d being 2g or, with `clip_grid_only`, g; the maps of
            `encode`, [B, C, g/2, g/2], [B, C, g, g] and [B, C, 2g, 2g].
        """
        maps = self.encode((p4, p3, p2), finest_only)
        return self.mask_features(self.fpn(maps[-1], p2, p3, p4)[-1]), maps
