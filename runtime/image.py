"""Images in: the squares of the two encoders, and the one reader's names.

docs/reference/models/dfam.md 2 has the arithmetic.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.runtime.interpolate import Float, resize_rows
from ris.runtime.manifest import Preprocess, SquareImage
from ris.runtime.picture_files import (
    MAX_PIXELS,
    ImageLike,
    Picture,
    Pixels,
    TooManyPixels,
    image_size,
    load_picture,
    load_rgb,
)
from ris.runtime.picture_folders import IMAGE_SUFFIXES, FoundImages, find_images

__all__ = [
    "IMAGE_SUFFIXES",
    "MAX_PIXELS",
    "FoundImages",
    "ImageLike",
    "Picture",
    "Pixels",
    "TooManyPixels",
    "find_images",
    "image_size",
    "load_picture",
    "load_rgb",
    "prepare_image",
]


def prepare_image(rgb: Pixels, preprocess: Preprocess) -> tuple[Float, Float]:
    """RGB as the inputs of the two image encoders, normalised.

    SAM's square is resized by Pillow's bilinear filter on 8-bit values, aspect ratio not kept.
    CLIP's is made from that square by bicubic interpolation without antialiasing.

    Returns:
        SAM's image, float32 [1, 3, S, S], and CLIP's, float32 [1, 3, c, c].
    """
    square = _square(rgb, preprocess.sam.size)
    return _sam_image(square, preprocess.sam), _clip_image(square, preprocess.clip)


def _square(rgb: Pixels, size: int) -> NDArray[np.uint8]:
    """uint8 [size, size, 3]."""
    if isinstance(rgb, np.ndarray) and rgb.shape[:2] != (size, size):
        rgb = Image.fromarray(rgb)
    if isinstance(rgb, Image.Image) and rgb.size != (size, size):
        rgb = rgb.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(rgb)


def _sam_image(square: NDArray[np.uint8], wanted: SquareImage) -> Float:
    image = np.empty((1, 3, wanted.size, wanted.size), np.float32)
    for channel, plane in enumerate(image[0]):
        plane[:] = square[..., channel]
        plane -= np.float32(wanted.mean[channel])
        plane /= np.float32(wanted.std[channel])
    return image


def _clip_image(square: NDArray[np.uint8], wanted: SquareImage) -> Float:
    # rows first, on interleaved channels; then columns, as the rows of the transposed image
    tall = resize_rows(square, wanted.size, "bicubic")  # [c, S, 3]
    turned = np.ascontiguousarray(tall.transpose(1, 2, 0))  # [S, 3, c]
    small = resize_rows(turned, wanted.size, "bicubic")  # [c (x), 3, c (y)]

    small /= np.float32(255)
    small -= np.asarray(wanted.mean, np.float32)[:, None]
    small /= np.asarray(wanted.std, np.float32)[:, None]
    return np.ascontiguousarray(small.transpose(1, 2, 0))[None]  # [1, 3, c (y), c (x)]
