"""What a model computes in, and why: what `ris.runtime.computing` decides and commands show."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ris.engines import COMPUTES

AUTO = "auto"
"""Leaves the precision to `ris.runtime.computing`."""

CHOICES = (AUTO, *COMPUTES)
"""What may be asked for a whole model."""


@dataclass(frozen=True)
class Choice:
    """What a model computes in, and why. Of single graphs their sessions tell (`SessionInfo`)."""

    asked: str
    """One of `CHOICES`."""

    taken: str | None
    """One of `COMPUTES`; None: each graph's own precision.

    In bfloat16 and FP16 are the graphs that the bundle says are precise enough; the rest is FP32.
    """

    why: str
    """Why that was taken, for people: what comes behind "since"."""

    gain: float | None = None
    """How many times as fast products were in bfloat16 as in FP32; None where it did not matter."""

    mask_iou: float | None = None
    """The lowest mask IoU of the bundle's own questions in bfloat16; None where it did not matter.

    It is that with the masks of the reference (`Manifest.golden`).
    """

    accepted: float | None = None
    """From which `mask_iou` on bfloat16 is accepted; None as there."""

    fault: str | None = None
    """Why `mask_iou` could not be measured, which is then in `why` too; None where it could."""

    by_stage: Mapping[str, str | None] = field(default_factory=dict)
    """What each graph is asked to compute in, as `EngineOptions.compute`."""

    @property
    def words(self) -> str:
        """The choice in one line."""
        if self.asked != AUTO:
            return f"{self.taken}, as asked"
        return f"{self.taken or 'what each graph is written for'}, since {self.why}"

    def to_dict(self) -> dict[str, Any]:
        """Everything but `by_stage` as JSON; what a graph really computes in is with its engine."""
        return {name: value for name, value in vars(self).items() if name != "by_stage"}
