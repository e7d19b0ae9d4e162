"""Image preparation with Pillow and torch (docs/model.md 2): what the runtime's NumPy version is checked against."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ris.reference.config import ModelConfig

SAM_MEAN, SAM_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
CLIP_MEAN, CLIP_STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)


def resize_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """uint8 RGB [H, W, 3] -> uint8 [size, size, 3], Pillow's bilinear filter, aspect ratio not kept."""
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def _normalise(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    return (image - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]


def prepare_image(image: np.ndarray, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """uint8 RGB [H, W, 3] -> (image [1, 3, S, S], clip_image [1, 3, c, c]), float32, normalised.

    CLIP's image is made from SAM's resized one by bicubic interpolation without antialiasing.
    """
    square = torch.tensor(resize_to_square(image, config.sam.image_size)).permute(2, 0, 1).float()
    small = F.interpolate(square[None] / 255, size=(config.clip.image_size,) * 2, mode="bicubic", align_corners=False)
    return _normalise(square, SAM_MEAN, SAM_STD)[None], _normalise(small[0], CLIP_MEAN, CLIP_STD)[None]


def resize_logits(mask_logits: Tensor, height: int, width: int) -> Tensor:
    """[B, 1, m, m] -> [B, 1, height, width], bilinear without antialiasing (docs/model.md 12)."""
    return F.interpolate(mask_logits, size=(height, width), mode="bilinear", align_corners=False)
