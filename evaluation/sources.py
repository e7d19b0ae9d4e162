"""What can be evaluated on: the names that `--data` takes, and the samples behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ris.data.datasets import DATASETS, ReferData, read_lines, read_refer
from ris.data.samples import AnnotatedImage, refer_images, scene_images
from ris.data.scenes import Split
from ris.engines.errors import RisError, Skipped, refuse

PROTOCOL_OF = {"scenes": "scenes", "grefcoco": "grefcoco", "ref-zom": "ref-zom"}
"""Name of the samples -> the protocol of the same benchmark, where it has its own."""

NAMES = ("scenes", *DATASETS)
"""What `--data` takes, beside JSONL files."""


@dataclass(frozen=True)
class SampleSource:
    """What a model is evaluated on; the fields are options of `ris-eval`."""

    data: str = "scenes"
    """One of `NAMES`, or the path of a JSONL file."""

    split: str | None = None
    """The split; None for the usual one: "heldout" for scenes, "val" for data sets."""

    samples: int = 2000
    """How many expressions, for scenes."""

    root: str | None = None
    """The folder that a data set's folder is in; None for scenes and JSONL files."""

    images: str | None = None
    """The folder of COCO's images; None where they are in a usual place below `root`."""

    def __post_init__(self) -> None:
        """Raises RisError for options that do not go together."""
        if self.data not in NAMES and not self.data.endswith(".jsonl"):
            raise RisError(f"--data {self.data}: known are {', '.join(NAMES)}, or a .jsonl file")
        refer = self.data in DATASETS
        if refer and self.root is None:
            raise RisError(f"--data {self.data} needs --root, the folder of its files")
        if not refer and (self.root or self.images):
            raise RisError(
                f"--root and --images belong to data sets; --data {self.data} brings its own images"
            )
        if self.data == "scenes" and self.split not in (None, "train", "heldout"):
            raise RisError(f"scenes have no split {self.split!r}; they have train and heldout")
        if self.data.endswith(".jsonl") and self.split:
            raise RisError("a .jsonl file has no splits")

    @property
    def protocol(self) -> str:
        """The protocol that these samples are usually counted by."""
        otherwise = "refcoco" if self.data in DATASETS else "scenes"
        return PROTOCOL_OF.get(self.data, otherwise)

    @property
    def scene_split(self) -> Split:
        """The split of the scenes."""
        return "train" if self.split == "train" else "heldout"

    def read(self, skipped: Skipped = refuse) -> tuple[ReferData | None, int]:
        """The data set, None for scenes, and the number of expressions.

        skipped: gets a sentence for each line and each missing image that cannot be used.

        Raises:
            RisError: For files that are missing or damaged.
        """
        if self.data == "scenes":
            return None, self.samples
        if self.data in DATASETS:
            split = self.split or "val"
            found = read_refer(
                self.root or "", self.data, split, images=self.images, skipped=skipped
            )
        else:
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
            read: The data set that `read` gave, None for scenes.
            done: Names of images that are left out, and how many expressions they had.
            skipped: Gets a sentence for each image and expression that cannot be used.
            noted: Gets a sentence for each outline that is used and may be a mistake.
        """
        if read is not None:
            return refer_images(read, done, skipped, noted)
        return scene_images(self.scene_split, self.samples, done=done)

    def to_dict(self) -> dict[str, Any]:
        """What results depend on: all fields, but `samples` only for scenes."""
        return asdict(self) if self.data == "scenes" else asdict(self) | {"samples": None}
