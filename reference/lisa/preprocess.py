"""CLIP's picture: the middle of the original. SAM's is a letterbox, as of other families.

What the runtime's version is checked against.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ris.reference.preprocess import normalise

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of CLIP's training images: R, G, B in 0 to 1."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviation."""

_LEVEL = 1 / 255


def covering_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The (height, width) of a picture whose shortest side is `side`; the other is rounded down."""
    if width <= height:
        return int(side * height / width), side
    return side, int(side * width / height)


def crop_square(rgb: np.ndarray, side: int) -> np.ndarray:
    """The middle of a picture, uint8 [H, W, 3], whose shortest side Pillow's bicubic filter fits.

    The ends of the longer side are cut off. Returns uint8 [side, side, 3].
    """
    height, width = covering_size(rgb.shape[0], rgb.shape[1], side)
    resized = Image.fromarray(rgb).resize((width, height), Image.Resampling.BICUBIC)
    top, left = (height - side) // 2, (width - side) // 2
    return np.asarray(resized)[top : top + side, left : left + side]


def clip_input(rgb: np.ndarray, side: int) -> Tensor:
    """A picture as CLIP takes it. uint8 RGB [H, W, 3] -> float32 [1, 3, side, side]."""
    scaled = (crop_square(rgb, side) * _LEVEL).astype(np.float32)  # the product in float64
    return normalise(torch.tensor(scaled).permute(2, 0, 1)[None], CLIP_MEAN, CLIP_STD)
