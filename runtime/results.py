"""Answers to files: mask PNG, overlay, COCO RLE, JSON, npy. Each file appears whole or not at
all.
"""

from __future__ import annotations

import json
import os
import re
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.runtime.image import load_rgb
from ris.runtime.masks import COLOURS, overlay
from ris.runtime.model import Model
from ris.runtime.segmentation import Segmentation

FORMATS = ("mask", "overlay", "rle", "json", "npy")


def slug(text: str, limit: int = 40) -> str:
    """A file name part from any text: ASCII letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")[:limit].strip("-") or "expression"


class ResultWriter:
    """Writes results into a folder under names that do not collide within a run:
    `photo.left-man.mask.png`.
    """

    def __init__(self, folder: Path, formats: Sequence[str]) -> None:
        self._folder = folder
        self._formats = formats
        self._used: set[str] = set()

    def write(
        self,
        image: Path,
        rgb: NDArray[np.uint8] | None,
        results: Sequence[Segmentation],
        model: Model,
    ) -> list[Path]:
        """Writes every format for every result; returns the files in order. Raises OSError where
        the disk refuses.

        rgb: the image's pixels, None to read them from the file where an overlay needs them.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        written = []
        for number, result in enumerate(results):
            base = self._unique(f"{image.stem}.{slug(result.expression)}")
            colour = COLOURS[number % len(COLOURS)]
            for name in self._formats:
                written.append(self._write_one(name, base, image, rgb, result, colour, model))
        return written

    def _write_one(
        self,
        name: str,
        base: str,
        image: Path,
        rgb: NDArray[np.uint8] | None,
        result: Segmentation,
        colour: tuple[int, int, int],
        model: Model,
    ) -> Path:
        save: Callable[[IO[bytes]], Any]
        if name == "mask":
            suffix, picture = ".mask.png", Image.fromarray(result.mask.astype(np.uint8) * 255)
            save = lambda file: picture.save(file, "PNG")  # noqa: E731
        elif name == "overlay":
            pixels = load_rgb(image) if rgb is None else rgb
            suffix, picture = ".overlay.png", Image.fromarray(overlay(pixels, result.mask, colour))
            save = lambda file: picture.save(file, "PNG", compress_level=1)  # noqa: E731
        elif name == "npy":
            suffix, save = ".npy", lambda file: np.save(file, result.mask)
        elif name == "rle":
            suffix, save = ".rle.json", lambda file: file.write(_json(dict(result.rle())))
        else:
            suffix, save = ".json", lambda file: file.write(_json(describe(image, result, model)))
        path = self._folder / (base + suffix)
        write_atomically(path, save)
        return path

    def _unique(self, base: str) -> str:
        name, count = base, 1
        while name in self._used:
            count += 1
            name = f"{base}-{count}"
        self._used.add(name)
        return name


def write_atomically(path: Path, save: Callable[[IO[bytes]], Any]) -> None:
    """Writes a hidden sibling and renames it, so a failure leaves what was there before."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        with partial.open("wb") as file:
            save(file)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def _json(data: dict[str, Any]) -> bytes:
    return (json.dumps(data, indent=2, ensure_ascii=False) + "\n").encode()


def describe(image: Path, result: Segmentation, model: Model) -> dict[str, Any]:
    """A result as plain data: what was found, how sure, how long it took and what really ran."""
    manifest = model.bundle.manifest
    height, width = result.mask.shape
    return {
        "image": str(image),
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
        "notes": list(result.notes),
        "seconds": {name: round(seconds, 6) for name, seconds in result.timings.items()},
        "bundle": str(model.bundle.path),
        "trained": model.trained,
        "precision": {stage: entry.precision for stage, entry in manifest.graphs.items()},
        "engine": {
            stage: {
                "engine": f"{info.engine} {info.version}",
                "device": info.device,
                "providers": list(info.providers),
                "computes_in": info.precision,
                "nodes": dict(info.nodes),
            }
            for stage, info in model.sessions.items()
        },
    }
