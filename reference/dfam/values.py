"""The model's forward by the names of a bundle's values, as `Dfam` in the table offers it.

B images, N expressions, T tokens; the other letters are those of `ReferenceOutputs`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from ris.engines.errors import ExpressionError
from ris.engines.text import quoted
from ris.reference.dfam.categories import COCO_PANOPTIC
from ris.reference.dfam.model import RISModel
from ris.reference.dfam.preprocess import prepare_image

_NO_CATEGORY = "background"  # what an expression without a category is asked as, as in training


def prepare(model: RISModel, rgb: np.ndarray) -> dict[str, Tensor]:
    """A picture, uint8 RGB [H, W, 3] -> `sam_image` [1, 3, S, S], `clip_image` [1, 3, c, c]."""
    sam_image, clip_image = prepare_image(rgb, model.config)
    return {"sam_image": sam_image, "clip_image": clip_image}


def category_features(model: RISModel, categories: Sequence[str | None]) -> Tensor:
    """The rows of the category table, [N, embed_dim]; None is asked as "background".

    Raises ExpressionError where there is no such category.
    """
    names = [name or _NO_CATEGORY for name in categories]
    if unknown := [name for name in names if name not in COCO_PANOPTIC]:
        raise ExpressionError(f"there is no category {quoted(unknown[0])}")
    rows = [COCO_PANOPTIC.index(name) for name in names]
    return model.text_embeddings[torch.tensor(rows, device=model.text_embeddings.device)]


def encode(model: RISModel, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What depends on B images alone.

    Args:
        model: The reference model.
        images: `sam_image` and `clip_image`.

    Returns:
        float32: `image_embeddings`, `clip_tokens`, `pixel_values`, `pixel_queries` and, where the
        model has a no-target head, `object_queries` and `object_masks`.
    """
    embeddings = model.encode_sam(images["sam_image"])
    tokens = model.encode_clip(images["clip_image"])
    values, queries = model.pwam.project_image(tokens)
    found = {
        "image_embeddings": embeddings,
        "clip_tokens": tokens,
        "pixel_values": values,
        "pixel_queries": queries,
    }
    if model.config.no_target != "none":
        levels = model.backbone_sam(embeddings)[::-1]
        found["object_queries"], found["object_masks"] = model.decoder.read_sam(levels, embeddings)
    return found


def ask(model: RISModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What depends on N expressions.

    Args:
        model: The reference model.
        values: Those of `encode`, a row for each expression; `input_ids` [N, T] and `text_mask` [N,
            T], 1 for real tokens; `category_feature` [N, embed_dim], in the category variant.

    Returns:
        float32: `text_features`, `dense_prompt`, `dense_embedding`, `sparse_prompt`, `mask_logits`
        and, where the model has the head, `no_target_logits`.
    """
    text_features = model.encode_words(values["input_ids"].long())[1]
    pixels = values["pixel_values"], values["pixel_queries"]
    fused = model.pwam.fuse(*pixels, text_features, values["text_mask"])
    dense_prompt, maps = model.clip_pixel_decoder(*model.backbone_clip(fused), finest_only=True)
    dense_embedding = model.dense_embedding(dense_prompt)
    query = model.sparse_query(text_features, values.get("category_feature"))
    sparse_prompt = model.txt2txt(query, text_features)
    embeddings = values["image_embeddings"]
    found = {
        "text_features": text_features,
        "dense_prompt": dense_prompt,
        "dense_embedding": dense_embedding,
        "sparse_prompt": sparse_prompt,
        "mask_logits": model.decode_masks(embeddings, dense_embedding, sparse_prompt),
    }
    if model.config.no_target != "none":
        objects, masks = values["object_queries"], values["object_masks"]
        found["no_target_logits"] = model.decoder.decide(objects, maps[-1], masks)
    return found
