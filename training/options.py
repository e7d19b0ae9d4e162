"""What `ris-train` is told, as far as it is not the recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ris.engines.errors import RisError

SCENES = "scenes"
"""The name of the drawn scenes among the data."""


@dataclass(frozen=True)
class DataOptions:
    """What to train on."""

    name: str
    """`SCENES`, or the name of a data set."""

    root: Path | None
    """The folder of a data set's files; None for scenes."""

    images: Path | None
    """The folder of COCO's images; None: looked for below `root`."""

    features: Path | None
    """The folder of the frozen encoders' outputs; None stores nothing."""

    @property
    def drawn(self) -> bool:
        """Whether these are the drawn scenes."""
        return self.name == SCENES

    def check(self) -> None:
        """Raises RisError where a folder is missing, or belongs to other data."""
        if not self.drawn and self.root is None:
            raise RisError(f"--data {self.name} needs --root, the folder of its files")
        if self.drawn and (self.root or self.images or self.features):
            raise RisError(
                "--root, --images and --features belong to data sets, --data scenes draws its own"
                " images"
            )


@dataclass(frozen=True)
class ModelOptions:
    """Which model to train, and from what."""

    preset: str
    """The architecture, a key of `PRESETS`."""

    variant: str
    """What the sparse branch asks with: "cls" or "category"."""

    vocabulary: Path | None
    """A vocab.txt or tokenizer.json; None: that of BERT's folder, or else the preset's."""

    files: Mapping[str, Path | None]
    """The weight files to start from, by the field names of `WeightFiles`."""


@dataclass(frozen=True)
class HardwareOptions:
    """What to compute with."""

    device: str
    """A device's name in PyTorch."""

    threads: int | None
    """CPU threads; None: as many as PyTorch takes, or a container's quota."""

    workers: int
    """Processes that make batches."""
