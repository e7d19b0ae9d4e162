"""Pictures in: the names of the one reader of pictures, together."""

from __future__ import annotations

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
]
