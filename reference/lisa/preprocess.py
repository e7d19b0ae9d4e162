"""Pictures as the model takes them, and logits as it gives them.

What the runtime's version is checked against. Both of the model's pictures are made of the
original.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ris.reference.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise, resize_logits

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of CLIP's training images: R, G, B in 0 to 1."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviation."""

_LEVEL = 1 / 255


def letterbox_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The (height, width) of a picture in a square that its longest side fills, rounded."""
    scale = side / max(height, width)
    return max(int(height * scale + 0.5), 1), max(int(width * scale + 0.5), 1)


def covering_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The (height, width) of a picture whose shortest side is `side`; the other is rounded down."""
    if width <= height:
        return int(side * height / width), side
    return side, int(side * width / height)


def resize_to_letterbox(rgb: np.ndarray, side: int) -> np.ndarray:
    """A picture, uint8 [H, W, 3], by Pillow's bilinear filter: uint8 of `letterbox_size`."""
    height, width = letterbox_size(rgb.shape[0], rgb.shape[1], side)
    resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


def crop_square(rgb: np.ndarray, side: int) -> np.ndarray:
    """The middle of a picture, uint8 [H, W, 3], whose shortest side Pillow's bicubic filter fits.

    The ends of the longer side are cut off. Returns uint8 [side, side, 3].
    """
    height, width = covering_size(rgb.shape[0], rgb.shape[1], side)
    resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - side) // 2, (width - side) // 2
    return np.asarray(resized)[top : top + side, left : left + side]


def sam_input(rgb: np.ndarray, side: int) -> Tensor:
    """A picture as SAM takes it: a letterbox at the top left, zeros behind the normalisation.

    uint8 RGB [H, W, 3] -> float32 [1, 3, side, side].
    """
    levels = resize_to_letterbox(rgb, side)
    image = torch.zeros(1, 3, side, side)
    pixels = torch.tensor(levels).permute(2, 0, 1)[None].float()
    height, width = levels.shape[:2]
    image[..., :height, :width] = normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)
    return image


def clip_input(rgb: np.ndarray, side: int) -> Tensor:
    """A picture as CLIP takes it. uint8 RGB [H, W, 3] -> float32 [1, 3, side, side]."""
    scaled = (crop_square(rgb, side) * _LEVEL).astype(np.float32)  # the product in float64
    return normalise(torch.tensor(scaled).permute(2, 0, 1)[None], CLIP_MEAN, CLIP_STD)


def letterbox_logits(mask_logits: Tensor, height: int, width: int, side: int) -> Tensor:
    """Mask logits at the picture's size: at the letterbox's, cut, and then resized.

    Args:
        mask_logits: [N, 1, m, m].
        height: The picture's.
        width: The picture's.
        side: The letterbox's.

    Returns:
        [N, 1, height, width].
    """
    inner = letterbox_size(height, width, side)
    whole = resize_logits(mask_logits, side, side)
    return resize_logits(whole[..., : inner[0], : inner[1]], height, width)
