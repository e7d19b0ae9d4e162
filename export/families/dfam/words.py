"""BERT and the projection of its words, in the form that exports well."""

from __future__ import annotations

from torch import Tensor

from ris.export.families.bert import BertEncoder
from ris.reference.dfam.model import RISModel


class TextEncoder(BertEncoder):
    """`input_ids` [N, T] -> `text_features` [N, T, C] (docs/reference/models/dfam.md 5)."""

    def __init__(self, model: RISModel) -> None:
        super().__init__(model.text_encoder, model.config.max_tokens)
        self.lang_mlp = model.lang_mlp

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.lang_mlp(super().forward(input_ids))
