"""What is right, as the losses read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor


@dataclass
class Targets:
    """What is right for N expressions about B images, at the model's square of S x S pixels."""

    union: Tensor
    """Everything that the expression means as one mask, bool [N, S, S]: the main mask's target."""

    objects: tuple[Tensor, ...]
    """Each object that the expression means, N of bool [n, S, S]: DFAM's targets.

    n is 0 where nothing is meant.
    """

    targeted: Tensor
    """Whether the expression refers to anything in its image, bool [N]."""

    image_index: Tensor
    """Which of the B images the expression is about, int64 [N]."""

    category: Tensor
    """The row of the category table of what is meant, int64 [N].

    Background, the last row, where there is no such category.
    """

    same: Tensor | None = None
    """Which pairs of expressions mean the same thing, bool [N, N]; true on the diagonal.

    For the demo's losses; None where the source does not know.
    """

    kinds: Tensor | None = None
    """The kind of thing that a pixel shows, int64 [B, S, S], 0 being background.

    For the pretext heads; None where the source does not know.
    """

    things: Tensor | None = None
    """Which of its image's things a pixel shows, int64 [B, S, S], 0 being background.

    For the pretext heads; None where the source does not know.
    """

    @property
    def count(self) -> int:
        """How many objects the expressions mean together, of which the losses' `objects` is made.

        An object that two expressions mean counts twice.
        """
        return sum(len(masks) for masks in self.objects)

    def to(self, device: torch.device, *, non_blocking: bool = False) -> Targets:
        """The same targets on `device`."""
        return self._each(lambda value: value.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> Targets:
        """The same targets in page-locked memory, which a GPU copies from by itself."""
        return self._each(Tensor.pin_memory)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Targets:
        """The targets with every tensor of them changed."""

        def changed(value: Tensor | tuple[Tensor, ...] | None) -> Any:
            if isinstance(value, tuple):
                return tuple(change(each) for each in value)
            return None if value is None else change(value)

        return replace(self, **{name: changed(value) for name, value in vars(self).items()})

    def part(self, rows: Tensor, first: int, last: int) -> Targets:
        """The targets of the images `first` to `last` (exclusive) alone.

        rows: int64, the expressions about these images.
        """
        return Targets(
            union=self.union[rows],
            objects=tuple(self.objects[int(row)] for row in rows),
            targeted=self.targeted[rows],
            image_index=self.image_index[rows] - first,
            category=self.category[rows],
            same=None if self.same is None else self.same[rows][:, rows],
            kinds=None if self.kinds is None else self.kinds[first:last],
            things=None if self.things is None else self.things[first:last],
        )
