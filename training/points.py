"""The points at which DFAM's masks are compared with what is right.

Points are (x, y) from 0 to 1, as in Mask2Former: pixel centres lie at half integers, and outside of
a map everything is 0.
"""

from __future__ import annotations

from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

POINTS = 12544
"""Points of a comparison."""

CANDIDATES = 3
"""For every point of a loss so many are drawn, of which the uncertain ones are taken."""

UNCERTAIN = 0.75
"""The share of a loss's points that are taken where the mask is least certain."""


class Points(Protocol):
    """Where masks are compared."""

    def of_match(self, output: int, sample: int) -> Tensor:
        """Where the matching compares a sample's queries with its objects: float32 [P, 2].

        output: the number of DFAM's output.
        """
        ...

    def of_loss(self, output: int, pairs: int) -> tuple[Tensor, Tensor]:
        """Where the losses of `pairs` matched queries look.

        Candidates float32 [pairs, C, 2], and points that are taken as they are [pairs, R, 2].
        """
        ...


class RandomPoints:
    """Uniform points, drawn anew for every output and sample.

    Args:
        generator: Draws them, on its own device.
        count: How many points a comparison has.
    """

    def __init__(self, generator: torch.Generator, count: int = POINTS) -> None:
        self.generator, self.count = generator, count

    def of_match(self, output: int, sample: int) -> Tensor:
        return self._draw(self.count, 2)

    def of_loss(self, output: int, pairs: int) -> tuple[Tensor, Tensor]:
        rest = self.count - int(UNCERTAIN * self.count)
        return self._draw(pairs, CANDIDATES * self.count, 2), self._draw(pairs, rest, 2)

    def _draw(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self.generator, device=self.generator.device)


def sampled(maps: Tensor, points: Tensor) -> Tensor:
    """Bilinear samples of maps [N, C, H, W] at points [N, P, 2]: [N, C, P]."""
    grid = (2 * points - 1)[:, :, None]
    return F.grid_sample(maps, grid, align_corners=False)[..., 0]


def uncertain(logits: Tensor, candidates: Tensor, rest: Tensor) -> Tensor:
    """The points of a loss: the candidates where a mask is least certain, and the rest.

    Args:
        logits: A mask of each pair, [M, H, W].
        candidates: [M, C, 2].
        rest: [M, R, 2].

    Returns:
        [M, P, 2], where P is R / (1 - UNCERTAIN).
    """
    count = candidates.shape[1] // CANDIDATES
    distance = sampled(logits[:, None], candidates)[:, 0].abs()
    taken = distance.topk(int(UNCERTAIN * count), largest=False).indices
    chosen = candidates.gather(1, taken[..., None].expand(-1, -1, 2))
    return torch.cat([chosen, rest], 1)
