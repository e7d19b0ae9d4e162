"""The backbone: four stages of Swin blocks, each of which mixes the words into the image.

What a stage gives to the decoder is the mixture alone; gated, it also goes on to the next stage, so
that only the first stage's blocks are free of the words.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn

from ris.reference.layers.pixel_words import PWAM
from ris.reference.rela.config import RelaConfig
from ris.reference.rela.swin import PatchEmbed, PatchMerging, SwinBlock


@dataclass(frozen=True)
class Stem:
    """What depends on the image alone, C channels on the first stage's grid of s*s places."""

    tokens: Tensor
    """The first stage's tokens behind its blocks, [B, s*s, C]."""

    values: Tensor
    """What PWAM of the first stage multiplies with the words, [B, s*s, C]."""

    queries: Tensor
    """What PWAM of the first stage asks the words with, [B, s*s, C]."""


class Stage(nn.Module):
    """One stage; its attributes are named as in the checkpoint."""

    def __init__(self, config: RelaConfig, index: int) -> None:
        super().__init__()
        swin = config.swin
        width, last = swin.widths()[index], index == len(swin.depths) - 1
        self.side = config.grids()[index]
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
        self.fusion = PWAM(width, width, config.bert.width)
        self.res_gate: nn.Sequential | None = None
        self.downsample: PatchMerging | None = None
        if not last:
            self.res_gate = nn.Sequential(
                nn.Linear(width, width, bias=False),
                nn.ReLU(),
                nn.Linear(width, width, bias=False),
                nn.Tanh(),
            )
            self.downsample = PatchMerging(width)

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """tokens [B, side*side, C] -> the same shape, behind all blocks."""
        for block in self.blocks:
            tokens = block(tokens)
        return tokens

    def gated(self, tokens: Tensor, fused: Tensor) -> Tensor:
        """The tokens with a gated share of what PWAM made of them, of a stage that is not the last.

        Both [N, side*side, C] -> the same shape.
        """
        assert self.res_gate is not None
        return tokens + self.res_gate(fused) * fused


class Backbone(nn.Module):
    """Swin with the words behind every stage."""

    def __init__(self, config: RelaConfig) -> None:
        super().__init__()
        swin = config.swin
        self.patch_embed = PatchEmbed(swin.width, swin.patch_size)
        self.layers = nn.ModuleList(Stage(config, i) for i in range(len(swin.depths)))
        for index, width in enumerate(swin.widths()):
            setattr(self, f"norm{index}", nn.LayerNorm(width))

    def stages(self) -> list[Stage]:
        """The stages, fine to coarse."""
        return cast("list[Stage]", list(self.layers))

    def stem(self, image: Tensor) -> Stem:
        """image [B, 3, S, S], normalised -> what depends on it alone."""
        first = self.stages()[0]
        tokens = first.run_blocks(self.patch_embed(image))
        return Stem(tokens, *first.fusion.project_image(tokens))

    def forward(self, stem: Stem, text: Tensor, mask: Tensor) -> list[Tensor]:
        """The maps of the four stages.

        Args:
            stem: Of `stem`, a row for each expression.
            text: BERT's states, [N, T, bert width].
            mask: [N, T], 1 for real tokens, 0 for padding.

        Returns:
            Fine to coarse, "res2" to "res5": [N, C, s, s] to [N, 8C, s/8, s/8].
        """
        maps = []
        tokens, values, queries = stem.tokens, stem.values, stem.queries
        for index, stage in enumerate(self.stages()):
            if index:
                tokens = stage.run_blocks(tokens)
                values, queries = stage.fusion.project_image(tokens)
            fused = stage.fusion.mix(values, queries, text, mask)
            feature = getattr(self, f"norm{index}")(fused)
            maps.append(feature.transpose(1, 2).unflatten(2, (stage.side, stage.side)))
            if stage.downsample is not None:
                tokens = stage.downsample(stage.gated(tokens, fused), stage.side, stage.side)
        return maps
