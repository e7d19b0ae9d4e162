"""Images in: any file Pillow reads becomes RGB, and RGB becomes the two squares the encoders take
(docs/reference/models/dfam.md 2).
"""

from __future__ import annotations

import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from ris.engines.errors import ImageError
from ris.runtime.bundle import Preprocess
from ris.runtime.interpolate import Float, resize_rows

ImageLike = str | os.PathLike[str] | Image.Image | NDArray[Any]

MAX_PIXELS = 120_000_000
"""The largest image that is read: a 100-megapixel camera's, with room to spare."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
)
"""The suffixes that a folder is searched for. A file that is named outright may have any."""


@dataclass(frozen=True)
class Picture:
    """An image as it was decoded: its pixels, and the size that it has and that its masks get.

    pixels: RGB, a PIL image or uint8 [h, w, 3]; smaller than height x width where it was decoded as
    a draft.
    """

    pixels: Image.Image | NDArray[np.uint8]
    height: int
    width: int


def load_rgb(source: ImageLike) -> NDArray[np.uint8]:
    """Any image as uint8 RGB [H, W, 3], as a viewer would show it.

    source: a path; a PIL image; or an array, uint8 [H, W] grey, [H, W, 3] RGB or [H, W, 4] RGBA.
    EXIF orientation is applied, 16-bit values are scaled to 8, transparent pixels are laid over
    white, and of an animation the first frame is taken. Raises ImageError.
    """
    return np.asarray(load_picture(source).pixels)


def load_picture(source: ImageLike, draft: int | None = None) -> Picture:
    """`load_rgb` without the array, for who only wants to resize it; draft: a JPEG file may be
    decoded smaller, by a half, a quarter or an eighth, as long as both sides keep `draft` pixels.
    """
    if isinstance(source, np.ndarray):
        pixels: Image.Image | NDArray[np.uint8] = _from_array(source)
    elif isinstance(source, Image.Image):
        pixels = _to_rgb(source, "the image")
    else:
        return _read(Path(source), draft)
    height, width = pixels.shape[:2] if isinstance(pixels, np.ndarray) else pixels.size[::-1]
    return Picture(pixels, height, width)


def _read(path: Path, draft: int | None) -> Picture:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter(
                "ignore", Image.DecompressionBombWarning
            )  # MAX_PIXELS is the limit here
            with Image.open(path) as opened:
                _check_size(*opened.size, str(path))
                size = opened.size
                if draft and opened.format == "JPEG":
                    opened.draft(None, (draft, draft))
                scaled = opened.size != size
                pixels = _to_rgb(opened, str(path))
                if not scaled:
                    width, height = pixels.size
                else:
                    width, height = size[::-1] if _turned(opened) else size
                return Picture(pixels, height, width)
    except FileNotFoundError:
        raise ImageError(f"{path}: no such image file") from None
    except IsADirectoryError:
        raise ImageError(f"{path} is a folder, not an image file") from None
    except UnidentifiedImageError:
        raise ImageError(
            f"{path} is not an image that can be read (JPEG, PNG, WebP, TIFF, BMP, GIF, ...)"
        ) from None
    except Image.DecompressionBombError as error:
        raise ImageError(f"{path} is too large: {error}") from None
    except PermissionError:
        raise ImageError(f"{path}: no permission to read this file") from None
    except (OSError, SyntaxError, ValueError) as error:  # a header that is cut short
        raise ImageError(f"{path} is damaged or cut short: {error}") from None


def _turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps width and height."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # as in `_to_rgb`
        return False


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    channels = array.shape[2] if array.ndim == 3 else 1
    if (
        array.dtype != np.uint8
        or array.ndim not in (2, 3)
        or channels not in (1, 3, 4)
        or 0 in array.shape
    ):
        raise ImageError(
            "an image array must be uint8 [H, W], [H, W, 3] RGB or [H, W, 4] RGBA; got"
            f" {array.dtype} {list(array.shape)}"
        )
    if channels == 3:
        _check_size(array.shape[1], array.shape[0], "the image array")
        return np.ascontiguousarray(array)
    picture = Image.fromarray(array if array.ndim == 2 or channels == 4 else array[..., 0])
    return np.asarray(_to_rgb(picture, "the image array"))


def _check_size(width: int, height: int, name: str) -> None:
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name} is {width}x{height} pixels, the limit is {MAX_PIXELS / 1e6:.0f} megapixels"
        )


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    _check_size(*image.size, name)
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise ImageError(f"{name} is damaged or cut short: {error}") from None
    try:
        image = ImageOps.exif_transpose(image)
    # Pillow raises many kinds here; a broken EXIF block is no reason to refuse the pixels
    except Exception as error:
        warnings.warn(
            f"{name}: unreadable EXIF block, orientation not applied ({error})", stacklevel=3
        )
    if image.mode.startswith("I") or image.mode == "F":
        return Image.fromarray(_from_wide(np.asarray(image, np.float32), name))
    try:
        if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or "transparency" in image.info:
            image = image.convert("RGBA")
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
        return image.convert("RGB")
    except ValueError:
        raise ImageError(
            f"{name} has the colour mode {image.mode}, which cannot be turned into RGB"
        ) from None


def _from_wide(values: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    """Grey values wider than 8 bits: up to 1 are fractions, up to 255 are 8-bit, above are
    16-bit.
    """
    if not np.isfinite(values).all():
        raise ImageError(f"{name} has values that are not finite numbers")
    top = float(values.max())
    scale = 255.0 if top <= 1.0 else 1.0 if top <= 255.0 else 1 / 257.0
    grey = np.clip(np.rint(values * np.float32(scale)), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


def prepare_image(
    rgb: Image.Image | NDArray[np.uint8], preprocess: Preprocess
) -> tuple[Float, Float]:
    """RGB, uint8 [H, W, 3] or Pillow's -> (SAM's image [1, 3, S, S], CLIP's [1, 3, c, c]), float32,
    normalised.

    SAM's square is resized by Pillow's bilinear filter on 8-bit values, aspect ratio not kept.
    CLIP's is made from that square by bicubic interpolation without antialiasing.
    """
    sam, clip = preprocess.sam, preprocess.clip
    if isinstance(rgb, np.ndarray) and rgb.shape[:2] != (sam.size, sam.size):
        rgb = Image.fromarray(rgb)
    if isinstance(rgb, Image.Image) and rgb.size != (sam.size, sam.size):
        rgb = rgb.resize((sam.size, sam.size), Image.Resampling.BILINEAR)
    square = np.asarray(rgb)
    image = np.empty((1, 3, sam.size, sam.size), np.float32)
    for channel, plane in enumerate(image[0]):
        plane[:] = square[..., channel]
        plane -= np.float32(sam.mean[channel])
        plane /= np.float32(sam.std[channel])
    # rows first, on interleaved channels; then columns, as rows of the transposed image
    tall = resize_rows(square, clip.size, "bicubic")  # [c, S, 3]
    small = resize_rows(
        np.ascontiguousarray(tall.transpose(1, 2, 0)), clip.size, "bicubic"
    )  # [c (x), 3, c (y)]
    small /= np.float32(255)
    small -= np.asarray(clip.mean, np.float32)[:, None]
    small /= np.asarray(clip.std, np.float32)[:, None]
    return image, np.ascontiguousarray(small.transpose(1, 2, 0))[None]
