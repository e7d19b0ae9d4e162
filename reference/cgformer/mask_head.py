"""The mask head: the finest map four times as large, and a 1x1 kernel for each expression.

C channels; h and w are the sides of the finest map.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


def _twice(width: int) -> tuple[nn.Module, nn.Module]:
    """A map at twice its size, then a convolution; two entries of a Sequential."""
    conv = nn.Conv2d(width, width, 3, padding=1, bias=False)
    return (
        nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False),
        nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU()),
    )


class MaskHead(nn.Module):
    """From the finest map and the last token to mask logits.

    The last layer of the map is linear, as the kernel is, and `folded` into it: it costs nothing
    then. Unfolded, it is computed as the authors' code does.
    """

    vis: nn.Sequential

    def __init__(self, width: int) -> None:
        super().__init__()
        self.vis = nn.Sequential(*_twice(width), *_twice(width), nn.Conv2d(width, width, 1))
        self.txt = nn.Linear(width, width + 1)
        self.folded = True

    def kernel(self, token: Tensor) -> Tensor:
        """The last token [N, C] -> weights and, last, the bias of its kernel, [N, C+1]."""
        return self.txt(token)

    def twice(self, feature: Tensor) -> Tensor:
        """The finest map [N, C, h, w] -> [N, C, 2h, 2w]."""
        return self.vis[1](self.vis[0](feature))

    def four_times(self, twice: Tensor) -> Tensor:
        """Of `twice` [N, C, 2h, 2w] -> [N, C, 4h, 4w]."""
        return self.vis[3](self.vis[2](twice))

    def features(self, four_times: Tensor) -> Tensor:
        """Of `four_times` -> what the kernel is applied to where it is not folded."""
        return self.vis[4](four_times)

    def padded_logits(self, four_times: Tensor, kernel: Tensor) -> Tensor:
        """The kernel with a padding of 1 place, which makes the outermost ring its bias alone.

        four_times [N, C, 4h, 4w], kernel [N, C+1] -> [N, 1, 4h+2, 4w+2].
        """
        weights, bias = kernel[:, None, :-1], kernel[:, None, -1:, None]
        if self.folded:
            last = self.vis[4].get_parameter
            inner = weights @ last("weight").flatten(1)
            shift = (weights * last("bias")).sum(-1)[..., None, None]
            logits = (inner @ four_times.flatten(2)).unflatten(2, four_times.shape[2:]) + shift
        else:
            features = self.features(four_times)
            logits = (weights @ features.flatten(2)).unflatten(2, features.shape[2:])
        return F.pad(logits, (1, 1, 1, 1)) + bias

    def forward(self, feature: Tensor, kernel: Tensor) -> Tensor:
        """The finest map [N, C, h, w] and a kernel [N, C+1] -> mask logits [N, 1, 4h, 4w]."""
        four_times = self.four_times(self.twice(feature))
        return without_padding(self.padded_logits(four_times, kernel))


def without_padding(padded: Tensor) -> Tensor:
    """Padded logits, squeezed to the size of the map within.

    [N, 1, h+2, w+2] -> [N, 1, h, w], corners on corners.
    """
    height, width = padded.shape[-2:]
    size = (height - 2, width - 2)
    return F.interpolate(padded, size=size, mode="bilinear", align_corners=True)
