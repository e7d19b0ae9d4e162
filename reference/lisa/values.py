"""The model's forward by the names of a bundle's values, as its row in the table offers it.

B pictures, N expressions, T tokens; the other letters are those of `LisaOutputs`.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ris.reference.layers.letterbox import letterbox
from ris.reference.lisa.llama import Kept
from ris.reference.lisa.model import LisaModel
from ris.reference.lisa.preprocess import clip_input


def prepare(model: LisaModel, rgb: np.ndarray) -> dict[str, Tensor]:
    """A picture, uint8 RGB [H, W, 3] -> `sam_image` [1, 3, S, S], `clip_image` [1, 3, c, c]."""
    config = model.config
    return {
        "sam_image": letterbox(rgb, config.sam.image_size),
        "clip_image": clip_input(rgb, config.clip.image_size),
    }


def encode(model: LisaModel, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What depends on B pictures alone.

    Args:
        model: The reference model.
        images: `sam_image` and `clip_image`.

    Returns:
        float32: `image_embeddings` [B, C, s, s], `image_tokens` [B, g*g, D], `prefix_keys` and
        `prefix_values` [B, L, H, P, D/H].
    """
    tokens = model.project(model.encode_clip(images["clip_image"]))
    prefix = model.read_picture(tokens)
    return {
        "image_embeddings": model.encode_sam(images["sam_image"]),
        "image_tokens": tokens,
        "prefix_keys": prefix.keys,
        "prefix_values": prefix.values,
    }


def ask(model: LisaModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What depends on N expressions.

    Args:
        model: The reference model.
        values: Those of `encode`, a row for each expression or one for all; `input_ids` [N, T] and
            `text_mask` [N, T], 1 for real tokens, which stand at the left.

    Returns:
        float32: `sparse_prompt` [N, 1, C] and `mask_logits` [N, 1, 4s, 4s].
    """
    prefix = Kept(values["prefix_keys"], values["prefix_values"])
    last = values["text_mask"].sum(1).long() - 1
    hidden = model.read_question(values["input_ids"].long(), last, prefix)
    sparse = model.sparse_prompt(hidden)
    return {
        "sparse_prompt": sparse,
        "mask_logits": model.decode_masks(values["image_embeddings"], sparse),
    }
