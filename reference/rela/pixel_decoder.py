"""The deformable pixel decoder: Mask2Former's, with one step of its FPN."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ris.reference.layers.basic import ConvNorm, fpn_step
from ris.reference.layers.deformable import PixelEncoder
from ris.reference.rela.config import RelaConfig


class PixelDecoder(PixelEncoder):
    """The backbone's four maps -> mask features, and three maps that have read each other."""

    def __init__(self, config: RelaConfig) -> None:
        finest, *others = config.swin.widths()
        width = config.width
        super().__init__(
            others[::-1],
            width,
            config.heads,
            config.deformable_layers,
            config.deformable_points,
            config.ffn_width,
        )
        self.adapter_1 = ConvNorm(finest, width, 1, nn.GroupNorm(32, width))
        self.layer_1 = ConvNorm(width, width, 3, nn.GroupNorm(32, width))
        self.mask_features = nn.Conv2d(width, width, 1)

    def fpn(self, finest: Tensor, res2: Tensor) -> Tensor:
        """finest [N, C, s/2, s/2], of `encode`, and res2 [N, inputs, s, s] -> [N, C, s, s]."""
        return fpn_step(finest, res2, self.adapter_1, self.layer_1)

    def forward(self, maps: Sequence[Tensor]) -> tuple[Tensor, list[Tensor]]:
        """The whole decoder.

        maps: "res2" to "res5" of the backbone. Returns the mask features [N, C, s, s] and the
        levels coarse to fine, [N, C, s/8, s/8], [N, C, s/4, s/4] and [N, C, s/2, s/2].
        """
        res2, *others = maps
        levels = self.encode(others[::-1])
        return self.mask_features(self.fpn(levels[-1], res2)), levels
