"""What a benchmark measures: the ways of running a model, how often, and on what input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

IMAGES = (1, 2, 4, 8)
"""How many images go together through what runs once an image."""

EXPRESSIONS = (1, 2, 4, 8, 16, 32, 64)
"""How many expressions are asked together."""

PHOTO = (3000, 4000)
"""The photo's height and width in pixels: 12 megapixels."""


@dataclass(frozen=True)
class Alternative:
    """One way of running the model."""

    name: str
    """Its name in the report."""

    kind: str
    """What runs it, "bundle" or "pytorch" (`worker.KINDS`)."""

    bundle: str
    """The path of the bundle; of PyTorch, the bundle with the same model."""

    options: dict[str, Any] = field(default_factory=dict)
    """The options of `ris.runtime.load`; empty for PyTorch."""

    compile: bool = False
    """Use torch.compile; for PyTorch alone."""

    precision: str = "fp32"
    """What it multiplies in, "fp32" or "bf16"; for PyTorch alone."""

    files: dict[str, str | None] = field(default_factory=dict)
    """Paths of weight files by the names of `WeightFiles`; for PyTorch alone."""


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    rounds: int = 5
    """Measured rounds, after one to warm up."""

    cold_starts: int = 3
    """New processes of each bundle, after one that compiles what is needed."""

    batches: int = 2
    """Rounds of several images and expressions together, for the fastest bundle alone."""

    limit: float = 900.0
    """Seconds that one answer of a process may take."""

    anew: bool = False
    """Run every round in new processes, after one round there to warm up.

    What stays the same for a process's life, such as where its memory lies, then differs from round
    to round.
    """

    def steps(self, alternatives: Sequence[Alternative]) -> int:
        """How often `run_plan` reports."""
        bundles = sum(a.kind == "bundle" for a in alternatives)
        files = bundles < len(alternatives)  # of PyTorch
        starts = bundles * (1 + self.cold_starts)
        turns = (len(alternatives) + 1) * (1 + self.rounds)  # matrix products take turns, too
        photo = 1
        batches = (self.batches + 1) * (len(IMAGES) + len(EXPRESSIONS)) if self.batches else 0
        return files + starts + turns + photo + batches


@dataclass(frozen=True)
class Workload:
    """What every way of running the model is asked."""

    rgb: NDArray[np.uint8]
    """The image, uint8 [H, W, 3]."""

    expressions: tuple[str, str]
    """The expression of the first mask, and the next one."""

    categories: tuple[str, ...]
    """One for each expression; empty for a model that does not ask by category."""

    threads: int | None
    """CPU threads of each process. None: all cores."""

    def save(self, folder: Path) -> dict[str, Any]:
        """Writes the image and a photo of 12 megapixels to `folder`.

        Returns the part of a `worker`'s SPEC that all of them share.
        """
        image, photo = folder / "image.npy", folder / "photo.jpg"
        np.save(image, self.rgb)
        _save_photo(photo)
        return {
            "image": str(image),
            "photo": str(photo),
            "expressions": self.expressions,
            "categories": self.categories,
            "threads": self.threads,
        }


def _save_photo(path: Path) -> None:
    """A JPEG as a camera makes it, of smooth shapes and grain."""
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)
    shapes = Image.fromarray(colours).resize(PHOTO[::-1], Image.Resampling.BICUBIC)
    grain = rng.integers(-8, 9, (*PHOTO, 1), dtype=np.int16)
    pixels = np.clip(np.asarray(shapes, np.int16) + grain, 0, 255).astype(np.uint8)
    Image.fromarray(pixels).save(path, quality=90)
