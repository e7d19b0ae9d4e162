"""Masks from a data set's outlines: COCO's polygons and run-length codes, and picture files.

They are masks of the picture as it is shown, whichever way up its file has the pixels.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.data.datasets.mask_files import read_mask
from ris.data.datasets.polygons import polygon_mask
from ris.data.datasets.refer import ReferData, Reference, ReferImage
from ris.engines.errors import RisError, Skipped
from ris.engines.text import echoed, quoted, reason_of
from ris.runtime.image import Picture, image_size
from ris.runtime.masks import Rle, decode_rle, pack_counts
from ris.runtime.orientation import turned_mask, turned_size


def say_nothing(sentence: str) -> None:
    """The `noted` of a caller that wants no notes."""


def reference_mask(
    data: ReferData,
    image: ReferImage,
    reference: Reference,
    picture: Picture | None = None,
    noted: Skipped = say_nothing,
) -> NDArray[np.bool_]:
    """The union of the reference's annotations, turned as the picture is.

    Outlines are polygons, COCO's run-length codes (compressed or not, one or a list), or picture
    files.

    Args:
        data: The data set.
        image: Its image.
        reference: What is meant in it.
        picture: The image as it was read. None: it is upright, and of the size that the data set
            states.
        noted: Gets a sentence for an outline that has a meaning and may be a mistake.

    Returns:
        bool [height, width] of the picture as it is shown; all False where nothing is meant.

    Raises:
        RisError: For an outline that cannot be read or has another size than the image, and where
            pycocotools, which rasterises polygons, is not installed.
    """
    picture = picture or Picture(np.empty(0, np.uint8), image.height, image.width)
    mask = np.zeros((picture.height, picture.width), np.bool_)
    for number in reference.annotations:
        mask |= annotation_mask(data, image, number, picture, noted)
    return mask


def check_size(image: ReferImage, picture: Picture) -> None:
    """Raises RisError where the data set states a size that the picture has not.

    It may be the size of the picture as it is shown or as its file stores it.
    """
    stored = turned_size(picture.height, picture.width, picture.orientation)
    said = (image.height, image.width)
    if said not in ((picture.height, picture.width), stored):
        raise RisError(
            f"{echoed(image.path)} is {picture.height}x{picture.width} pixels (height x width), its"
            f" masks are {said[0]}x{said[1]}"
        )


def annotation_mask(
    data: ReferData, image: ReferImage, number: int, picture: Picture, noted: Skipped
) -> NDArray[np.bool_]:
    """The mask of one annotation, bool [height, width] of the picture as it is shown.

    Args:
        data: The data set.
        image: Its image.
        number: The annotation's number, which what is said of it has.
        picture: The image as it was read.
        noted: Gets a sentence for an outline that has a meaning and may be a mistake.

    Raises:
        RisError: As `reference_mask`.
    """
    # a line of one's own, which readers name, has one mask
    named = "" if data.shown_frame else f"annotation {number}: "
    try:
        return _upright_mask(data, image, number, picture, lambda said: noted(named + said))
    except RisError as error:
        raise RisError(f"{named}{error}") from None


def _upright_mask(
    data: ReferData, image: ReferImage, number: int, picture: Picture, noted: Skipped
) -> NDArray[np.bool_]:
    outline = data.outlines[number]
    size = _size(outline, image)
    # compared before anything of that size is made: a code may claim terabytes
    stored = is_of_stored_pixels(size, data, image, picture)
    mask = _mask(outline, image, noted)
    return turned_mask(mask, picture.orientation) if stored else mask


def is_of_stored_pixels(
    size: tuple[Any, Any], data: ReferData, image: ReferImage, picture: Picture
) -> bool:
    """Whether an outline is of the picture as its file stores it, and is to be turned with it.

    Args:
        size: The (height, width) of the outline's frame.
        data: The data set.
        image: Its image.
        picture: The image as it was read.

    Raises:
        RisError: For an outline that fits the picture neither as it is shown nor as it is stored.
    """
    shown = (picture.height, picture.width)
    stored = turned_size(*shown, picture.orientation)
    if size not in (shown, stored):
        raise RisError(
            f"{echoed(image.path)} is {shown[0]}x{shown[1]} (height x width), a mask of it"
            f" {quoted(size)}"
        )
    return size == stored and not (size == shown and data.shown_frame)


def _size(outline: Any, image: ReferImage) -> tuple[Any, Any]:
    """(height, width) as a file or a run-length code states it; the image's for polygons."""
    if isinstance(outline, Path):
        return image_size(outline)
    code = outline[0] if isinstance(outline, list) and outline else outline
    size = code.get("size") if isinstance(code, dict) else None
    if isinstance(size, list | tuple) and len(size) == 2:
        return size[0], size[1]
    return image.height, image.width


def _mask(outline: Any, image: ReferImage, noted: Skipped) -> NDArray[np.bool_]:
    """The mask, bool [height, width], in the outline's own frame."""
    if isinstance(outline, Path):
        return read_mask(outline)
    if isinstance(outline, dict):
        return decode_any_rle(outline)
    if not isinstance(outline, list):
        kind = "null" if outline is None else type(outline).__name__
        raise RisError(f"an outline is polygons or a run-length code; it is {kind}")
    if outline and all(isinstance(code, dict) for code in outline):
        masks = [decode_any_rle(code) for code in outline]
        if len({mask.shape for mask in masks}) > 1:
            raise RisError("its run-length codes are of several sizes")
        return np.logical_or.reduce(masks)
    return polygon_mask(outline, image.height, image.width, noted)


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
        text = counts.decode("ascii") if isinstance(counts, bytes) else counts
        if not isinstance(text, str):
            raise TypeError("its counts are neither text nor a list")
        if not all(isinstance(side, int) for side in code["size"]):
            raise ValueError(f"its size is {quoted(code['size'])}")
        return decode_rle(Rle(size=list(code["size"]), counts=text))
    except (LookupError, TypeError, ValueError, OverflowError) as error:
        raise RisError(
            f"a mask's run-length code is damaged ({type(error).__name__}: {reason_of(error)})"
        ) from error
