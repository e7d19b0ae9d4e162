"""BERT as the text encoder of a family, in the form that exports well."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import BertModel


class BertEncoder(nn.Module):
    """`input_ids` [N, T] -> the states of the last layer [N, T, width].

    See docs/reference/models/dfam.md 5. The identifiers are int32; 0 is padding. The logits of
    padding get -1e4, which FP16 can hold, and whose exponential is zero as that of minus infinity
    is.
    """

    def __init__(self, bert: BertModel, tokens: int) -> None:
        """Takes BERT's layers, and of its positions as many as a row has tokens."""
        super().__init__()
        embeddings = bert.embeddings
        self.words, self.norm = embeddings.word_embeddings, embeddings.LayerNorm
        positions = embeddings.position_embeddings.weight[:tokens]
        kind = embeddings.token_type_embeddings.weight[0]  # all words are of the first kind
        self.positions = nn.Buffer((positions + kind).clone())
        self.layers = bert.encoder.layer
        self.heads = bert.config.num_attention_heads

    def _attend(self, layer: Any, x: Tensor, bias: Tensor) -> Tensor:
        own = layer.attention.self
        depth = x.shape[-1] // self.heads
        q, k, v = (
            f(x).unflatten(2, (self.heads, depth)).transpose(1, 2)
            for f in (own.query, own.key, own.value)
        )
        weights = ((q * depth**-0.5) @ k.transpose(2, 3) + bias).softmax(-1)
        return (weights @ v).transpose(1, 2).flatten(2)

    def forward(self, input_ids: Tensor) -> Tensor:
        ids = input_ids.long()
        bias = torch.where(ids != 0, 0.0, -1e4)[:, None, None]
        x = self.norm(self.words(ids) + self.positions)
        for layer in self.layers:
            attended = layer.attention.output.dense(self._attend(layer, x, bias))
            x = layer.attention.output.LayerNorm(x + attended)
            hidden = F.gelu(layer.intermediate.dense(x))
            x = layer.output.LayerNorm(x + layer.output.dense(hidden))
        return x
