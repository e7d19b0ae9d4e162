"""The sparse branch: a query attends to the words and becomes SAM's one sparse prompt.

Section 9 of docs/reference/models/dfam.md.
"""

from __future__ import annotations

from torch import Tensor, nn

from ris.reference.dfam.config import SparseBranchKind
from ris.reference.layers.attention import CrossAttentionLayer, FeedForwardLayer


class SparseBranch(nn.Module):
    """query [B, 1, C] and text [B, T, C] -> one token [B, 1, C].

    All T positions are attended to, padding included. `kind` is `ModelConfig.sparse_branch`: the
    released code's form or the supplement's wording.
    """

    def __init__(self, width: int, heads: int, hidden: int, kind: SparseBranchKind) -> None:
        super().__init__()
        self.kind = kind
        self.ca = CrossAttentionLayer(width, heads)
        if kind == "feed_forward":
            self.fcs = FeedForwardLayer(width, hidden)

    def forward(self, query: Tensor, text: Tensor) -> Tensor:
        if self.kind == "additive":
            return self.ca.norm(query) + self.ca.multihead_attn(query, text, text)
        return self.fcs(self.ca(query, query, text, text))
