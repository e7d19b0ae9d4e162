"""Answers to files, each of which appears whole or not at all.

A file for each answer: mask PNG, overlay, COCO RLE, JSON, npy, polygons. Labels of all images:
COCO, YOLO, labelme (`ris.runtime.formats`).
"""

from __future__ import annotations

import itertools
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.engines.temporary import Save, clear_folder, write_atomically
from ris.engines.text import shown
from ris.runtime.formats.coco import CocoFile
from ris.runtime.formats.labelme import LabelmeFiles
from ris.runtime.formats.places import LabelFiles, Places, check_apart, check_free, json_file
from ris.runtime.formats.yolo import YoloFiles
from ris.runtime.image import load_rgb
from ris.runtime.masks import COLOURS, overlay
from ris.runtime.model import Model
from ris.runtime.outlines import Polygon
from ris.runtime.segmentation import Segmentation

_SUFFIXES = {
    "mask": ".mask.png",
    "overlay": ".overlay.png",
    "rle": ".rle.json",
    "json": ".json",
    "npy": ".npy",
    "polygons": ".polygons.json",
}
_LABELS = ("coco", "yolo", "labelme")

_NAME_BYTES = 255 - max(map(len, _SUFFIXES.values()))  # of a name without its suffix

FORMATS = (*_SUFFIXES, *_LABELS)
"""What a result can be written as."""


def slug(text: str, limit: int = 40) -> str:
    """A part of a file name from any text: ASCII letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:limit].strip("-") or "expression"


def _cut(stem: str, limit: int) -> str:
    """The beginning of a file name, of at most so many bytes."""
    while len(os.fsencode(stem)) > limit:
        stem = stem[:-1]
    return stem


class ResultWriter:
    """Writes results into a folder, under names such as `photo.left-man.mask.png`.

    The files of a run do not collide. Labels, `photo.json` and the like, are named after the image
    alone, and never take the place of a file that was there before.
    """

    def __init__(
        self,
        folder: Path,
        formats: Sequence[str],
        images: Sequence[Path] = (),
        tolerance: float = 0.0,
    ) -> None:
        """Checks that labels can be written.

        Args:
            folder: The folder of the results; it is made where it is missing.
            formats: What to write, of `FORMATS`.
            images: The image of each call of `write`; needed for labels alone.
            tolerance: How far, in pixels, the polygons of `polygons`, `yolo` and `labelme` may be
                from the mask's edge. 0: they are exact.

        Raises:
            RisError: Where a file of labels is there already, or would be written twice.
        """
        self._folder = folder
        self._formats = [name for name in formats if name not in _LABELS]
        self._tolerance = tolerance
        self._used: set[Path] = set()
        self._labels: list[LabelFiles] = []
        self._left: Counter[Path] = Counter()
        if wanted := [name for name in _LABELS if name in formats]:
            self._places = Places(folder, images)
            self._left = Counter(map(self._places.below, images))
            self._labels = [_label_files(name, self._places, tolerance) for name in wanted]
            files = [file for labels in self._labels for file in labels.files()]
            check_apart(files)
            check_free(files)
            self._used.update(files)
        clear_folder(folder)

    def write(
        self,
        image: Path,
        rgb: NDArray[np.uint8] | None,
        results: Sequence[Segmentation],
        model: Model,
    ) -> list[Path]:
        """Writes every format of every result.

        Args:
            image: The image's file, whose name the names of the results begin with.
            rgb: The image's pixels; None to read them from the file where an overlay needs them.
            results: The answers about the image.
            model: The model that gave them.

        Returns:
            The files, in order.

        Raises:
            OSError: Where the disk refuses.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        written = []
        for number, result in enumerate(results):
            base = self._unique(image.stem, result.expression)
            for name in self._formats:
                if name == "overlay":
                    pixels = load_rgb(image) if rgb is None else rgb
                    save = _overlay_png(pixels, result, COLOURS[number % len(COLOURS)])
                elif name == "json":
                    save = json_file(describe(image, result, model))
                elif name == "polygons":
                    save = json_file(_feature(image, result, self._tolerance))
                else:
                    save = _mask_file(name, result)
                path = self._folder / (base + _SUFFIXES[name])
                write_atomically(path, save)
                written.append(path)
        return written + self._write_labels(image, results)

    def _write_labels(self, image: Path, results: Sequence[Segmentation]) -> list[Path]:
        if not self._labels:
            return []
        below = self._places.below(image)
        self._left[below] -= 1
        if not results:
            return []
        more = self._left[below] > 0
        return [path for labels in self._labels for path in labels.add(image, results, more)]

    def finish(self) -> list[Path]:
        """Writes the labels that are about all images, once there is nothing more to `write`.

        Raises OSError where the disk refuses.
        """
        return [path for labels in self._labels for path in labels.finish()]

    def _unique(self, stem: str, expression: str) -> str:
        """A name none of whose files this run has; a long stem is cut for file systems."""
        for count in itertools.count(1):
            end = f".{slug(expression)}" + (f"-{count}" if count > 1 else "")
            name = _cut(stem, _NAME_BYTES - len(end)) + end
            files = {self._folder / (name + _SUFFIXES[form]) for form in self._formats}
            if files.isdisjoint(self._used):
                break
        self._used |= files
        return name


