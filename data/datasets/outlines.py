"""Masks from a data set's outlines: COCO's polygons and run-length codes, and PNG files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris import pip_install
from ris.data.datasets.refer import ReferData, Reference, ReferImage
from ris.engines.errors import RisError
from ris.runtime.masks import Rle, decode_rle, pack_counts


def reference_mask(data: ReferData, image: ReferImage, reference: Reference) -> NDArray[np.bool_]:
    """The union of the reference's annotations.

    Outlines are polygons, COCO's run-length codes (compressed or not), or PNG files, where all but
    0 is the object.

    Returns:
        bool [height, width]; all False where nothing is meant.

    Raises:
        RisError: For an outline that cannot be read or has another size than the image, and where
            pycocotools, which rasterises polygons, is not installed.
    """
    mask = np.zeros((image.height, image.width), np.bool_)
    for number in reference.annotations:
        outline = data.outlines[number]
        shape = _size(outline)
        # compared before anything of that size is made: a code may claim terabytes
        if shape is not None and shape != mask.shape:
            own = f"{image.height}x{image.width}"
            raise RisError(f"{image.path} is {own} (height x width), a mask of it {shape}")
        if isinstance(outline, Path):
            mask |= _png(outline)
        else:
            mask |= _rasterised(outline, image.height, image.width)
    return mask


def _size(outline: Any) -> tuple[int, int] | None:
    """(height, width) as a PNG file or a run-length code states it.

    None for polygons, which have none, and for a damaged code.
    """
    if isinstance(outline, Path):
        with _opened(outline) as image:
            return image.height, image.width
    size = outline.get("size") if isinstance(outline, dict) else None
    return (size[0], size[1]) if isinstance(size, list | tuple) and len(size) == 2 else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RisError(f"{path} cannot be read: {error}") from error


def _png(path: Path) -> NDArray[np.bool_]:
    with _opened(path) as image:
        if image.mode in ("1", "L", "P", "I", "I;16"):
            return np.asarray(image) > 0
        return np.asarray(image.convert("RGB")).max(-1) > 0


def _rasterised(outline: Any, height: int, width: int) -> NDArray[np.bool_]:
    """The mask, bool [height, width], of polygons or a run-length code."""
    if isinstance(outline, dict):
        return decode_any_rle(outline)
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise RisError(f"polygons need pycocotools: {pip_install('eval')}") from error
    merged = coco.merge(coco.frPyObjects(outline, height, width))
    found: NDArray[np.bool_] = coco.decode(merged).astype(np.bool_)
    return found


def decode_any_rle(code: dict[str, Any]) -> NDArray[np.bool_]:
    """The mask, bool [H, W], of COCO's run-length code, compressed or not.

    Args:
        code: "size", and "counts": a string (compressed) or a list of numbers.

    Raises:
        RisError: For a damaged code.
    """
    try:
        counts = code["counts"]
        if isinstance(counts, list):
            counts = pack_counts([int(run) for run in counts])
        text = counts.decode("ascii") if isinstance(counts, bytes) else str(counts)
        if not all(isinstance(side, int) for side in code["size"]):
            raise ValueError(f"its size is {code['size']}")
        return decode_rle(Rle(size=list(code["size"]), counts=text))
    except (KeyError, TypeError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise RisError(
            f"a mask's run-length code is damaged ({type(error).__name__}: {error})"
        ) from error
