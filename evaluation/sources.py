"""What can be evaluated on: the names that `--data` takes, and the samples behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ris.data.datasets import DATASETS, ReferData, read_lines, read_refer
from ris.data.samples import EvaluationImage, refer_images, scene_images
from ris.engines.errors import RisError

PROTOCOL_OF = {"scenes": "scenes", "grefcoco": "grefcoco", "ref-zom": "ref-zom"}
NAMES = ("scenes", *DATASETS)


@dataclass(frozen=True)
class SampleSource:
    """data: "scenes", a data set of `DATASETS`, or a JSONL file; split: None for the usual one;
    samples: how many expressions (scenes); root: the data set's folder; images: COCO's pictures,
    where they are elsewhere.
    """

    data: str = "scenes"
    split: str | None = None
    samples: int = 2000
    root: str | None = None
    images: str | None = None

    def __post_init__(self) -> None:
        """Raises RisError for combinations that make no sense."""
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
        return PROTOCOL_OF.get(self.data, "refcoco" if self.data in DATASETS else "scenes")

    def read(self) -> tuple[ReferData | None, int]:
        """(the data set, None for scenes; the number of expressions). Raises RisError for what is
        missing.
        """
        if self.data == "scenes":
            return None, self.samples
        if self.data in DATASETS:
            found = read_refer(self.root or "", self.data, self.split or "val", images=self.images)
        else:
            found = read_lines(Path(self.data))
        return found, sum(len(image.references) for image in found.images)

    def stream(self, read: ReferData | None, done: Mapping[str, int]) -> Iterator[EvaluationImage]:
        """The images but for those in `done` (name -> number of expressions); read: what `read`
        gave.
        """
        if read is None:
            return scene_images(
                "train" if self.split == "train" else "heldout", self.samples, done=done
            )
        return refer_images(read, done)

    def to_dict(self) -> dict[str, Any]:
        """What results depend on."""
        return asdict(self) if self.data == "scenes" else asdict(self) | {"samples": None}
