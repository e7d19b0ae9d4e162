"""CLIP's text state at its start token, which the class term compares queries with.

It belongs to training alone, so it is no part of a model's state dict.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ris.reference.dfam.model import RISModel

_NAME = "sentence_start"


def set_sentence_start(model: RISModel, state: Tensor | None) -> None:
    """Gives the model the state, float32 [embed_dim]; None: zeros, for runs without the term."""
    value = torch.zeros(model.config.clip.embed_dim) if state is None else state
    model.register_buffer(_NAME, value, persistent=False)


def sentence_start(model: RISModel) -> Tensor:
    """The state, float32 [embed_dim], the same for every sentence (`set_sentence_start`)."""
    return model.get_buffer(_NAME)
