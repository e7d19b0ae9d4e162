"""What a ReLA model is made of: frozen dataclasses, and the presets that name the usual ones.

Nothing here needs PyTorch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from ris.reference.config_data import config_from
from ris.reference.layers.encoder_sizes import BertSpec, SwinConfig

FAMILY = "rela"
"""The family's name."""

LangWeight = Literal["zero", "stored"]
"""The choices of `RelaConfig.lang_weight`."""


@dataclass(frozen=True)
class RelaConfig:
    """A whole ReLA model."""

    preset: str = "rela-swin-base"
    """Name of the preset with these sizes; "custom" or a name of one's own where none has them."""

    lang_weight: LangWeight = "zero"
    """The factor on what the regions read from the words: 0, or the one in the file.

    The authors' code trains with the stored factor and never loads it, so all scores that its
    evaluation gives are those of "zero".
    """

    image_size: int = 480
    """Side of the square input, in pixels."""

    swin: SwinConfig = field(default_factory=SwinConfig)
    """The backbone."""

    bert: BertSpec = field(default_factory=BertSpec)
    """The text encoder."""

    width: int = 256
    """Channels of pixel decoder, mask features and regions."""

    heads: int = 8
    """Attention heads of pixel decoder and region decoder."""

    deformable_layers: int = 6
    """Layers of the pixel decoder's encoder."""

    deformable_points: int = 4
    """Places that a head of the pixel decoder samples on each level."""

    ffn_width: int = 1024
    """Hidden channels of the pixel decoder's feed-forward layers."""

    regions: int = 100
    """Number of regions."""

    region_layers: int = 9
    """Layers of the region decoder; they go through the three levels in turn."""

    region_ffn_width: int = 2048
    """Hidden channels of the region decoder's feed-forward layers."""

    max_tokens: int = 20
    """Tokens of an expression, [CLS] and [SEP] among them.

    Longer ones are cut, and all are padded to exactly this: the regions read the padding, too.
    """

    @property
    def mask_size(self) -> int:
        """Side of the mask logits: the grid of the first stage."""
        return self.image_size // self.swin.patch_size

    def grids(self) -> tuple[int, ...]:
        """Side of each stage's grid."""
        return self.swin.grids(self.image_size)

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> RelaConfig:
        """The inverse of `to_dict`; lists, which JSON makes of tuples, become tuples again.

        Raises TypeError for an unknown field.
        """
        return config_from(cls, data)


PRESETS: dict[str, RelaConfig] = {
    "rela-swin-base": RelaConfig(),
    "rela-swin-tiny": RelaConfig(
        preset="rela-swin-tiny",
        swin=SwinConfig(width=96, depths=(2, 2, 6, 2), heads=(3, 6, 12, 24), window=7),
    ),
    "tiny-rela": RelaConfig(
        preset="tiny-rela",
        image_size=128,
        swin=SwinConfig(width=32, depths=(2, 2, 2, 2), heads=(1, 2, 4, 8), window=5),
        bert=BertSpec(vocab_size=320, width=48, layers=2, heads=3, mlp_width=96, positions=64),
        width=64,
        deformable_layers=2,
        ffn_width=128,
        regions=20,
        region_layers=4,
        region_ffn_width=128,
    ),
}
"""The usual models by name.

- "rela-swin-base", "rela-swin-tiny": the published ones, with bert-base-uncased.
- "tiny-rela": every module at its smallest, for tests; every stage pads its windows.
"""
