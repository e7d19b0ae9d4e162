"""The two ViTDet-style feature pyramids: CLIP's and SAM's. No activation anywhere.

Sections 7 and 13 of docs/reference/models/dfam.md.
"""

from __future__ import annotations

from torch import Tensor, nn

from ris.reference.layers.basic import ConvNorm, LayerNorm2d


def _two_convs(inputs: int, outputs: int) -> list[nn.Module]:
    return [
        ConvNorm(inputs, outputs, 1, LayerNorm2d(outputs)),
        ConvNorm(outputs, outputs, 3, LayerNorm2d(outputs)),
    ]


class ClipPyramid(nn.Module):
    """[B, C, g, g] -> p2 [B, P, 2g, 2g], p3 [B, P, g, g], p4 [B, P, g/2, g/2]."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        half = inputs // 2
        self.simfp_2 = nn.Sequential(
            nn.ConvTranspose2d(inputs, half, 2, stride=2), *_two_convs(half, outputs)
        )
        self.simfp_3 = nn.Sequential(*_two_convs(inputs, outputs))
        self.simfp_4 = nn.Sequential(nn.MaxPool2d(2), *_two_convs(inputs, outputs))

    def forward(self, fused: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.simfp_2(fused), self.simfp_3(fused), self.simfp_4(fused)


class SamPyramid(nn.Module):
    """[B, C, s, s] -> p4 [B, C, s, s], p5 [B, C, s/2, s/2], p6 [B, C, s/4, s/4]."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.simfp_4 = nn.Sequential(*_two_convs(width, width))
        self.simfp_5 = nn.Sequential(nn.MaxPool2d(2), *_two_convs(width, width))
        self.simfp_6 = nn.Sequential(nn.MaxPool2d(4), *_two_convs(width, width))

    def forward(self, sam: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.simfp_4(sam), self.simfp_5(sam), self.simfp_6(sam)
