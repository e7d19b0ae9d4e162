"""The model's forward by the names of a bundle's values, as `RelaFamily` in the table offers it.

B images, N expressions, T tokens; C are the backbone's first channels, s is the side of its grid.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from ris.reference.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise, resize_to_square
from ris.reference.rela.backbone import Stem
from ris.reference.rela.model import RelaModel

MAPS = ("res2", "res3", "res4", "res5")
"""The names of the backbone's maps, fine to coarse."""


def prepare(model: RelaModel, rgb: np.ndarray) -> dict[str, Tensor]:
    """A picture, uint8 RGB [H, W, 3] -> `image` [1, 3, S, S], float32."""
    square = torch.tensor(resize_to_square(rgb, model.config.image_size))
    pixels = square.permute(2, 0, 1)[None].float()
    return {"image": normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)}


def encode(model: RelaModel, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`image` of B images -> `stem`, `stem_vis` and `stem_query`, [B, s*s, C] each."""
    stem = model.backbone.stem(images["image"])
    return {"stem": stem.tokens, "stem_vis": stem.values, "stem_query": stem.queries}


def ask(model: RelaModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What depends on N expressions.

    Args:
        model: The reference model.
        values: Those of `encode`, a row for each expression; `input_ids` [N, T] and `text_mask` [N,
            T], 1 for real tokens.

    Returns:
        float32: `text_features`, `res2` to `res5`, `mask_logits` and `no_target_logits`.
    """
    stem = Stem(values["stem"], values["stem_vis"], values["stem_query"])
    out = model.ask(stem, values["input_ids"].long(), values["text_mask"])
    return {
        "text_features": out.text_features,
        **dict(zip(MAPS, out.maps, strict=True)),
        "mask_logits": out.regions.mask_logits,
        "no_target_logits": out.regions.no_target_logits,
    }
