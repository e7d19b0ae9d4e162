"""DFAM: 100 queries read SAM's and CLIP's features; at inference they only decide "no target"
(docs/reference/models/dfam.md 14).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ris.reference.config import NoTargetHead
from ris.reference.layers import (
    MLP,
    CrossAttentionLayer,
    FeedForwardLayer,
    SelfAttentionLayer,
    sine_positions,
)

BLOCKED = (
    -1e4
)  # added to the logit of a blocked key: exp(-1e4) is 0 in every precision, and FP16 can hold it


@dataclass
class DfamOutputs:
    """Everything the DFAM computes; lists start with the state before layer 0.

    queries_sam, queries_clip: [B, Q, C]; mask_logits [B, Q, s, s]; object_embedding [B, Q, C];
    no_target_per_query [B, Q, 2] and no_target_logits [B, 2] where the model has the head.
    """

    queries_sam: list[Tensor] = field(default_factory=list)
    queries_clip: list[Tensor] = field(default_factory=list)
    mask_logits: list[Tensor] = field(default_factory=list)
    object_embedding: Tensor | None = None
    no_target_per_query: Tensor | None = None
    no_target_logits: Tensor | None = None


def blocked_keys(mask_logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Which keys each query may not see on a level of `size`: [B, Q, H*W] bool, before the
    all-blocked rule.
    """
    if tuple(mask_logits.shape[-2:]) != size:
        mask_logits = F.interpolate(mask_logits, size=size, mode="bilinear", align_corners=False)
    return (mask_logits < 0).flatten(2)


def attention_bias(blocked: Tensor) -> Tensor:
    """blocked [B, Q, K] -> logit bias [B, 1, Q, K]; a query for which every key is blocked sees all
    of them.
    """
    hidden = blocked & ~blocked.all(-1, keepdim=True)
    return torch.where(hidden, BLOCKED, 0.0)[:, None]


class DFAM(nn.Module):
    """Three layers of queries with a SAM path (carried on) and a CLIP path (read out after the last
    layer).
    """

    layers = 3
    CA_layers: nn.ModuleList
    SA_layers: nn.ModuleList
    transformer_ffn_layers: nn.ModuleList
    CA_layers2: nn.ModuleList
    SA_layers2: nn.ModuleList
    transformer_ffn_layers2: nn.ModuleList

    def __init__(
        self,
        width: int,
        heads: int,
        hidden: int,
        queries: int,
        text_width: int,
        no_target: NoTargetHead,
    ) -> None:
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

    def _keys(self, level: int, feature: Tensor) -> tuple[Tensor, Tensor]:
        height, width = feature.shape[-2:]
        value = feature.flatten(2).transpose(1, 2) + self.level_embed.weight[level]
        return value + sine_positions(height, width, feature.shape[1], feature), value

    def sam_step(self, layer: int, queries: Tensor, feature: Tensor, mask_logits: Tensor) -> Tensor:
        """Layer `layer` of the SAM path; queries [B, Q, C], feature [B, C, h, h] -> [B, Q, C]."""
        key, value = self._keys(layer, feature)
        bias = attention_bias(blocked_keys(mask_logits, (feature.shape[-2], feature.shape[-1])))
        position = self.query_embed.weight
        queries = self.CA_layers[layer](queries, queries + position, key, value, bias)
        return self.transformer_ffn_layers[layer](self.SA_layers[layer](queries, position))

    def clip_step(
        self, layer: int, queries: Tensor, feature: Tensor, mask_logits: Tensor
    ) -> Tensor:
        """Layer `layer` of the CLIP path, from the SAM path's queries; the same masks, no query
        positions.
        """
        key, value = self._keys(layer, feature)
        bias = attention_bias(blocked_keys(mask_logits, (feature.shape[-2], feature.shape[-1])))
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
        """sam_levels coarse to fine (s/4, s/2, s), clip_levels coarse to fine (g/2, g, 2g), sam [B,
        C, s, s].
        """
        queries = self.start(sam)
        out = DfamOutputs([queries], [queries], [self.masks(queries, sam)])
        for layer in range(self.layers):
            queries = self.sam_step(layer, queries, sam_levels[layer], out.mask_logits[-1])
            out.queries_clip.append(
                self.clip_step(layer, queries, clip_levels[layer], out.mask_logits[-1])
            )
            out.queries_sam.append(queries)
            out.mask_logits.append(self.masks(queries, sam))
        out.object_embedding = self.objects(out.queries_clip[-1])
        if hasattr(self, "nt_embed"):
            out.no_target_per_query, out.no_target_logits = self.no_target(out.object_embedding)
        return out

    def decide(
        self, sam_levels: Sequence[Tensor], finest_clip_level: Tensor, sam: Tensor
    ) -> Tensor:
        """The no-target logits [B, 2] alone, without the parts of `forward` that do not reach
        them.
        """
        queries = self.start(sam)
        mask_logits = self.masks(queries, sam)
        for layer in range(self.layers - 1):
            queries = self.sam_step(layer, queries, sam_levels[layer], mask_logits)
            mask_logits = self.masks(queries, sam)
        last = self.layers - 1
        queries = self.sam_step(last, queries, sam_levels[last], mask_logits)
        return self.no_target(
            self.objects(self.clip_step(last, queries, finest_clip_level, mask_logits))
        )[1]

    def training_logits(
        self, objects: Tensor, clip_text: Tensor, bert_cls: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Cosine similarities that the losses use: (with CLIP text vectors [B, Q, K], with [CLS]
        vectors [B, Q, M]).

        objects [B, Q, C]; clip_text [K, text_width]; bert_cls [M, C].
        """
        words = F.normalize(self.to_logits(objects), dim=-1) @ F.normalize(clip_text, dim=-1).T
        sentences = (
            F.normalize(self.to_logits_bert(objects), dim=-1) @ F.normalize(bert_cls, dim=-1).T
        )
        return words * self.logit_scale_condsim.exp(), sentences * self.logit_scale.exp()