def _label_files(name: str, places: Places, tolerance: float) -> LabelFiles:
    if name == "coco":
        return CocoFile(places)
    return YoloFiles(places, tolerance) if name == "yolo" else LabelmeFiles(places, tolerance)


def _overlay_png(
    rgb: NDArray[np.uint8], result: Segmentation, colour: tuple[int, int, int]
) -> Save:
    picture = Image.fromarray(overlay(rgb, result.mask, colour))
    return lambda file: picture.save(file, "PNG", compress_level=1)


def _mask_file(name: str, result: Segmentation) -> Save:
    """The formats that hold the mask alone: mask, npy and rle."""
    if name == "mask":
        picture = Image.fromarray(result.mask.astype(np.uint8) * 255)
        return lambda file: picture.save(file, "PNG")
    if name == "npy":
        return lambda file: np.save(file, result.mask)
    return json_file(dict(result.rle()))


def _feature(image: Path, result: Segmentation, tolerance: float) -> dict[str, Any]:
    """A mask as a GeoJSON feature whose coordinates are pixels, y down."""
    height, width = result.mask.shape
    return {
        "type": "Feature",
        "geometry": {
            "type": "MultiPolygon",
            "coordinates": [_coordinates(part) for part in result.polygons(tolerance)],
        },
        "properties": {
            "image": shown(image),
            "height": height,
            "width": width,
            "expression": shown(result.expression),
            "category": result.category,
            "score": result.score,
            "is_no_target": result.is_no_target,
            "box": result.box,
        },
    }


def _coordinates(part: Polygon) -> list[list[list[int]]]:
    """The rings, each closed by its first point."""
    return [[*ring.tolist(), ring[0].tolist()] for ring in (part.outer, *part.holes)]


def describe(image: Path, result: Segmentation, model: Model) -> dict[str, Any]:
    """A result as plain data: what was found, how sure, how long it took and what really ran."""
    manifest = model.bundle.manifest
    height, width = result.mask.shape
    engines = {
        stage: {
            "engine": f"{info.engine} {info.version}",
            "device": info.device,
            "providers": list(info.providers),
            "computes_in": info.precision,
            "nodes": dict(info.nodes),
        }
        for stage, info in model.sessions.items()
    }
    return {
        "image": shown(image),
        "height": height,
        "width": width,
        "expression": result.expression,
        "category": result.category,
        "category_guessed_from": result.category_word,
        "no_target_probability": result.no_target,
        "is_no_target": result.is_no_target,
        "score": result.score,
        "mask_pixels": int(result.mask.sum()),
        "box": result.box,
        "rle": dict(result.rle()),
        "tells_no_target": manifest.no_target,
        "form": result.form,
        "seed": result.draws.seed,
        "draws": result.draws.count,
        "notes": list(result.notes),
        "seconds": {name: round(seconds, 6) for name, seconds in result.timings.items()},
        "bundle": shown(model.bundle.path),
        "trained": model.trained,
        "precision": {stage: entry.precision for stage, entry in manifest.graphs.items()},
        "engine": engines,
        "compute": model.choice.to_dict() if model.choice else None,
    }
