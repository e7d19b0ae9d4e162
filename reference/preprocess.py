"""Images and text as the model takes them: what the runtime's version is checked against.

Section numbers are those of docs/reference/models/dfam.md.
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

SAM_MEAN = (123.675, 116.28, 103.53)
"""Mean of SAM's training images: R, G, B in 0 to 255."""

SAM_STD = (58.395, 57.12, 57.375)
"""Their standard deviation."""

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of CLIP's training images: R, G, B in 0 to 1."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Their standard deviation."""


def resize_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """The image at size x size pixels by Pillow's bilinear filter; the aspect ratio is not kept.

    uint8 RGB [H, W, 3] -> uint8 [size, size, 3].
    """
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


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
    return _normalise(square, SAM_MEAN, SAM_STD), _normalise(small, CLIP_MEAN, CLIP_STD)


def _normalise(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    middle, spread = (torch.tensor(x, device=image.device)[:, None, None] for x in (mean, std))
    return (image - middle) / spread


def token_ids(tokenizer: Tokenizer, expressions: Sequence[str], length: int) -> Tensor:
    """The expressions' ids, int64 [N, length], cut and padded with 0 (section 2)."""
    ids = torch.zeros(len(expressions), length, dtype=torch.long)
    for row, encoded in zip(ids, tokenizer.encode_batch(list(expressions)), strict=True):
        found = encoded.ids[:length]
        row[: len(found)] = torch.tensor(found)
    return ids


def resize_logits(mask_logits: Tensor, height: int, width: int) -> Tensor:
    """Mask logits at the image's size, bilinear without antialiasing (section 12).

    [B, 1, m, m] -> [B, 1, height, width].
    """
    return F.interpolate(mask_logits, size=(height, width), mode="bilinear", align_corners=False)
