"""Masks as the regions of labelling tools: values of Label Studio, rings of points."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.runtime import Segmentation
from ris.serving.http.labelling.brush import brush_rle

TOLERANCE = 1.0
"""Pixels that a polygon may be from the mask's edge: nobody moves a point at every pixel's step."""


def rings_of(answer: Segmentation, tolerance: float = TOLERANCE) -> list[NDArray[np.float64]]:
    """A ring of points x, y, float64 [N, 2], for each part of the mask.

    Holes are cut in by a bridge without width: the tools' polygons have none.
    """
    return [polygon.joined() for polygon in answer.polygons(tolerance)]


def brush_value(answer: Segmentation) -> dict[str, Any]:
    """The whole mask, exactly."""
    return {"format": "rle", "rle": brush_rle(answer.mask)}


def polygon_values(answer: Segmentation) -> list[dict[str, Any]]:
    """A polygon for each part; points are percent of the picture's width and height."""
    height, width = answer.mask.shape
    scale = np.array([100 / width, 100 / height])
    return [
        {"points": np.round(ring * scale, 4).tolist(), "closed": True} for ring in rings_of(answer)
    ]


def box_value(answer: Segmentation) -> dict[str, Any]:
    """The box round the mask, in percent."""
    height, width = answer.mask.shape
    x, y, across, down = answer.box or (0, 0, 0, 0)
    return {
        "x": round(100 * x / width, 4),
        "y": round(100 * y / height, 4),
        "width": round(100 * across / width, 4),
        "height": round(100 * down / height, 4),
        "rotation": 0,
    }
