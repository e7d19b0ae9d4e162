"""Pictures, text and logits as every model takes and gives them.

What the runtime's own version of each is checked against.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from tokenizers import Tokenizer
from torch import Tensor

IMAGENET_MEAN = (123.675, 116.28, 103.53)
"""Mean of ImageNet's images: R, G, B in 0 to 255."""

IMAGENET_STD = (58.395, 57.12, 57.375)
"""Their standard deviation."""


def resize_to_square(image: np.ndarray, size: int) -> np.ndarray:
    """The image at size x size pixels by Pillow's bilinear filter; the aspect ratio is not kept.

    uint8 RGB [H, W, 3] -> uint8 [size, size, 3].
    """
    return np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR))


def normalise(image: Tensor, mean: tuple[float, ...], std: tuple[float, ...]) -> Tensor:
    """(image - mean) / std, float32 [B, 3, H, W]; mean and std by channel."""
    middle, spread = (torch.tensor(x, device=image.device)[:, None, None] for x in (mean, std))
    return (image - middle) / spread


def imagenet_square(rgb: np.ndarray, size: int) -> Tensor:
    """The picture as one normalised square; the aspect ratio is not kept.

    uint8 RGB [H, W, 3] -> float32 [1, 3, size, size].
    """
    pixels = torch.tensor(resize_to_square(rgb, size)).permute(2, 0, 1)[None].float()
    return normalise(pixels, IMAGENET_MEAN, IMAGENET_STD)


def token_ids(
    tokenizer: Tokenizer,
    expressions: Sequence[str],
    length: int,
    pad_id: int = 0,
    end_id: int | None = None,
) -> Tensor:
    """The expressions' ids, cut and padded.

    Args:
        tokenizer: The model's tokenizer, without truncation and padding.
        expressions: N expressions.
        length: Tokens of each row.
        pad_id: What fills a row up.
        end_id: What a row that was cut ends with; None: what stands there.

    Returns:
        int64 [N, length].
    """
    ids = torch.full((len(expressions), length), pad_id, dtype=torch.long)
    for row, encoded in zip(ids, tokenizer.encode_batch(list(expressions)), strict=True):
        found = encoded.ids[:length]
        row[: len(found)] = torch.tensor(found)
        if len(encoded.ids) > length and end_id is not None:
            row[-1] = end_id
    return ids


def resize_probability(mask_logits: Tensor, height: int, width: int) -> Tensor:
    """The probability of the foreground at the image's size, bicubic, corners on corners.

    [B, 1, m, m] -> [B, 1, height, width]. It leaves 0 to 1 by a little beside sharp edges.
    """
    return F.interpolate(
        mask_logits.sigmoid(), size=(height, width), mode="bicubic", align_corners=True
    )


def resize_logits(mask_logits: Tensor, height: int, width: int) -> Tensor:
    """Mask logits at the image's size, bilinear without antialiasing.

    [B, 1, m, m] -> [B, 1, height, width].
    """
    return F.interpolate(mask_logits, size=(height, width), mode="bilinear", align_corners=False)
