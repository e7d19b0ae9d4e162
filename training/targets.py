"""What is right, as the losses read it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Targets:
    """What is right for N expressions about B images, at the model's square of S x S pixels."""

    masks: Tensor
    """The masks, float32 [N, S, S] of 0 and 1."""

    present: Tensor
    """Whether the expression refers to anything in its image, bool [N]."""

    image_index: Tensor
    """Which of the B images the expression is about, int64 [N]."""

    same: Tensor
    """Which pairs of expressions mean the same thing, bool [N, N]; true on the diagonal."""

    kinds: Tensor | None = None
    """The kind of thing that a pixel shows, int64 [B, S, S], 0 being background.

    For the pretext heads; None where the source does not know.
    """

    things: Tensor | None = None
    """Which of its image's things a pixel shows, int64 [B, S, S], 0 being background.

    For the pretext heads; None where the source does not know.
    """

    def to(self, device: torch.device) -> Targets:
        """The same targets on `device`."""
        return Targets(
            masks=self.masks.to(device),
            present=self.present.to(device),
            image_index=self.image_index.to(device),
            same=self.same.to(device),
            kinds=None if self.kinds is None else self.kinds.to(device),
            things=None if self.things is None else self.things.to(device),
        )

    def part(self, rows: Tensor, first: int, last: int) -> Targets:
        """The targets of the images `first` to `last` (exclusive) alone.

        rows: int64, the expressions about these images.
        """
        return Targets(
            masks=self.masks[rows],
            present=self.present[rows],
            image_index=self.image_index[rows] - first,
            same=self.same[rows][:, rows],
            kinds=None if self.kinds is None else self.kinds[first:last],
            things=None if self.things is None else self.things[first:last],
        )
