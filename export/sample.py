"""The picture and the expressions that an export is checked with, drawn here and not in files."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ris.data.scenes import make_samples, make_scene

EXPRESSIONS = ("left man", "the red ball on the right", "second car from the right")
"""What is asked about `sample_image`."""

CATEGORIES = ("person", "sports ball", "car")
"""The COCO category of each of these expressions."""

_SCENE = 10**9  # the first scene of validation, which training never draws
_SCENE_SIZE = (640, 480)


def sample_image(width: int = 640, height: int = 480) -> NDArray[np.uint8]:
    """A drawn park, uint8 RGB [height, width, 3].

    It is the same on every machine: plain shapes, without antialiasing.
    """
    image = Image.new("RGB", (640, 480), (140, 190, 235))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 290, 640, 480), fill=(96, 158, 74))
    draw.ellipse((520, 30, 590, 100), fill=(255, 221, 90))

    for x in (40, 300, 470):
        draw.rectangle((x + 22, 200, x + 38, 310), fill=(112, 78, 48))
        draw.ellipse((x - 20, 110, x + 80, 225), fill=(50, 120, 60))

    for x, shirt in ((120, (200, 60, 50)), (390, (50, 80, 180))):
        draw.ellipse((x + 14, 215, x + 46, 250), fill=(232, 190, 150))
        draw.rectangle((x, 250, x + 60, 335), fill=shirt)
        draw.rectangle((x + 4, 335, x + 26, 410), fill=(50, 50, 70))
        draw.rectangle((x + 34, 335, x + 56, 410), fill=(50, 50, 70))

    draw.ellipse((545, 375, 605, 435), fill=(214, 40, 40))
    for x, paint in ((210, (240, 170, 40)), (470, (120, 60, 150))):
        draw.rectangle((x, 420, x + 110, 450), fill=paint)
        draw.rectangle((x + 24, 398, x + 86, 420), fill=(210, 225, 235))
        for wheel in (x + 14, x + 74):
            draw.ellipse((wheel, 440, wheel + 24, 464), fill=(30, 30, 30))

    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.NEAREST)
    return np.asarray(image)


def sample_scene() -> tuple[NDArray[np.uint8], tuple[str, ...]]:
    """A drawn scene, uint8 RGB [480, 640, 3], and three expressions that name something in it.

    A model that was trained on drawn scenes is checked with it. On other pictures the masks of such
    a model are a few stray pixels.
    """
    width, height = _SCENE_SIZE
    scene = make_scene(_SCENE, "train", width)
    # objects that do not reach into the part that is cut off
    whole = {i for i, shown in enumerate(scene.objects) if not shown.mask[height:].any()}
    asked = [
        sample.expression
        for sample in make_samples(scene, _SCENE, 40)
        if sample.targets and whole >= set(sample.targets)
    ]
    return np.ascontiguousarray(scene.image[:height]), tuple(asked[:3])
