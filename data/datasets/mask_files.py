"""Masks that are given as pictures: which of their pixels are the object.

docs/reference/data.md has the rules. What they do not cover is refused, never guessed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.engines.errors import RisError
from ris.runtime.orientation import orientation_of, turned_mask
from ris.runtime.picture_files import decoded

_LOSSY = ("JPEG", "MPO", "WEBP")
_DARK, _BRIGHT = 64, 192
_BETWEEN = 0.1
"""The largest share of a lossy mask's pixels that are neither dark nor bright."""


def read_mask(path: Path) -> NDArray[np.bool_]:
    """The mask in a file, bool [H, W], upright.

    Raises:
        RisError: Where it cannot be read, and where it does not say what the object is.
    """
    return decoded(path, _object)


def _object(opened: Image.Image, name: str) -> NDArray[np.bool_]:
    upright = 1 if hasattr(opened, "tag_v2") else None  # Pillow turns a TIFF file as it loads it
    opened.load()
    found = _of_alpha(opened, name)
    if found is None:
        found = _of_levels(opened, name)
    return turned_mask(found, upright or orientation_of(opened))


def _of_alpha(image: Image.Image, name: str) -> NDArray[np.bool_] | None:
    """What is not transparent; None where no pixel is more so than another."""
    if not image.has_transparency_data:
        return None
    pixels = np.asarray(image.convert("RGBA"))
    alpha = pixels[..., 3]
    if alpha.min() == alpha.max():
        return None
    if len(np.unique(alpha)) > 2 or alpha.min() > 0:
        raise _refusal(name, "it is transparent to several degrees")
    opaque = alpha > 0
    colours = _colours(pixels[opaque][:, :3])
    if len(colours) == 2 and not colours[0]:
        raise _refusal(name, "it has black, another colour and transparent pixels")
    return opaque


def _of_levels(image: Image.Image, name: str) -> NDArray[np.bool_]:
    """All but 0, or all but black, where there is one other value or colour."""
    if image.format in _LOSSY:
        return _of_lossy(image, name)
    if image.mode == "P":
        used = len(np.unique(np.asarray(image)))
        levels = _packed(np.asarray(image.convert("RGB")))
        if used != len(np.unique(levels)):
            raise _refusal(name, "several entries of its palette have one colour")
    elif image.mode in ("1", "L", "I", "F") or image.mode.startswith("I;16"):
        levels = np.asarray(image)
    else:
        levels = _packed(np.asarray(image.convert("RGB")))

    values = np.unique(levels)
    if len(values) > 2 or (len(values) == 2 and values[0]):
        raise _refusal(name, _said(values, image.mode))
    found: NDArray[np.bool_] = levels != 0
    return found


def _of_lossy(image: Image.Image, name: str) -> NDArray[np.bool_]:
    """The bright half: the edges of what was 0 and 255 have levels between them."""
    levels = np.asarray(image.convert("RGB")).max(-1)
    if levels.any() and levels.max() < _BRIGHT:
        raise _refusal(name, f"it is {image.format} and nowhere brighter than {levels.max()}")
    between = float(np.mean((levels >= _DARK) & (levels < _BRIGHT)))
    if between > _BETWEEN:
        raise _refusal(
            name, f"it is {image.format} and {between:.0%} of it is neither dark nor bright"
        )
    found: NDArray[np.bool_] = levels >= 128
    return found


def _packed(rgb: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """A number for each colour; 0 is black."""
    red, green, blue = np.moveaxis(rgb.astype(np.uint32), -1, 0)
    return red << 16 | green << 8 | blue


def _colours(rgb: NDArray[np.uint8]) -> NDArray[np.uint32]:
    return np.unique(_packed(rgb))


def _said(values: NDArray[Any], mode: str) -> str:
    if mode in ("1", "L", "I", "F") or mode.startswith("I;16"):
        some = ", ".join(str(value) for value in values[:4].tolist())
        return f"it has {len(values)} values ({some}{', ...' if len(values) > 4 else ''})"
    return f"it has {len(values)} colours" + ("" if values[0] == 0 else ", and none is black")


def _refusal(name: str, found: str) -> RisError:
    return RisError(
        f"{name} does not say what the object is: {found}; a mask has 0 (black) around the object"
        " and one other value in it"
    )
