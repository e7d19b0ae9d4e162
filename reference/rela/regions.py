"""The region decoder: regions that read the image, the words and each other.

Their masks, weighted and summed, are the answer; their mean says whether there is a target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.reference.layers.attention import (
    CrossAttentionLayer,
    FeedForwardLayer,
    SelfAttentionLayer,
    attention_bias,
    sine_positions,
)
from ris.reference.layers.basic import MLP
from ris.reference.rela.config import RelaConfig

LEVELS = 3
"""Maps that the regions read, in turn."""

_SHARE = 0.1  # of a normalised sum, at most: what the words add to the regions


@dataclass
class RegionOutputs:
    """Everything the region decoder computes, Q regions of C channels; s is the masks' side."""

    mask_logits: Tensor
    """The mask, foreground minus background, [N, 1, s, s]; above 0 is foreground."""

    no_target_logits: Tensor
    """[N, 2], class 1 means "no target"."""

    no_target_per_query: Tensor
    """The same for each region, [N, Q, 2]."""

    region_embed: Tensor
    """What makes a region's mask of the mask features, [N, Q, C]."""

    minimap: Tensor
    """Each region's weights in the background and in the foreground, [N, Q, 2]."""

    queries: list[Tensor] = field(default_factory=list)
    """The regions, [N, Q, C]: before layer 0, then after each layer."""

    blocked: list[Tensor] = field(default_factory=list)
    """The keys that each layer hides from each region, bool [N, Q, keys].

    That is before regions from which everything is hidden see everything.
    """


class RegionMasks(nn.Module):
    """Which keys a region may not see: those outside of its mask.

    It has no weights, and is a module so that a half-precision export finds what has to stay FP32:
    a logit near 0 falls on the other side there.
    """

    def forward(self, embed: Tensor, features: Tensor) -> Tensor:
        """embed [N, Q, C], mask features of the level's size [N, C, h, h] -> bool [N, Q, h*h]."""
        return embed @ features.flatten(2) < 0


