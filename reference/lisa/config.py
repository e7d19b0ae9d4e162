"""What a LISA model is made of: frozen dataclasses, and the presets that name the usual ones.

Nothing here needs PyTorch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from ris.reference.config_data import config_from
from ris.reference.layers.encoder_sizes import ClipConfig, SamConfig
from ris.reference.lisa.templates import Template, system_ids

FAMILY = "lisa"
"""The family's name."""


@dataclass(frozen=True)
class LlamaSpec:
    """The language model: LLaMA without grouped keys and without biases. 7B's sizes."""

    vocab_size: int = 32004
    """Rows of the token table, the added tokens among them."""

    width: int = 4096
    """Channels of the transformer."""

    layers: int = 32
    """Number of layers."""

    heads: int = 32
    """Attention heads of a layer."""

    mlp_width: int = 11008
    """Hidden channels of a layer's gated feed-forward part."""

    eps: float = 1e-6
    """What every RMS norm adds to the mean of squares; it differs from file to file."""

    @property
    def head_width(self) -> int:
        """Channels of a head."""
        return self.width // self.heads


@dataclass(frozen=True)
class AddedTokens:
    """Ids of the tokens that LISA adds to LLaMA's 32,000. They differ from file to file."""

    im_start: int = 32001
    """`<im_start>`, in front of the picture."""

    im_end: int = 32002
    """`<im_end>`, behind it."""

    seg: int = 32003
    """`[SEG]`, which is never fed to the model: what predicts it is read."""


VIT_H = SamConfig(width=1280, depth=32, heads=16, global_blocks=(7, 15, 23, 31))
"""SAM ViT-H's image encoder."""

CLIP_L = ClipConfig(image_size=224)
"""CLIP ViT-L/14 at 224 pixels."""


@dataclass(frozen=True)
class LisaConfig:
    """A whole LISA model."""

    preset: str = "lisa-7b"
    """Name of the preset with these sizes; "custom" or a name of one's own where none has them."""

    template: Template = "llava_v1"
    """The conversation that the question stands in."""

    llama: LlamaSpec = field(default_factory=LlamaSpec)
    """The language model."""

    tokens: AddedTokens = field(default_factory=AddedTokens)
    """Ids of the added tokens."""

    clip: ClipConfig = field(default_factory=lambda: CLIP_L)
    """CLIP as its own file has it, of which the image tower alone is used."""

    unused_clip_layers: int = 1
    """Last layers of CLIP's image tower that are not run: `mm_vision_select_layer` is -2."""

    sam: SamConfig = field(default_factory=lambda: VIT_H)
    """SAM's image encoder."""

    prompt_width: int = 256
    """Channels of SAM's embeddings and of the prompt, `out_dim`."""

    decoder_heads: int = 8
    """Attention heads of SAM's mask decoder."""

    decoder_mlp_width: int = 2048
    """Hidden channels of the feed-forward layers of SAM's mask decoder."""

    max_tokens: int = 64
    """Tokens of a question, from behind the picture up to the colon; longer ones are refused.

    Padding has no effect.
    """

    @property
    def clip_layers(self) -> int:
        """Layers of CLIP's image tower that are run."""
        return self.clip.layers - self.unused_clip_layers

    @property
    def image_tokens(self) -> int:
        """Positions that the picture takes."""
        return self.clip.grid**2

    @property
    def constant_ids(self) -> tuple[int, ...]:
        """The ids in front of the picture: the same for every picture and question."""
        return (*system_ids(self.template, self.llama.vocab_size), self.tokens.im_start)

    @property
    def prefix_length(self) -> int:
        """Positions up to the question: the constant ones, the picture's, and `<im_end>`."""
        return len(self.constant_ids) + self.image_tokens + 1

    def to_dict(self) -> dict[str, Any]:
        """All fields, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> LisaConfig:
        """The inverse of `to_dict`; lists, which JSON makes of tuples, become tuples again.

        Raises TypeError for an unknown field.
        """
        return config_from(cls, data)


PRESETS: dict[str, LisaConfig] = {
    "lisa-7b": LisaConfig(),
    "lisa-13b": LisaConfig(
        preset="lisa-13b",
        llama=LlamaSpec(32003, width=5120, layers=40, heads=40, mlp_width=13824, eps=1e-5),
        tokens=AddedTokens(seg=32000),
    ),
    "tiny-lisa": LisaConfig(
        preset="tiny-lisa",
        llama=LlamaSpec(804, width=128, layers=3, heads=4, mlp_width=256),
        tokens=AddedTokens(801, 802, 803),
        clip=ClipConfig(
            image_size=56,
            width=64,
            layers=3,
            heads=2,
            embed_dim=48,
            text_width=48,
            text_layers=1,
            text_heads=2,
            text_vocab_size=512,
        ),
        sam=SamConfig(image_size=256, width=48, depth=3, heads=3, global_blocks=(1,)),
        prompt_width=64,
        decoder_mlp_width=128,
    ),
}
"""The usual models by name.

- "lisa-7b": LISA-7B-v1, of LLaMA 1.
- "lisa-13b": LISA-13B-llama2-v1, of Llama 2.
- "tiny-lisa": every module at its smallest, for tests.
"""
