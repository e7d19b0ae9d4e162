"""What a CGFormer model is made of: a frozen dataclass, and the presets that name the usual ones.

Nothing here needs PyTorch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ris.reference.config_data import config_from
from ris.reference.layers.encoder_sizes import BertSpec, SwinConfig

FAMILY = "cgformer"
"""The family's name."""

LEVELS = 3
"""How many maps have their places grouped, one after the other."""

Assignment = Literal["expected", "sampled"]
"""The choices of `CgformerConfig.assignment`."""


@dataclass(frozen=True)
class CgformerConfig:
    """A whole CGFormer model."""

    preset: str = "cgformer"
    """Name of the preset with these sizes; "custom" or a name of one's own where none has them."""

    assignment: Assignment = "expected"
    """How places go to the two tokens: by their share in the mean, or each to one, by given noise.

    The authors' code draws fresh noise at every pass; "expected" is what many draws average to.
    """

    image_size: int = 480
    """Side of the square input and of the mask logits, in pixels."""

    swin: SwinConfig = field(default_factory=SwinConfig)
    """The backbone."""

    bert: BertSpec = field(default_factory=BertSpec)
    """The text encoder."""

    pwam_heads: int = 8
    """Attention heads of the backbone's pixel-word attention."""

    width: int = 512
    """Channels of the fused maps, the tokens and the kernel."""

    mlp_width: int = 1024
    """Hidden channels of the tokens' feed-forward layers."""

    max_tokens: int = 20
    """Words of an expression, [CLS] and [SEP] among them; longer ones are cut.

    Padding has no effect, so any number that holds the expression gives the same answer.
    """

    def map_sides(self) -> tuple[int, ...]:
        """Side of each map whose places are grouped, coarse to fine."""
        return self.swin.grids(self.image_size)[:LEVELS][::-1]

    def places(self) -> tuple[int, ...]:
        """Places of each such map; the noise of an expression has a number for each of them."""
        return tuple(side * side for side in self.map_sides())

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> CgformerConfig:
        """The inverse of `to_dict`; lists, which JSON makes of tuples, become tuples again.

        Raises TypeError for an unknown field.
        """
        return config_from(cls, data)


PRESETS: dict[str, CgformerConfig] = {
    "cgformer": CgformerConfig(),
    "tiny-cgformer": CgformerConfig(
        preset="tiny-cgformer",
        image_size=128,
        swin=SwinConfig(width=32, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=5),
        bert=BertSpec(vocab_size=320, width=48, layers=2, heads=3, mlp_width=96, positions=64),
        width=48,
        mlp_width=96,
    ),
}
"""The usual models by name.

- "cgformer": the published one, Swin-B with bert-base-uncased.
- "tiny-cgformer": every module at its smallest, for tests; every stage pads its windows.
"""
