"""A picture in a letterbox, as SAM takes it, and mask logits of one, as the model gives them.

What the runtime's version is checked against.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ris.reference.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise, resize_logits


def letterbox_size(height: int, width: int, side: int) -> tuple[int, int]:
    """The (height, width) in pixels of a picture whose longer side becomes `side`, rounded."""
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


def letterbox_logits(mask_logits: Tensor, height: int, width: int, side: int) -> Tensor:
    """Mask logits at the picture's size: at the letterbox's, cut, and then resized.

    Args:
        mask_logits: [N, 1, m, m].
        height: The picture's height in pixels.
        width: The picture's width in pixels.
        side: The letterbox's side.

    Returns:
        [N, 1, height, width].
    """
    rows, columns = letterbox_size(height, width, side)
    whole = resize_logits(mask_logits, side, side)
    return resize_logits(whole[..., :rows, :columns], height, width)
