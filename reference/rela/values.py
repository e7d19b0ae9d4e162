"""The model's forward by the names of a bundle's values, as `RelaFamily` in the table offers it.

B images, N expressions, T tokens; C are the backbone's first channels, s is the side of its grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ris.reference.layers.worded_swin import MAPS, Stem
from ris.reference.preprocess import imagenet_square
from ris.reference.rela.model import RelaModel


def prepare(model: RelaModel, rgb: np.ndarray) -> dict[str, Tensor]:
    """A picture, uint8 RGB [H, W, 3] -> `image` [1, 3, S, S], float32."""
    return {"image": imagenet_square(rgb, model.config.image_size)}


def encode(model: RelaModel, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`image` of B images -> `stem`, `stem_vis` and `stem_query`, [B, s*s, C] each."""
    return model.backbone.stem(images["image"]).named()


def ask(model: RelaModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What depends on N expressions.

    Args:
        model: The reference model.
        values: Those of `encode`, a row for each expression; `input_ids` [N, T] and `text_mask` [N,
            T], 1 for real tokens.

    Returns:
        float32: `text_features`, `res2` to `res5`, `mask_logits` and `no_target_logits`.
    """
    out = model.ask(Stem.of(values), values["input_ids"].long(), values["text_mask"])
    return {
        "text_features": out.text_features,
        **dict(zip(MAPS, out.maps, strict=True)),
        "mask_logits": out.regions.mask_logits,
        "no_target_logits": out.regions.no_target_logits,
    }
