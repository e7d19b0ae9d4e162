"""Images as the model takes them: what the runtime's version is checked against.

Section numbers are those of docs/reference/models/dfam.md.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ris.reference.dfam.config import ModelConfig
from ris.reference.preprocess import IMAGENET_MEAN, IMAGENET_STD, normalise, resize_to_square

SAM_MEAN = IMAGENET_MEAN
"""Mean of SAM's training images: R, G, B in 0 to 255."""

SAM_STD = IMAGENET_STD
"""Their standard deviation."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of CLIP's training images: R, G, B in 0 to 1."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviation."""


def prepare_image(image: np.ndarray, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """The normalised inputs of SAM and CLIP (section 2).

    uint8 RGB [H, W, 3] -> (image [1, 3, S, S], clip_image [1, 3, c, c]), float32.
    """
    return prepare_squares(resize_to_square(image, config.sam.image_size)[None], config)


def prepare_squares(squares: np.ndarray | Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """`prepare_image` for a batch of images that have SAM's size already.

    uint8 RGB [B, S, S, 3] -> (image [B, 3, S, S], clip_image [B, 3, c, c]), float32. CLIP's images
    are made from these squares, not from the originals, by bicubic interpolation without
    antialiasing. A tensor is prepared on its own device.
    """
    given = squares if isinstance(squares, Tensor) else torch.tensor(squares)
    square = given.permute(0, 3, 1, 2).float()
    small = F.interpolate(
        square / 255, size=(config.clip.image_size,) * 2, mode="bicubic", align_corners=False
    )
    return normalise(square, SAM_MEAN, SAM_STD), normalise(small, CLIP_MEAN, CLIP_STD)
