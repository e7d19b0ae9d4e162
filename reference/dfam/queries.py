"""DFAM: queries read SAM's and CLIP's features; at inference they only decide "no target".

Section 14 of docs/reference/models/dfam.md.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.reference.dfam.config import NoTargetHead
from ris.reference.layers.attention import (
    CrossAttentionLayer,
    FeedForwardLayer,
    SelfAttentionLayer,
    attention_bias,
    blocked_keys,
    sine_positions,
)
from ris.reference.layers.basic import MLP


@dataclass
class DfamOutputs:
    """Everything the DFAM computes, Q queries of C channels; s is the side of SAM's grid."""

    queries_sam: list[Tensor] = field(default_factory=list)
    """The SAM path's queries, [B, Q, C]: before layer 0, then after each layer."""

    queries_clip: list[Tensor] = field(default_factory=list)
    """The CLIP path's queries, [B, Q, C]: before layer 0, then after each layer."""

    mask_logits: list[Tensor] = field(default_factory=list)
    """Masks of the SAM path's queries, [B, Q, s, s]: before layer 0, then after each layer."""

    object_embedding: Tensor | None = None
    """[B, Q, C], from the CLIP path's last queries."""

    no_target_per_query: Tensor | None = None
    """[B, Q, 2]; class 1 is "no target". None where the model has no such head."""

    no_target_logits: Tensor | None = None
    """[B, 2], the maximum over the queries. None where the model has no such head."""


