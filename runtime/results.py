"""Answers to files: mask PNG, overlay, COCO RLE, JSON, npy. A file appears whole or not at all."""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.engines.temporary import Save, clear_folder, write_atomically
from ris.engines.text import shown
from ris.runtime.image import load_rgb
from ris.runtime.masks import COLOURS, overlay
from ris.runtime.model import Model
from ris.runtime.segmentation import Segmentation

_SUFFIXES = {
    "mask": ".mask.png",
    "overlay": ".overlay.png",
    "rle": ".rle.json",
    "json": ".json",
    "npy": ".npy",
}

_NAME_BYTES = 255 - max(map(len, _SUFFIXES.values()))  # of a name without its suffix

FORMATS = tuple(_SUFFIXES)
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

    The names of a run do not collide.
    """

    def __init__(self, folder: Path, formats: Sequence[str]) -> None:
        self._folder = folder
        self._formats = formats
        self._used: set[str] = set()
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
                    save = _json(describe(image, result, model))
                else:
                    save = _mask_file(name, result)
                path = self._folder / (base + _SUFFIXES[name])
                write_atomically(path, save)
                written.append(path)
        return written

    def _unique(self, stem: str, expression: str) -> str:
        """A name that this run has not had; a long stem is cut, so that file systems take it."""
        name, count = "", 0
        while not name or name in self._used:
            count += 1
            end = f".{slug(expression)}" + (f"-{count}" if count > 1 else "")
            name = _cut(stem, _NAME_BYTES - len(end)) + end
        self._used.add(name)
        return name


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
    return _json(dict(result.rle()))


def _json(data: dict[str, Any]) -> Save:
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    return lambda file: file.write(text.encode())


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
        "rle": dict(result.rle()),
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
