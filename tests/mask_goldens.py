"""The golden files of ways from mask logits to masks, for Python's and for libris's tests."""

from __future__ import annotations

import numpy as np

from conftest import GOLDEN
from golden import inputs
from ris.runtime.interpolate import resize_maps, resize_rows
from ris.runtime.masks import MaskRule

PROBABILITIES = MaskRule("probabilities", "bicubic", align_corners=True, threshold=0.5)
"""The way of cgformer/module_process.npz."""

PICTURES = {
    "landscape": (375, 500),
    "portrait": (640, 427),
    "small": (200, 150),
    "square": (480, 480),
}
"""Its pictures' sizes."""

LETTERBOX = MaskRule(letterbox=1024)
"""The way of evfsam/module_postprocess.npz."""


def of_probabilities() -> np.lib.npyio.NpzFile:
    """The file of probabilities."""
    return np.load(GOLDEN / "cgformer" / "module_process.npz")


def logits_of(name: str) -> np.ndarray:
    """The mask logits of one of its pictures, made as its authors' code makes them."""
    low = 3 * inputs.tensor(f"cgformer.post.{name}", (1, 1, 60, 60))[0, 0]
    padded = resize_maps(low, 482, 482, "bicubic")
    tall = resize_rows(padded, 480, "bilinear", align_corners=True).T
    return np.ascontiguousarray(resize_rows(tall, 480, "bilinear", align_corners=True).T)


def mask_of(name: str) -> np.ndarray:
    """The mask of one of its pictures, bool [H, W]."""
    height, width = PICTURES[name]
    bits = np.unpackbits(of_probabilities()[f"{name}_mask_bits"], count=height * width)
    return bits.reshape(height, width).astype(bool)


def of_letterboxes() -> np.lib.npyio.NpzFile:
    """The file of letterboxes."""
    return np.load(GOLDEN / "evfsam" / "module_postprocess.npz")


def letterbox(number: int) -> tuple[np.ndarray, tuple[int, ...], int]:
    """The low-resolution logits of a picture, its size, and the pixels of its mask."""
    golden = of_letterboxes()
    size = tuple(int(n) for n in golden[f"logits_{number}.shape"][2:])
    low = 3 * inputs.tensor("post.low", (1, 1, 256, 256))[0, 0]
    return low, size, int(golden[f"mask_pixels_{number}"])
