"""Pictures as the model takes them: what the runtime's version is checked against."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ris.reference.evfsam.config import EvfsamConfig
from ris.reference.preprocess import IMAGENET_MEAN, IMAGENET_STD, imagenet_square, normalise

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


def letterbox_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The (height, width) in pixels of a picture whose longer side becomes `side`."""
    scale = side / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def resize_longest(rgb: np.ndarray, side: int) -> np.ndarray:
    """A picture, uint8 [H, W, 3], whose longer side is `side`, by Pillow's bilinear filter."""
    height, width = letterbox_size(rgb.shape[0], rgb.shape[1], side)
    return np.asarray(Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR))


def letterbox(rgb: np.ndarray, side: int) -> Tensor:
    """The picture with its aspect ratio at the top left of a square, zeros behind normalisation.

    uint8 RGB [H, W, 3] -> float32 [1, 3, side, side].
    """
    levels = torch.tensor(resize_longest(rgb, side)).permute(2, 0, 1)[None].float()
    image = normalise(levels, IMAGENET_MEAN, IMAGENET_STD)
    height, width = image.shape[2:]
    return F.pad(image, (0, side - width, 0, side - height))


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
    part = mask_logits
    if config.version == "1":
        side = config.image_size
        rows, columns = letterbox_size(height, width, side)
        part = _bilinear(mask_logits, side, side)[..., :rows, :columns]
    return _bilinear(part, height, width)


def _bilinear(maps: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(maps, size=(height, width), mode="bilinear", align_corners=False)
