"""The model's forward by the names of a bundle's values, as its row in the table offers it.

B images, N expressions, T tokens; C are the backbone's first channels, D those of the decoder, s is
the side of the first stage's grid, S that of the input.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from torch import Tensor

from ris.reference.cgformer.model import CgformerModel
from ris.reference.layers.worded_swin import MAPS, Stem
from ris.reference.preprocess import imagenet_square

FUSED = ("map_0", "map_1", "map_2")
"""The names of the decoder's maps, coarse to fine."""

NOISE = "assignment_noise"
"""The name of the noise that places go to one token by: float32 [N, all places]."""


def prepare(model: CgformerModel, rgb: np.ndarray) -> dict[str, Tensor]:
    """A picture, uint8 RGB [H, W, 3] -> `image` [1, 3, S, S], float32."""
    return {"image": imagenet_square(rgb, model.config.image_size)}


def encode(model: CgformerModel, images: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`image` of B images -> `stem`, `stem_vis` and `stem_query`, [B, s*s, C] each."""
    return model.backbone.stem(images["image"]).named()


def ask(model: CgformerModel, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What depends on N expressions.

    Args:
        model: The reference model.
        values: Those of `encode`, a row for each expression; `input_ids` [N, T] and `text_mask` [N,
            T], 1 for real tokens; of a model whose assignment is sampled, `assignment_noise` too.

    Returns:
        float32: `text_features`, `res2` to `res5`, `map_0` [N, D, s/4, s/4] to `map_2` [N, D, s,
        s], `kernel` [N, D+1] and `mask_logits` [N, 1, S, S].
    """
    noise = values[NOISE] if model.config.assignment == "sampled" else None
    out = model.ask(Stem.of(values), values["input_ids"].long(), values["text_mask"], noise)
    return {
        "text_features": out.text_features,
        **dict(zip(MAPS, out.maps, strict=True)),
        **dict(zip(FUSED, out.fused, strict=True)),
        "kernel": out.tokens.kernel,
        "mask_logits": out.mask_logits,
    }
