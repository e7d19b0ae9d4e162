"""Images and text as the model takes them (docs/reference/models/dfam.md 2): what the runtime's
version is checked against.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

from ris.reference.config import ModelConfig

SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def resize_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> uint8 [size, size, 3], Pillow's bilinear filter, aspect ratio not
    kept.
    """
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def _normalise(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def prepare_image(image: np.ndarray, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """uint8 RGB [H, W, 3] -> (image [1, 3, S, S], clip_image [1, 3, c, c]), float32, normalised.

    CLIP's image is made from SAM's resized one by bicubic interpolation without antialiasing.
    """
    return prepare_squares(resize_to_square(image, config.sam.image_size)[None], config)


def prepare_squares(squares: np.ndarray, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """`prepare_image` for images that have SAM's size already: uint8 RGB [B, S, S, 3] -> [B, 3, S,
    S], [B, 3, c, c].
    """
    square = torch.tensor(squares).permute(0, 3, 1, 2).float()
    small = F.interpolate(
        square / 255, size=(config.clip.image_size,) * 2, mode="bicubic", align_corners=False
    )
    return _normalise(square, SAM_MEAN, SAM_STD), _normalise(small, CLIP_MEAN, CLIP_STD)


def token_ids(tokenizer: Tokenizer, expressions: Sequence[str], length: int) -> Tensor:
    """int64 [N, length], cut and padded with 0 as docs/reference/models/dfam.md 2 says."""
    ids = torch.zeros(len(expressions), length, dtype=torch.long)
    for row, encoded in zip(ids, tokenizer.encode_batch(list(expressions)), strict=True):
        found = encoded.ids[:length]
        row[: len(found)] = torch.tensor(found)
    return ids


def resize_logits(mask_logits: Tensor, height: int, width: int) -> Tensor:
    """[B, 1, m, m] -> [B, 1, height, width], bilinear without antialiasing
    (docs/reference/models/dfam.md 12).
    """
    return F.interpolate(mask_logits, size=(height, width), mode="bilinear", align_corners=False)
