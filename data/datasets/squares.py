"""What an expression means in a model's square: each object's mask, made as the released code does.

Polygons are scaled to the square and rasterised there, which is not the mask of the picture's own
size, resized. Run-length codes and mask pictures have no points to scale: they are resized by
nearest neighbour.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.data.datasets.outlines import annotation_mask, is_of_stored_pixels, say_nothing
from ris.data.datasets.polygons import coco_masks, polygons_of_three_points, unusable
from ris.data.datasets.refer import ReferData, Reference, ReferImage
from ris.engines.errors import RisError, Skipped
from ris.runtime.image import Picture
from ris.runtime.orientation import turned_mask


def object_squares(
    data: ReferData,
    image: ReferImage,
    reference: Reference,
    picture: Picture,
    side: int,
    noted: Skipped = say_nothing,
) -> NDArray[np.bool_]:
    """A mask for each of the reference's annotations, turned as the picture is.

    Args:
        data: The data set.
        image: Its image.
        reference: What is meant in it.
        picture: The image as it was read; its pixels are not looked at.
        side: The side of the square.
        noted: Gets a sentence for an outline that has a meaning and may be a mistake.

    Returns:
        bool [n, side, side], in the order of the annotations; n is 0 where nothing is meant.

    Raises:
        RisError: For an outline that cannot be read or has another size than the image, and where
            pycocotools, which rasterises polygons, is not installed.
    """
    masks = np.zeros((len(reference.annotations), side, side), np.bool_)
    for mask, number in zip(masks, reference.annotations, strict=True):
        outline = data.outlines[number]
        if _is_polygons(outline):
            said = unusable(outline)
            if said is not None:
                raise RisError(f"annotation {number}: {said}")
            size = (image.height, image.width)
            mask[:] = scaled_mask(outline, size, side)
            if is_of_stored_pixels(size, data, image, picture):
                mask[:] = turned_mask(mask, picture.orientation)
        else:
            own = Image.fromarray(annotation_mask(data, image, number, picture, noted))
            mask[:] = np.asarray(own.resize((side, side), Image.Resampling.NEAREST))
    return masks


def _is_polygons(outline: Any) -> bool:
    return isinstance(outline, list) and not any(isinstance(part, dict) for part in outline)


def scaled_mask(
    outline: list[Any], size: tuple[int, int], side: int, times: int = 1
) -> NDArray[np.bool_]:
    """The union of an object's polygons, scaled to a square and rasterised there.

    Polygons of fewer than three points, or of an odd count of numbers, are left out.

    Args:
        outline: Polygons, each a flat list of numbers: x, y, x, y, ...
        size: The image's (height, width), whose pixels the numbers are.
        side: The side of the square.
        times: How often they are scaled; an evaluator scales an object that is named twice twice.

    Returns:
        bool [side, side], its columns in a row; all False without a polygon.

    Raises:
        RisError: Where pycocotools is not installed.
    """
    scale = side * 1.0 / size[1], side * 1.0 / size[0]
    polygons = [_scaled(one, scale, times) for one in polygons_of_three_points(outline)]
    coco = coco_masks()
    found: NDArray[np.uint8] = coco.decode(coco.merge(coco.frPyObjects(polygons, side, side)))
    return found.view(np.bool_)


def _scaled(polygon: list[float], scale: tuple[float, float], times: int) -> list[float]:
    """The polygon in the square. One of whole numbers stays so: each result is truncated."""
    points = np.asarray(polygon).reshape(-1, 2)
    for _ in range(times):
        for axis, factor in enumerate(scale):
            points[:, axis] = points[:, axis] * factor
    flat: list[float] = points.reshape(-1).tolist()
    return flat
