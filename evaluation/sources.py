"""What can be evaluated on: the names that `--data` takes, and the samples behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ris.data.datasets import DATASETS, ReferData, read_lines
from ris.data.datasets.refer_files import ReferFiles, read_files
from ris.data.samples import AnnotatedImage, refer_images, scene_images
from ris.data.scenes import Split
from ris.engines.errors import RisError, Skipped, refuse

SCENE_SAMPLES = 2000
"""Expressions about drawn scenes, unless another number is asked for."""

NAMES = ("scenes", *DATASETS)
"""What `--data` takes, beside JSONL files."""

Read = tuple[ReferData | None, int]
"""The lines of people's own pictures, None for scenes, and the number of expressions."""


@dataclass(frozen=True)
class SampleSource:
    """What a model is evaluated on; the fields are options of `ris-eval`."""

    data: str = "scenes"
    """One of `NAMES`, or the path of a JSONL file."""

    split: str | None = None
    """The split; None for the usual one: "heldout" for scenes, "val" for data sets."""

    samples: int | None = None
    """How many expressions, for scenes; None for 2,000."""

    root: str | None = None
    """The folder that a data set's folder is in; None for scenes and JSONL files."""

    images: str | None = None
    """The folder of COCO's images; None where they are in a usual place below `root`."""

    split_by: str | None = None
    """Whose splits of a data set; None for the usual ones."""

    def __post_init__(self) -> None:
        """Raises RisError for options that do not go together."""
        if self.data not in NAMES and not self.data.endswith(".jsonl"):
            raise RisError(f"--data {self.data}: known are {', '.join(NAMES)}, or a .jsonl file")
        if self.published and self.root is None:
            raise RisError(f"--data {self.data} needs --root, the folder of its files")
        if not self.published and (self.root or self.images or self.split_by):
            raise RisError(
                "--root, --images and --split-by belong to data sets; "
                f"--data {self.data} brings its own images"
            )
        if self.data == "scenes" and self.split not in (None, "train", "heldout"):
            raise RisError(f"scenes have no split {self.split!r}; they have train and heldout")
        if self.data != "scenes" and self.samples is not None:
            raise RisError(f"--samples is for drawn scenes; --data {self.data} is asked whole")
        if self.data.endswith(".jsonl") and self.split:
            raise RisError("a .jsonl file has no splits")

    @property
    def published(self) -> bool:
        """Whether it is a published data set, which published evaluators count."""
        return self.data in DATASETS

    @property
    def scene_split(self) -> Split:
        """The split of the scenes."""
        return "train" if self.split == "train" else "heldout"

    def files(self) -> ReferFiles:
        """The files of a published data set. Raises RisError where they are missing or damaged."""
        return read_files(self.root or "", self.data, self.split_by, self.images)

    def read(self, skipped: Skipped = refuse) -> Read:
        """The lines of people's own pictures, None for scenes, and the number of expressions.

        skipped: gets a sentence for each line that cannot be used.

        Raises:
            RisError: For files that are missing or damaged.
        """
        if self.data == "scenes":
            return None, self.scenes
        found = read_lines(Path(self.data), skipped)
        return found, sum(len(image.references) for image in found.images)

    def stream(
        self,
        read: ReferData | None,
        done: Mapping[str, int],
        skipped: Skipped = refuse,
        noted: Skipped = lambda sentence: None,
    ) -> Iterator[AnnotatedImage]:
        """The images, except those that are done.

        Args:
            read: What `read` gave.
            done: Names of images that are left out, and how many expressions they had.
            skipped: Gets a sentence for each image and expression that cannot be used.
            noted: Gets a sentence for each outline that is used and may be a mistake.
        """
        if read is not None:
            return refer_images(read, done, skipped, noted)
        return scene_images(self.scene_split, self.scenes, done=done)

    @property
    def scenes(self) -> int:
        """How many expressions about drawn scenes."""
        return SCENE_SAMPLES if self.samples is None else self.samples

    def to_dict(self) -> dict[str, Any]:
        """What results depend on: the fields that mean something for these samples."""
        found = asdict(self)
        if self.data == "scenes":
            found["samples"] = self.scenes
        if not self.published:
            del found["split_by"]
        return found

    @classmethod
    def from_dict(cls, found: dict[str, Any]) -> SampleSource:
        """What `to_dict` gave. Raises TypeError for anything else, RisError as the constructor."""
        return cls(**found)