class RegionDecoder(nn.Module):
    """The layers and heads; the attributes are named as in the checkpoint."""

    RIA_layers: nn.ModuleList
    """Regions read the image."""

    RLA_vision: nn.ModuleList
    """Regions read each other."""

    RLA_lang_att: nn.Module
    """Regions read the words, in layer 0 alone."""

    def __init__(self, config: RelaConfig) -> None:
        super().__init__()
        width, heads, layers = config.width, config.heads, range(config.region_layers)
        self.query_feat = nn.Embedding(config.regions, width)
        self.query_embed = nn.Embedding(config.regions, width)
        self.level_embed = nn.Embedding(LEVELS, width)
        self.RIA_layers = nn.ModuleList(CrossAttentionLayer(width, heads) for _ in layers)
        self.RLA_vision = nn.ModuleList(SelfAttentionLayer(width, heads) for _ in layers)
        self.transformer_ffn_layers = nn.ModuleList(
            FeedForwardLayer(width, config.region_ffn_width) for _ in layers
        )
        self.lang_proj = nn.Linear(config.bert.width, width, bias=False)
        self.RLA_lang_att = CrossAttentionLayer(width, heads)
        self.lang_weight = nn.Parameter(torch.zeros(()))
        self.decoder_norm = nn.LayerNorm(width)
        self.mask_embed = MLP(width, width, width, 3)
        self.minimap_embed = nn.Linear(width, 2)
        self.nt_embed = MLP(width, width, 2, 2)
        self.region_masks = RegionMasks()

    def start(self, like: Tensor) -> Tensor:
        """The initial regions for the batch of `like`: [N, Q, C]."""
        return self.query_feat.weight.expand(like.shape[0], -1, -1)

    def embed(self, queries: Tensor) -> Tensor:
        """What makes the regions' masks of the mask features: [N, Q, C] -> [N, Q, C]."""
        return self.mask_embed(self.decoder_norm(queries))

    def read_image(self, layer: int, queries: Tensor, level: Tensor, bias: Tensor) -> Tensor:
        """The first part of a layer.

        Args:
            layer: Index of the layer.
            queries: The regions, [N, Q, C].
            level: The map that they read, [N, C, h, h].
            bias: Of the blocked keys, [N, 1, Q, h*h].

        Returns:
            The new regions, [N, Q, C].
        """
        height, width = level.shape[-2:]
        value = level.flatten(2).transpose(1, 2) + self.level_embed.weight[layer % LEVELS]
        key = value + sine_positions(height, width, level.shape[1], level)
        placed = queries + self.query_embed.weight
        return self.RIA_layers[layer](queries, placed, key, value, bias)

    def read_words(self, queries: Tensor, text: Tensor) -> Tensor:
        """What the regions read of all words, padding included, as RLA's sum has it.

        queries [N, Q, C], BERT's states [N, T, bert width] -> [N, Q, C].
        """
        words = self.lang_proj(text)
        return self.RLA_lang_att(queries, queries, words, words)

    def add_words(self, queries: Tensor, language: Tensor) -> Tensor:
        """The regions with a share of `read_words`, both [N, Q, C]."""
        return queries + _SHARE * self.lang_weight.sigmoid() * language

    def read_regions(self, layer: int, queries: Tensor) -> Tensor:
        """The last part of a layer: regions [N, Q, C] -> regions [N, Q, C]."""
        read = self.RLA_vision[layer](queries, self.query_embed.weight)
        return self.transformer_ffn_layers[layer](read)

    def no_target(self, regions: Tensor) -> tuple[Tensor, Tensor]:
        """regions [N, Q, C], normalised -> (per region [N, Q, 2], their mean [N, 2])."""
        per_query = self.nt_embed(regions)
        return per_query, per_query.mean(1)

    def forward(self, features: Tensor, levels: Sequence[Tensor], text: Tensor) -> RegionOutputs:
        """All layers, and what is read out of the last regions.

        The masks that a layer's attention needs are made at the size of its level, from mask
        features of that size: what a resize of them would give, as both are linear.

        Args:
            features: The mask features, [N, C, s, s].
            levels: Coarse to fine, [N, C, s/8, s/8] to [N, C, s/2, s/2].
            text: BERT's states, [N, T, bert width].
        """
        small = [
            F.interpolate(features, size=level.shape[-2:], mode="bilinear", align_corners=False)
            for level in levels
        ]
        queries = self.start(features)
        seen, hidden = [queries], []
        for layer in range(len(self.RIA_layers)):
            level = layer % LEVELS
            blocked = self.region_masks(self.embed(queries), small[level])
            queries = self.read_image(layer, queries, levels[level], attention_bias(blocked))
            if layer == 0:
                queries = self.add_words(queries, self.read_words(queries, text))
            queries = self.read_regions(layer, queries)
            hidden.append(blocked)
            seen.append(queries)

        regions = self.decoder_norm(queries)
        embed, minimap = self.mask_embed(regions), self.minimap_embed(regions)
        per_query, logits = self.no_target(regions)
        return RegionOutputs(
            mask_logits=self.answer(embed, minimap, features),
            no_target_logits=logits,
            no_target_per_query=per_query,
            region_embed=embed,
            minimap=minimap,
            queries=seen,
            blocked=hidden,
        )

    def answer(self, embed: Tensor, minimap: Tensor, features: Tensor) -> Tensor:
        """The regions' masks, weighted and summed, foreground minus background.

        Args:
            embed: The regions' embeddings, [N, Q, C].
            minimap: Their weights in background and foreground, [N, Q, 2].
            features: The mask features, [N, C, s, s].

        Returns:
            [N, 1, s, s].
        """
        difference = (minimap[..., 1:] - minimap[..., :1]).transpose(1, 2) @ embed  # [N, 1, C]
        return (difference @ features.flatten(2)).unflatten(2, tuple(features.shape[-2:]))
