"""What is right, as the losses read it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor


@dataclass
class Targets:
    """What is right, for N expressions about B images.

    masks [N, S, S] float32 of 0 and 1 at the model's square. present [N] bool: False where nothing
    is referred to. image_index [N] int64. same [N, N] bool: pairs of expressions that mean the same
    thing (always true on the diagonal). For the pretext heads, int64 [B, S, S] or None, 0 being
    background: kinds, the kind of thing that a pixel shows; things, which of the image's things it
    is.
    """

    masks: Tensor
    present: Tensor
    image_index: Tensor
    same: Tensor
    kinds: Tensor | None = None
    things: Tensor | None = None
