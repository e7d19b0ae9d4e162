"""A Swin transformer that reads the words: each stage mixes them into the image behind its blocks.

What a stage gives to a decoder is the mixture alone; gated, it also goes on to the next stage, so
that only the first stage's blocks are free of the words.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from ris.reference.layers.encoder_sizes import SwinConfig
from ris.reference.layers.pixel_words import PWAM
from ris.reference.layers.swin import PatchEmbed, PatchMerging, SwinBlock

STEM = ("stem", "stem_vis", "stem_query")
"""The names in bundles of what depends on the image alone, in the order of `Stem`."""

MAPS = ("res2", "res3", "res4", "res5")
"""The names in bundles of the maps of the four stages, fine to coarse."""


@dataclass(frozen=True)
class Stem:
    """What depends on the image alone, C channels on the first stage's grid of s*s places."""

    tokens: Tensor
    """The first stage's tokens behind its blocks, [B, s*s, C]."""

    values: Tensor
    """What PWAM of the first stage multiplies with the words, [B, s*s, C]."""

    queries: Tensor
    """What PWAM of the first stage asks the words with, [B, s*s, C]."""

    @classmethod
    def of(cls, values: Mapping[str, Tensor]) -> Stem:
        """The inverse of `named`; other values may be there too."""
        return cls(*(values[name] for name in STEM))

    def named(self) -> dict[str, Tensor]:
        """The three by the names that they have in bundles."""
        return dict(zip(STEM, (self.tokens, self.values, self.queries), strict=True))


@dataclass(frozen=True)
class Mixing:
    """How the stages mix the words in, and what their modules are called in checkpoints."""

    mixer: str
    """The attribute of a stage's PWAM."""

    gate: str
    """The attribute of a stage's gate."""

    text_width: int
    """Channels of the words."""

    heads: int = 1
    """Attention heads of PWAM."""


class Stage(nn.Module):
    """One stage; its attributes are named as in the checkpoint."""

    def __init__(self, swin: SwinConfig, image_size: int, index: int, mixing: Mixing) -> None:
        """Builds the modules, with random weights.

        Args:
            swin: Sizes of all stages.
            image_size: Side of the square input, in pixels.
            index: Which stage it is.
            mixing: How it mixes the words in.
        """
        super().__init__()
        width, last = swin.widths()[index], index == len(swin.depths) - 1
        self.side = swin.grids(image_size)[index]
        self.mixing = mixing
        self.blocks = nn.ModuleList(
            SwinBlock(
                width,
                swin.heads[index],
                self.side,
                swin.window,
                shift=swin.window // 2 if block % 2 else 0,
            )
            for block in range(swin.depths[index])
        )
        self.add_module(mixing.mixer, PWAM(width, width, mixing.text_width, mixing.heads))
        self.downsample: PatchMerging | None = None
        if not last:
            gate = nn.Sequential(
                nn.Linear(width, width, bias=False),
                nn.ReLU(),
                nn.Linear(width, width, bias=False),
                nn.Tanh(),
            )
            self.add_module(mixing.gate, gate)
            self.downsample = PatchMerging(width)

    @property
    def words(self) -> PWAM:
        """What mixes the words in."""
        return cast(PWAM, getattr(self, self.mixing.mixer))

    @property
    def share(self) -> nn.Module:
        """What says how much of the mixture goes on, of a stage that is not the last."""
        return cast(nn.Module, getattr(self, self.mixing.gate))

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """tokens [B, side*side, C] -> the same shape, behind all blocks."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def gated(self, tokens: Tensor, fused: Tensor) -> Tensor:
        """The tokens with a gated share of what PWAM made of them, of a stage that is not the last.

        Both [N, side*side, C] -> the same shape.
        """
        return tokens + self.share(fused) * fused


class WordedSwin(nn.Module):
    """Swin with the words behind every stage."""

    def __init__(self, swin: SwinConfig, image_size: int, mixing: Mixing) -> None:
        """Builds the modules, with random weights.

        swin: sizes. image_size: side of the square input, in pixels. mixing: how the stages mix the
        words in.
        """
        super().__init__()
        self.patch_embed = PatchEmbed(swin.width, swin.patch_size)
        self.layers = nn.ModuleList(
            Stage(swin, image_size, i, mixing) for i in range(len(swin.depths))
        )
        for index, width in enumerate(swin.widths()):
            setattr(self, f"norm{index}", nn.LayerNorm(width))

    def stages(self) -> list[Stage]:
        """The stages, fine to coarse."""
        return cast("list[Stage]", list(self.layers))

    def stem(self, image: Tensor) -> Stem:
        """image [B, 3, S, S], normalised -> what depends on it alone."""
        first = self.stages()[0]
        tokens = first.run_blocks(self.patch_embed(image))
        return Stem(tokens, *first.words.project_image(tokens))

    def forward(self, stem: Stem, text: Tensor, mask: Tensor) -> list[Tensor]:
        """The maps of the four stages.

        Args:
            stem: Of `stem`, a row for each expression.
            text: BERT's states, [N, T, text_width].
            mask: [N, T], 1 for real tokens, 0 for padding.

        Returns:
            Fine to coarse, "res2" to "res5": [N, C, s, s] to [N, 8C, s/8, s/8].
        """
        maps = []
        tokens, values, queries = stem.tokens, stem.values, stem.queries
        for index, stage in enumerate(self.stages()):
            if index:
                tokens = stage.run_blocks(tokens)
                values, queries = stage.words.project_image(tokens)
            fused = stage.words.mix(values, queries, text, mask)
            feature = getattr(self, f"norm{index}")(fused)
            maps.append(feature.transpose(1, 2).unflatten(2, (stage.side, stage.side)))
            if stage.downsample is not None:
                tokens = stage.downsample(stage.gated(tokens, fused), stage.side, stage.side)
        return maps