class DFAM(nn.Module):
    """Three layers of queries with two paths.

    The SAM path is carried on from layer to layer; the CLIP path starts from it in each layer and
    is read out after the last one.
    """

    layers = 3
    """Number of layers of each path."""

    CA_layers: nn.ModuleList
    """Cross attention of the SAM path."""

    SA_layers: nn.ModuleList
    """Self attention of the SAM path."""

    transformer_ffn_layers: nn.ModuleList
    """Feed-forward layers of the SAM path."""

    CA_layers2: nn.ModuleList
    """Cross attention of the CLIP path."""

    SA_layers2: nn.ModuleList
    """Self attention of the CLIP path."""

    transformer_ffn_layers2: nn.ModuleList
    """Feed-forward layers of the CLIP path."""

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        queries: int,
        text_width: int,
        no_target: NoTargetHead,
    ) -> None:
        """Builds the modules, with random weights.

        Args:
            width: Channels C of queries and features.
            heads: Attention heads of a layer.
            hidden: Hidden channels of the feed-forward layers.
            queries: Number of queries Q.
            text_width: Channels of CLIP's text vectors, for the training logits.
            no_target: The no-target head, as of `ModelConfig`.
        """
        super().__init__()
        self.query_feat = nn.Embedding(queries, width)
        self.query_embed = nn.Embedding(queries, width)
        self.level_embed = nn.Embedding(self.layers, width)
        for suffix in ("", "2"):
            cross = (CrossAttentionLayer(width, heads) for _ in range(self.layers))
            own = (SelfAttentionLayer(width, heads) for _ in range(self.layers))
            forward = (FeedForwardLayer(width, hidden) for _ in range(self.layers))
            setattr(self, f"CA_layers{suffix}", nn.ModuleList(cross))
            setattr(self, f"SA_layers{suffix}", nn.ModuleList(own))
            setattr(self, f"transformer_ffn_layers{suffix}", nn.ModuleList(forward))
        self.decoder_norm1 = nn.LayerNorm(width)
        self.decoder_norm2 = nn.LayerNorm(width)
        self.v_embed = nn.Linear(width, width)
        self.mask_embed = MLP(width, width, width, 3)
        if no_target != "none":
            self.nt_embed = MLP(width, width, 2, 2 if no_target == "mlp" else 1)

        # used by the training losses alone (docs/reference/models/dfam.md 20)
        self.to_logits = nn.Linear(width, text_width)
        self.to_logits_bert = nn.Linear(width, width)
        self.logit_scale = nn.Parameter(torch.ones([]))
        self.logit_scale_condsim = nn.Parameter(torch.ones([]))

    def start(self, like: Tensor) -> Tensor:
        """The initial queries for the batch of `like`: [B, Q, C]."""
        return self.query_feat.weight.expand(like.shape[0], -1, -1)

    def masks(self, queries: Tensor, sam: Tensor) -> Tensor:
        """queries [B, Q, C], sam [B, C, s, s] -> mask logits [B, Q, s, s]."""
        product = self.mask_embed(self.decoder_norm1(queries)) @ sam.flatten(2)
        return product.unflatten(2, tuple(sam.shape[-2:]))

    def _memory(
        self, level: int, feature: Tensor, mask_logits: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What the queries attend to on a level: keys, values and the bias of blocked keys."""
        height, width = feature.shape[-2:]
        value = feature.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
        key = value + sine_positions(height, width, feature.shape[1], feature)
        return key, value, attention_bias(blocked_keys(mask_logits, (height, width)))

    def sam_step(self, layer: int, queries: Tensor, feature: Tensor, mask_logits: Tensor) -> Tensor:
        """One layer of the SAM path.

        Args:
            layer: Index of the layer, and of the level that it reads.
            queries: Those of the layer before, [B, Q, C].
            feature: SAM's level, [B, C, h, h].
            mask_logits: Masks of `queries`, [B, Q, s, s].

        Returns:
            The new queries, [B, Q, C].
        """
        key, value, bias = self._memory(layer, feature, mask_logits)
        position = self.query_embed.weight
        queries = self.CA_layers[layer](queries, queries + position, key, value, bias)
        return self.transformer_ffn_layers[layer](self.SA_layers[layer](queries, position))

    def clip_step(
        self, layer: int, queries: Tensor, feature: Tensor, mask_logits: Tensor
    ) -> Tensor:
        """One layer of the CLIP path, which adds no query positions.

        Args:
            layer: Index of the layer, and of the level that it reads.
            queries: Those of `sam_step` of the same layer, [B, Q, C].
            feature: CLIP's level, [B, C, h, h].
            mask_logits: The masks that `sam_step` of the same layer read, [B, Q, s, s].

        Returns:
            The CLIP path's queries, [B, Q, C].
        """
        key, value, bias = self._memory(layer, feature, mask_logits)
        read = self.CA_layers2[layer](queries, queries, key, value, bias)
        return self.transformer_ffn_layers2[layer](self.SA_layers2[layer](read))

    def objects(self, queries_clip: Tensor) -> Tensor:
        """The object embeddings O [B, Q, C] of the CLIP path's queries."""
        return self.v_embed(self.decoder_norm2(queries_clip))

    def no_target(self, objects: Tensor) -> tuple[Tensor, Tensor]:
        """-> (per query [B, Q, 2], maximum over queries [B, 2]); class 1 is "no target"."""
        per_query = self.nt_embed(objects)
        return per_query, per_query.amax(1)

    def forward(
        self, sam_levels: Sequence[Tensor], clip_levels: Sequence[Tensor], sam: Tensor
    ) -> DfamOutputs:
        """Both paths through all layers, and what is read out of them.

        sam_levels are coarse to fine (s/4, s/2, s), clip_levels coarse to fine (g/2, g, 2g), sam is
        [B, C, s, s].
        """
        queries = self.start(sam)
        out = DfamOutputs([queries], [queries], [self.masks(queries, sam)])
        for layer in range(self.layers):
            masks = out.mask_logits[-1]
            queries = self.sam_step(layer, queries, sam_levels[layer], masks)
            out.queries_clip.append(self.clip_step(layer, queries, clip_levels[layer], masks))
            out.queries_sam.append(queries)
            out.mask_logits.append(self.masks(queries, sam))

        out.object_embedding = self.objects(out.queries_clip[-1])
        if hasattr(self, "nt_embed"):
            out.no_target_per_query, out.no_target_logits = self.no_target(out.object_embedding)
        return out

    def read_sam(self, sam_levels: Sequence[Tensor], sam: Tensor) -> tuple[Tensor, Tensor]:
        """The SAM path alone, which depends on no word.

        The arguments are those of `forward`.

        Returns:
            The queries behind the last layer [B, Q, C], and the masks that it read [B, Q, s, s].
        """
        queries = self.start(sam)
        mask_logits = self.masks(queries, sam)
        for layer in range(self.layers - 1):
            queries = self.sam_step(layer, queries, sam_levels[layer], mask_logits)
            mask_logits = self.masks(queries, sam)
        last = self.layers - 1
        return self.sam_step(last, queries, sam_levels[last], mask_logits), mask_logits

    def decide(self, queries: Tensor, finest_clip_level: Tensor, mask_logits: Tensor) -> Tensor:
        """The no-target logits [B, 2] alone, without the parts of `forward` that do not reach them.

        Args:
            queries: Of `read_sam`, [B, Q, C].
            finest_clip_level: CLIP's finest level, [B, C, h, h].
            mask_logits: Of `read_sam`, [B, Q, s, s].
        """
        read = self.clip_step(self.layers - 1, queries, finest_clip_level, mask_logits)
        return self.no_target(self.objects(read))[1]

    def training_logits(
        self, objects: Tensor, clip_text: Tensor, bert_cls: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Scaled cosine similarities of objects and texts, which the losses use.

        objects [B, Q, C], CLIP text vectors [K, text_width], [CLS] vectors [M, C] -> ([B, Q, K],
        [B, Q, M]).
        """
        words = F.normalize(self.to_logits(objects), dim=-1)
        words = words @ F.normalize(clip_text, dim=-1).T
        sentences = F.normalize(self.to_logits_bert(objects), dim=-1)
        sentences = sentences @ F.normalize(bert_cls, dim=-1).T
        return words * self.logit_scale_condsim.exp(), sentences * self.logit_scale.exp()
