"""COCO's polygons as masks: pycocotools rasterises what can be rasterised."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris import pip_install
from ris.engines.errors import RisError, Skipped
from ris.engines.text import quoted

_FORM = "polygons are [[x, y, x, y, ...], ...]"
_MOST_LENGTH = 2_000_000
"""The longest outline, in pixels, that pycocotools gets: it keeps 5 points for every pixel."""

_MARGIN = 16
"""How far outside the image an outline is cut that would be longer."""


def coco_masks() -> Any:
    """The module `pycocotools.mask`. Raises RisError where it is not installed."""
    try:
        from pycocotools import mask
    except ImportError as error:
        raise RisError(f"COCO's outlines need pycocotools: {pip_install('eval')}") from error
    return mask


def unusable(outline: list[Any]) -> str | None:
    """Why polygons cannot be rasterised in reasonable memory; None where they can.

    A coordinate may be no finite number, or so far away that the outline has millions of pixels.
    """
    try:
        lengths = [_length(_points(polygon)) for polygon in outline]
    except RisError as error:
        return str(error)
    if max(lengths, default=0.0) > _MOST_LENGTH:
        return f"its outline is longer than {_MOST_LENGTH / 1e6:g} million pixels"
    return None


def polygons_of_three_points(outline: list[Any]) -> list[Any]:
    """The polygons with an even number of at least 6 numbers, which published loaders keep."""
    return [polygon for polygon in outline if len(polygon) % 2 == 0 and len(polygon) >= 6]


def polygon_mask(outline: list[Any], height: int, width: int, noted: Skipped) -> NDArray[np.bool_]:
    """The union of polygons, bool [height, width], pixel by pixel as pycocotools has it.

    A polygon of fewer than three points has no pixels, and the odd last number of a polygon is
    ignored.

    Args:
        outline: Polygons, each a flat list of numbers: x, y, x, y, ...
        height: The mask's height.
        width: The mask's width.
        noted: Gets a sentence where a polygon has no pixels for this reason, or there is none.

    Raises:
        RisError: For anything that is no list of lists of finite numbers.
    """
    polygons = [_points(polygon) for polygon in outline]
    whole = [_cut(points, height, width) for points in polygons if len(points) >= 3]
    whole = [points for points in whole if len(points) >= 3]
    mask = _rasterised(whole, height, width) if whole else np.zeros((height, width), np.bool_)

    if not outline:
        noted("it has no polygon, so its mask is empty")
    elif any(len(points) < 3 for points in polygons):
        rest = "" if mask.any() else ", so its mask is empty"
        noted(f"a polygon of it has fewer than three points{rest}")
    elif not mask.any():
        noted("its outline has no area in the image, so its mask is empty")
    return mask


def _points(polygon: Any) -> NDArray[np.float64]:
    """[n, 2] x and y."""
    if not isinstance(polygon, list):
        raise RisError(f"{_FORM}; it has {type(polygon).__name__} in place of a polygon")
    try:
        numbers = np.array(polygon)
    except ValueError:  # lists of different lengths
        raise RisError(f"{_FORM}; one is nested deeper") from None
    if numbers.ndim != 1:
        raise RisError(f"{_FORM}; one is nested deeper")
    if numbers.size and numbers.dtype.kind not in "iuf":
        wrong = [value for value in polygon if type(value) not in (int, float)]
        if not wrong:
            raise RisError("a coordinate of it is too large a number")
        raise RisError(f"a coordinate of it is {quoted(wrong[0])}, not a number")
    if not np.isfinite(numbers).all():
        raise RisError("a coordinate of it is not a finite number")
    return numbers[: numbers.size // 2 * 2].reshape(-1, 2).astype(np.float64)


def _rasterised(polygons: list[NDArray[np.float64]], height: int, width: int) -> NDArray[np.bool_]:
    coco = coco_masks()
    flat = [points.ravel().tolist() for points in polygons]
    found: NDArray[np.bool_] = coco.decode(coco.merge(coco.frPyObjects(flat, height, width)))
    return found.astype(np.bool_)


def _cut(points: NDArray[np.float64], height: int, width: int) -> NDArray[np.float64]:
    """The polygon, or what of it is near the image where it is too long for pycocotools.

    A cut edge may move by a tenth of a pixel, as coordinates are rounded to fifths.
    """
    if _length(points) <= _MOST_LENGTH:
        return points
    for axis, last in ((0, width), (1, height)):
        points = _half(points, axis, -_MARGIN, 1)
        points = _half(points, axis, last + _MARGIN, -1)
    if _length(points) > _MOST_LENGTH:
        raise RisError(f"its outline is longer than {_MOST_LENGTH / 1e6:g} million pixels")
    return points


def _length(points: NDArray[np.float64]) -> float:
    with np.errstate(over="ignore"):
        steps = np.abs(points - np.roll(points, 1, axis=0))
        return float(steps.max(axis=1, initial=0).sum())


def _half(points: NDArray[np.float64], axis: int, border: float, side: int) -> NDArray[np.float64]:
    """What of a polygon has coordinates from `border` on (side 1), or up to it (-1).

    Sutherland and Hodgman's way: edges that cross the border end there, and what is beyond runs
    along it.
    """
    before = np.roll(points, 1, axis=0)
    inside, was_inside = (side * (p[:, axis] - border) >= 0 for p in (points, before))
    out = []
    for one, other, now, then in zip(before, points, was_inside, inside, strict=True):
        if now != then:
            # halves, as a difference may be more than the largest number
            share = (border / 2 - one[axis] / 2) / (other[axis] / 2 - one[axis] / 2)
            crossing = one * (1 - share) + other * share
            crossing[axis] = border
            out.append(crossing)
        if then:
            out.append(other)
    return np.array(out, np.float64).reshape(-1, 2)
