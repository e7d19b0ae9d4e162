"""Pictures as the model takes them: what the runtime's version is checked against."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ris.reference.evfsam.config import EvfsamConfig
from ris.reference.layers.letterbox import letterbox, letterbox_logits
from ris.reference.preprocess import imagenet_square, normalise, resize_logits

BEIT_MEAN = (0.5, 0.5, 0.5)
"""What is taken from BEiT-3's pixels in 0 to 1: R, G, B."""

BEIT_STD = (0.5, 0.5, 0.5)
"""What they are divided by then."""


def prepare_image(rgb: np.ndarray, config: EvfsamConfig) -> tuple[Tensor, Tensor]:
    """The normalised inputs of SAM and BEiT-3, both made from the picture itself.

    uint8 RGB [H, W, 3] -> (SAM's [1, 3, S, S], BEiT-3's [1, 3, b, b]), float32.
    """
    make = letterbox if config.version == "1" else imagenet_square
    return make(rgb, config.image_size), beit_square(rgb, config.beit3.image_size)


def beit_square(rgb: np.ndarray, side: int) -> Tensor:
    """The picture as one square, bicubic without antialiasing; values may leave -1 to 1.

    uint8 RGB [H, W, 3] -> float32 [1, 3, side, side].
    """
    pixels = torch.tensor(rgb).permute(2, 0, 1)[None].float() / 255
    small = F.interpolate(pixels, size=(side, side), mode="bicubic", align_corners=False)
    return normalise(small, BEIT_MEAN, BEIT_STD)


def picture_logits(mask_logits: Tensor, config: EvfsamConfig, height: int, width: int) -> Tensor:
    """Mask logits at the picture's size, bilinear without antialiasing.

    Those of a letterbox are resized to SAM's input, cut to the picture's part and resized again.

    Args:
        mask_logits: [N, 1, m, m].
        config: The model's configuration.
        height: The picture's height in pixels.
        width: The picture's width in pixels.

    Returns:
        [N, 1, height, width].
    """
    if config.version == "1":
        return letterbox_logits(mask_logits, height, width, config.image_size)
    return resize_logits(mask_logits, height, width)
