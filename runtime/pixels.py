"""Every colour mode as 8-bit RGB, as a viewer shows it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.engines.errors import ImageError

_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262
_WHITE_IS_ZERO = 0


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """A loaded image in RGB.

    Transparent pixels are laid over white, levels of more than 8 bits become levels of 8, Lab is
    converted. Embedded colour profiles are ignored.

    Raises:
        ImageError: For values that are not finite, and for a mode that has no colours.
    """
    mode = image.mode
    if mode.startswith("I;16") or (mode == "I" and image.format == "PPM"):
        return Image.fromarray(_from_16_bits(image)).convert("RGB")
    if mode in ("I", "F"):
        return Image.fromarray(_from_wide(np.asarray(image, np.float32), name)).convert("RGB")
    try:
        if mode == "LAB":
            return _from_lab(image)
        if mode == "La":
            image = image.convert("LA")
        if image.has_transparency_data:
            transparent = image.convert("RGBA")
            image = Image.new("RGB", image.size, "white")
            image.paste(transparent, mask=transparent)
        return image.convert("RGB")
    except ValueError:
        raise ImageError(
            f"{name} has the colour mode {mode}, which cannot be turned into RGB"
        ) from None


def _from_16_bits(image: Image.Image) -> NDArray[np.uint8]:
    """Grey levels [H, W] of 16 bits, or of the 12 that a TIFF file may have, whatever is in use."""
    tags: Any = getattr(image, "tag_v2", {})
    top = 4095 if tags.get(_BITS_PER_SAMPLE) == (12,) else 65535
    levels = np.arange(65536, dtype=np.uint32)
    table = np.minimum((levels * 255 + top // 2) // top, 255).astype(np.uint8)
    if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        table = 255 - table
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        table[transparent] = 255
    # a PPM file of more than 8 bits has mode I, and Pillow scales its levels to 16
    return table[np.clip(np.asarray(image), 0, 65535)]


def _from_wide(values: NDArray[np.float32], name: str) -> NDArray[np.uint8]:
    """Grey levels [H, W] of numbers that do not say what white is.

    Values up to 1 are taken for fractions, up to 255 for 8-bit levels, above for 16-bit levels.
    """
    if not np.isfinite(values).all():
        raise ImageError(f"{name} has values that are not finite numbers")
    top = float(values.max())
    scale = 255.0 if top <= 1.0 else 1.0 if top <= 255.0 else 1 / 257.0
    return np.clip(np.rint(values * np.float32(scale)), 0, 255).astype(np.uint8)


def _from_lab(image: Image.Image) -> Image.Image:
    from PIL import ImageCms

    lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    transform = ImageCms.buildTransform(lab, srgb, "LAB", "RGB")
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None  # it is None for a change in place
    return converted
