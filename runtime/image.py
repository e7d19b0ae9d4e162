"""Images in: any file that Pillow reads becomes RGB, and RGB the squares of the two encoders.

docs/reference/models/dfam.md 2 has the arithmetic.
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
from PIL.ImageFile import ImageFile

from ris.engines.errors import ImageError
from ris.runtime.interpolate import Float, resize_rows
from ris.runtime.manifest import Preprocess, SquareImage

ImageLike = str | os.PathLike[str] | Image.Image | NDArray[Any]
"""A path, a PIL image, or an array: uint8 [H, W] grey, [H, W, 3] RGB or [H, W, 4] RGBA."""

Pixels = Image.Image | NDArray[np.uint8]
"""RGB: a PIL image, or uint8 [H, W, 3]."""

MAX_PIXELS = 120_000_000
"""The most pixels of an image that is read: a 100-megapixel camera's, with room to spare."""

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
)
"""The suffixes that a folder is searched for. A file that is named outright may have any."""


@dataclass(frozen=True)
class Picture:
    """An image as it was decoded."""

    pixels: Pixels
    """RGB; smaller than `height` x `width` where it was decoded as a draft."""

    height: int
    """The height of the image, and of its masks."""

    width: int
    """The width of the image, and of its masks."""


def load_rgb(source: ImageLike) -> NDArray[np.uint8]:
    """Any image as uint8 RGB [H, W, 3], as a viewer would show it.

    EXIF orientation is applied, 16-bit values are scaled to 8, transparent pixels are laid over
    white, and of an animation the first frame is taken.

    Raises:
        ImageError: Where the image is missing, damaged, too large or of an unknown kind.
    """
    return np.asarray(load_picture(source).pixels)


def load_picture(source: ImageLike, draft: int | None = None) -> Picture:
    """`load_rgb` without making an array, for a caller that only resizes the image.

    Args:
        source: The image.
        draft: A JPEG file may be decoded at a half, a quarter or an eighth of its size, as long as
            both sides keep this many pixels. None: never.

    Raises:
        ImageError: As `load_rgb`.
    """
    if isinstance(source, np.ndarray):
        array = _from_array(source)
        return Picture(array, *array.shape[:2])
    if isinstance(source, Image.Image):
        image = _to_rgb(source, "the image")
        return Picture(image, image.height, image.width)
    return _read(Path(source), draft)


def _read(path: Path, draft: int | None) -> Picture:
    try:
        with warnings.catch_warnings():
            # MAX_PIXELS is the limit here
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as opened:
                return _decode(opened, str(path), draft)
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


def _decode(opened: ImageFile, name: str, draft: int | None) -> Picture:
    _check_size(*opened.size, name)
    size = opened.size
    if draft and opened.format == "JPEG":
        opened.draft(None, (draft, draft))
    scaled = opened.size != size

    pixels = _to_rgb(opened, name)
    if not scaled:
        width, height = pixels.size
    else:
        width, height = size[::-1] if _turned(opened) else size
    return Picture(pixels, height, width)


def _turned(image: Image.Image) -> bool:
    """Whether the EXIF orientation swaps width and height."""
    try:
        return image.getexif().get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # as in `_to_rgb`
        return False


def _from_array(array: NDArray[Any]) -> NDArray[np.uint8]:
    channels = array.shape[2] if array.ndim == 3 else 1
    known_shape = array.ndim in (2, 3) and channels in (1, 3, 4) and 0 not in array.shape
    if array.dtype != np.uint8 or not known_shape:
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
    """Grey values of more than 8 bits as RGB.

    Values up to 1 are taken for fractions, up to 255 for 8-bit levels, above for 16-bit levels.
    """
    if not np.isfinite(values).all():
        raise ImageError(f"{name} has values that are not finite numbers")
    top = float(values.max())
    scale = 255.0 if top <= 1.0 else 1.0 if top <= 255.0 else 1 / 257.0
    grey = np.clip(np.rint(values * np.float32(scale)), 0, 255).astype(np.uint8)
    return np.repeat(grey[..., None], 3, axis=2)


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
