"""What an EVF-SAM model is made of: frozen dataclasses, and the presets that name the usual ones.

Nothing here needs PyTorch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from ris.reference.config_data import config_from
from ris.reference.evfsam.hiera_sizes import HieraSizes
from ris.reference.layers.encoder_sizes import SamConfig

FAMILY = "evfsam"
"""The family's name."""

Version = Literal["1", "2"]
"""The choices of `EvfsamConfig.version`."""

FIRST_POSITION = 2
"""The row of BEiT-3's tables of positions that the first position gets."""


@dataclass(frozen=True)
class Beit3Config:
    """BEiT-3: a transformer of two experts, one for the image's positions, one for the words'."""

    image_size: int = 224
    """Side of the square input, in pixels."""

    patch_size: int = 16
    """Side of a patch, in pixels."""

    width: int = 1024
    """Channels of the transformer."""

    layers: int = 24
    """Number of layers."""

    heads: int = 16
    """Attention heads of a layer."""

    mlp_width: int = 4096
    """Hidden channels of an expert's feed-forward layer."""

    vocab_size: int = 64010
    """Rows of the token table."""

    positions: int = 1024
    """Rows of the words' table of positions, of which the first two are never used."""

    @property
    def image_positions(self) -> int:
        """Positions of the image: the class token and the patches."""
        return (self.image_size // self.patch_size) ** 2 + 1


@dataclass(frozen=True)
class EvfsamConfig:
    """A whole EVF-SAM model."""

    preset: str = "evfsam"
    """Name of the preset with these sizes; "custom" or a name of one's own where none has them."""

    version: Version = "1"
    """What the prompt is given to: SAM ("1"), or SAM 2 with the best of three masks ("2")."""

    sam: SamConfig = field(
        default_factory=lambda: SamConfig(
            width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31)
        )
    )
    """SAM's image encoder; of no effect in version 2."""

    hiera: HieraSizes = field(default_factory=HieraSizes)
    """SAM 2's image encoder; of no effect in version 1."""

    beit3: Beit3Config = field(default_factory=Beit3Config)
    """The encoder of square and words."""

    prompt_width: int = 256
    """Channels of SAM's embeddings and of the prompt."""

    decoder_heads: int = 8
    """Attention heads of the mask decoder."""

    decoder_mlp_width: int = 2048
    """Hidden channels of the mask decoder's feed-forward layers."""

    max_tokens: int = 35
    """Tokens of an expression, <s> and </s> among them; longer ones are cut.

    Padding has no effect, so any number that holds the expression gives the same answer.
    """

    def __post_init__(self) -> None:
        """Raises ValueError for more tokens than there are positions, or too few for a text."""
        most = self.beit3.positions - FIRST_POSITION
        if not 3 <= self.max_tokens <= most:
            raise ValueError(f"{self.max_tokens} tokens are not between 3 and {most}")

    @property
    def image_size(self) -> int:
        """Side of SAM's input, in pixels."""
        return self.sam.image_size if self.version == "1" else self.hiera.image_size

    @property
    def grid(self) -> int:
        """Side of SAM's embeddings."""
        return self.sam.grid if self.version == "1" else self.hiera.sides()[2]

    @property
    def mask_size(self) -> int:
        """Side of the low-resolution mask logits."""
        return self.grid * 4

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EvfsamConfig:
        """The inverse of `to_dict`; lists, which JSON makes of tuples, become tuples again.

        Raises TypeError for an unknown field.
        """
        return config_from(cls, data)


_TINY = EvfsamConfig(
    preset="tiny-evfsam",
    sam=SamConfig(image_size=256, width=48, depth=3, heads=3, global_blocks=(1,)),
    hiera=HieraSizes(
        image_size=256, width=16, depths=(2, 2, 3, 2), heads=(1, 2, 4, 8), global_blocks=(5,)
    ),
    beit3=Beit3Config(
        image_size=64,
        width=64,
        layers=3,
        heads=2,
        mlp_width=128,
        vocab_size=320,
        positions=64,
    ),
    prompt_width=64,
    decoder_mlp_width=128,
)

PRESETS: dict[str, EvfsamConfig] = {
    "evfsam": EvfsamConfig(),
    "evfsam2": EvfsamConfig(preset="evfsam2", version="2"),
    "tiny-evfsam": _TINY,
    "tiny-evfsam2": replace(_TINY, preset="tiny-evfsam2", version="2"),
}
"""The usual models by name.

- "evfsam": the published one on SAM ViT-H, with BEiT-3 large.
- "evfsam2": the published one on SAM 2's Hiera-L, with the mask that its multitask checkpoint
  takes: the best of three.
- "tiny-evfsam", "tiny-evfsam2": every module of either at its smallest, for tests.
"""
