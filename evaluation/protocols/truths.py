"""The mask of what an expression means, in each of the ways in which published evaluators make it.

Layers are decoded by pycocotools, squares are resized by Pillow, as the authors do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final, Literal, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.data.datasets.polygons import coco_masks
from ris.data.datasets.refer_files import ReferFiles
from ris.data.datasets.squares import scaled_mask
from ris.evaluation.protocols.questions import Question, is_crowd

Mask = NDArray[np.bool_]
"""bool [H, W]."""


OWN: Final = "own"
"""The image's own size, with the mask as the model's released code makes it."""

Side: TypeAlias = int | Literal["own"] | None
"""Where masks are compared: in a square of that side; `OWN`; None: at the image's own size, as
CGFormer's evaluator makes a mask of a model's logits."""


class Truth(Protocol):
    """How one evaluator makes the truth of a question."""

    side: Side
    """Where masks are compared."""

    def __call__(self, question: Question, files: ReferFiles) -> Mask:
        """The mask, bool [H, W], at the size at which the evaluator compares."""
        ...


class OwnSize:
    """Layers at the image's own size, and then maybe a square by nearest neighbour.

    Args:
        side: The side of the square; None or `OWN`: the image's own size.
        overlap: Whether a pixel of two layers is object; else it is background.
    """

    def __init__(self, side: Side, overlap: bool) -> None:
        self.side, self.overlap = side, overlap

    def __call__(self, question: Question, files: ReferFiles) -> Mask:
        """The sum of all layers of all the objects that are meant, compared with 1 or with 0."""
        image = files.images[question.image_id]
        height, width = int(image["height"]), int(image["width"])
        total = np.zeros((height, width), np.uint8, order="F")
        for number in question.annotations:
            outline = files.annotations[number].get("segmentation")
            if not outline:
                continue  # an evaluator that asks for such an object has an empty truth
            layers = _layers(outline, height, width)
            for i in range(layers.shape[-1]):
                total += layers[..., i]
        mask: Mask = total > 0 if self.overlap else total == 1
        return nearest(mask, self.side) if isinstance(self.side, int) else mask


class Scaled:
    """Polygons scaled to a square and rasterised there; crowds are left out.

    Args:
        side: The side of the square.
    """

    def __init__(self, side: int) -> None:
        self.side: Side = side
        self._square = side

    def __call__(self, question: Question, files: ReferFiles) -> Mask:
        """The union of the objects. An object that is named n times is scaled n times."""
        image = files.images[question.image_id]
        size = image["height"], image["width"]
        mask = np.zeros((self._square, self._square), np.bool_, order="F")
        for number in set(question.annotations):
            if is_crowd(files, number):
                continue
            outline = files.annotations[number]["segmentation"]
            times = question.annotations.count(number)
            mask |= scaled_mask(outline, size, self._square, times)
        return mask


def _layers(outline: list[Any], height: int, width: int) -> NDArray[np.uint8]:
    """One layer a polygon, or a run-length code: uint8 [height, width, layers]."""
    if isinstance(outline[0], list):
        # an empty polygon has no pixel, and pycocotools reads past its end
        outline = coco_masks().frPyObjects(
            [polygon for polygon in outline if polygon], height, width
        )
    return decode(outline)


def decode(codes: Sequence[Any]) -> NDArray[np.uint8]:
    """pycocotools' layers of compressed run-length codes, uint8 [H, W, N]."""
    found: NDArray[np.uint8] = coco_masks().decode(list(codes))
    return found


def nearest(mask: Mask, wanted: int | tuple[int, int]) -> Mask:
    """The mask as a square, or at a (height, width), by Pillow's nearest neighbour.

    pycocotools' masks have their columns in a row: such a mask is resized lying on its side, where
    Pillow reads it as it is.
    """
    height, width = (wanted, wanted) if isinstance(wanted, int) else wanted
    lying = mask.flags.f_contiguous and not mask.flags.c_contiguous
    levels = np.ascontiguousarray(mask.T if lying else mask).view(np.uint8)
    size = (height, width) if lying else (width, height)  # Pillow's order is the other one
    resized = np.asarray(Image.fromarray(levels).resize(size, Image.Resampling.NEAREST))
    found = resized.view(np.bool_)
    return found.T if lying else found
