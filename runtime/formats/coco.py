"""COCO's file of instances, `coco.json`, as pycocotools reads it.

A mask is polygons (`iscrowd` 0), a ring for each part; one with holes is joined to a single ring.
pycocotools fills these rings to the very mask, so that `area` and `bbox` are what it computes.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from ris import __version__
from ris.engines.temporary import write_atomically
from ris.engines.text import shown
from ris.runtime.formats.places import Classes, Places, plain
from ris.runtime.segmentation import Segmentation

NAME = "coco.json"
"""The file in the folder of the results."""


class CocoFile:
    """One file for all images of a run, written at its end."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self._classes = Classes()
        self._images: dict[Path, int] = {}
        self._image_texts: list[str] = []
        self._annotations: list[str] = []  # as JSON, which takes less memory than its values

    def files(self) -> list[Path]:
        """The files that will be written."""
        return [self._places.folder / NAME]

    def add(self, image: Path, results: Sequence[Segmentation], more: bool) -> list[Path]:
        """Takes the answers about an image; nothing is written yet."""
        for result in results:
            number = self._number(image, *result.mask.shape)
            category = self._classes.number(result) + 1
            if (box := result.box) is not None:
                self._annotations.append(
                    json.dumps(
                        {
                            "id": len(self._annotations) + 1,
                            "image_id": number,
                            "category_id": category,
                            "segmentation": _segmentation(result),
                            "area": int(result.mask.sum()),
                            "bbox": list(box),
                            "iscrowd": 0,
                            "expression": shown(result.expression),
                            "score": round(result.score, 6),
                        },
                        ensure_ascii=False,
                    )
                )
        return []

    def _number(self, image: Path, height: int, width: int) -> int:
        key = self._places.below(image)
        if key not in self._images:
            self._images[key] = len(self._images) + 1
            entry = {
                "id": self._images[key],
                "file_name": self._places.name(image),
                "width": width,
                "height": height,
            }
            self._image_texts.append(json.dumps(entry, ensure_ascii=False))
        return self._images[key]

    def finish(self) -> list[Path]:
        """Writes the file."""
        [path] = self.files()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, self._save)
        return [path]

    def _save(self, file: IO[bytes]) -> None:
        info = {"description": f"Answers of ris-runtime {__version__} to referring expressions"}
        names = enumerate(self._classes.names, 1)
        categories = [
            json.dumps({"id": number, "name": name}, ensure_ascii=False) for number, name in names
        ]
        file.write(f'{{\n"info": {json.dumps(info)},\n"licenses": []'.encode())
        lists = (
            ("images", self._image_texts),
            ("annotations", self._annotations),
            ("categories", categories),
        )
        for name, entries in lists:
            file.write(f',\n"{name}": ['.encode())
            for number, entry in enumerate(entries):
                file.write((",\n" if number else "\n").encode() + entry.encode())
            file.write(b"\n]")
        file.write(b"\n}\n")


def _segmentation(result: Segmentation) -> list[list[float]]:
    """x1, y1, x2, y2 and so on of each part."""
    rings = [plain(part.joined()) for part in result.polygons()]
    return [[number for point in ring for number in point] for ring in rings]
