"""labelme's file beside each image, `NAME.json`, with polygons and without the image's bytes.

Holes are joined to the ring of their part, since labelme's polygons have none. The parts of an
answer have one `group_id`.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ris.engines.temporary import write_atomically
from ris.engines.text import shown
from ris.runtime.formats.places import Places, class_name, json_file, plain
from ris.runtime.segmentation import Segmentation

_SUFFIX = ".json"
_VERSION = "5.5.0"  # of labelme, whose form this is


class LabelmeFiles:
    """A file for each image."""

    def __init__(self, places: Places, tolerance: float) -> None:
        self._places = places
        self._tolerance = tolerance
        self._kept: dict[Path, list[list[dict[str, Any]]]] = {}

    def files(self) -> list[Path]:
        """The files that will be written. Raises RisError where two images would have the same."""
        return self._places.check(_SUFFIX)

    def add(self, image: Path, results: Sequence[Segmentation], more: bool) -> list[Path]:
        """Writes the answers about an image, with those that came before."""
        key = self._places.below(image)
        answers = self._kept.pop(key, [])
        answers += [self._shapes(result, len(answers) + i) for i, result in enumerate(results)]
        if more:
            self._kept[key] = answers
        path = self._places.file(image, _SUFFIX)
        path.parent.mkdir(parents=True, exist_ok=True)
        height, width = results[0].mask.shape
        data = {
            "version": _VERSION,
            "flags": {},
            "shapes": [shape for shapes in answers for shape in shapes],
            "imagePath": shown(os.path.relpath(os.path.abspath(image), path.parent)),
            "imageData": None,
            "imageHeight": height,
            "imageWidth": width,
        }
        write_atomically(path, json_file(data))
        return [path]

    def _shapes(self, result: Segmentation, group: int) -> list[dict[str, Any]]:
        expression = shown(result.expression)
        name = class_name(result)
        return [
            {
                "label": name,
                "points": plain(part.joined()),
                "group_id": group,
                "description": "" if name == expression else expression,
                "shape_type": "polygon",
                "flags": {},
                "mask": None,
            }
            for part in result.polygons(self._tolerance)
        ]

    def finish(self) -> list[Path]:
        """Nothing is left to write."""
        return []
