"""The model's forward by the names of a bundle's values, as its row in the table offers it.

B images, N expressions, T tokens; C are the channels of SAM's embeddings, D those of BEiT-3, P its
positions of the image, s is the side of SAM's embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ris.reference.evfsam.model import EvfsamModel
from ris.reference.evfsam.preprocess import prepare_image


def prepare(model: EvfsamModel, rgb: np.ndarray) -> dict[str, Tensor]:
    """A picture, uint8 RGB [H, W, 3] -> `sam_image` [1, 3, S, S], `beit_image` [1, 3, b, b]."""
    sam_image, beit_image = prepare_image(rgb, model.config)
    return {"sam_image": sam_image, "beit_image": beit_image}


def encode(model: EvfsamModel, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What depends on B images alone.

    Args:
        model: The reference model.
        images: `sam_image` and `beit_image`.

    Returns:
        float32: `image_embeddings` [B, C, s, s], `image_tokens` [B, P, D] and, in version 2,
        `high_res_1` [B, C/4, 2s, 2s] and `high_res_0` [B, C/8, 4s, 4s].
    """
    tokens = model.beit3.embed_image(images["beit_image"])
    return {**model.encode_sam(images["sam_image"]), "image_tokens": tokens}


def ask(model: EvfsamModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What depends on N expressions.

    Args:
        model: The reference model.
        values: Those of `encode`, a row for each expression; `input_ids` [N, T] and `text_mask` [N,
            T], 1 for real tokens.

    Returns:
        float32: `text_features` [N, T, D], `sparse_prompt` [N, 1, C] and `mask_logits` [N, 1, 4s,
        4s].
    """
    mask = values["text_mask"]
    words = model.beit3.embed_text(values["input_ids"].long(), mask)
    prompt = model.prompt(values["image_tokens"], words, mask)
    return {
        "text_features": words,
        "sparse_prompt": prompt,
        "mask_logits": model.decode_masks(values, prompt),
    }
