"""What of the referring data sets is below a folder, whole, and what is wrong with it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from ris.data.datasets.published import EXPRESSIONS, IMAGES, REFERENCES
from ris.data.datasets.refer_files import (
    DATASETS,
    ReferFiles,
    as_published,
    candidates,
    read_files,
    split_of,
    splits_of,
)
from ris.engines.errors import RisError
from ris.evaluation.protocols.table import PROTOCOLS
from ris.runtime.image import image_size

Track = Callable[[list[int]], Iterable[int]]
"""Shows progress over the ids of images."""


@dataclass(frozen=True)
class Size:
    """A number of things in the files, and what their authors state."""

    what: str
    """Such as "references of val"."""

    found: int
    """In the files."""

    published: int | None
    """As stated; None where it is not."""

    @property
    def differs(self) -> bool:
        """Whether it is not what is stated."""
        return self.published is not None and self.published != self.found


@dataclass
class Check:
    """What was found of one data set and split-by."""

    name: str
    """The data set."""

    split_by: str
    """Whose splits."""

    missing: str | None = None
    """Why it cannot be read; None where it can."""

    sizes: list[Size] = field(default_factory=list)
    """How much there is of it."""

    images: list[str] = field(default_factory=list)
    """A sentence for each image file that is missing, damaged or of another size than stated."""

    left_out: dict[str, dict[int, str]] = field(default_factory=dict)
    """Evaluator -> reference id -> why its loader drops it or stops at it; of all splits."""

    @property
    def whole(self) -> bool:
        """Whether it is there, of the stated size, with every image."""
        return self.missing is None and not self.images and not any(s.differs for s in self.sizes)


def present(root: Path) -> list[tuple[str, str]]:
    """The data sets and split-bys that have a list of references below the folder."""
    return [
        (name, split_by)
        for name, splits in DATASETS.items()
        for split_by in splits
        if any(path.exists() for path in candidates(root, name, split_by))
    ]


def check(
    root: Path, name: str, split_by: str, images: Path | None = None, track: Track = iter
) -> Check:
    """Reads a data set and every header of its image files, and compares.

    Args:
        root: The folder of the data sets' folders.
        name: One of `DATASETS`.
        split_by: Whose splits.
        images: The folder of the image files; None: looked for below the root.
        track: Shows progress over the images.
    """
    found = Check(name, split_by)
    try:
        files = read_files(root, name, split_by, images)
        with as_published(f"one of {name}'s files"):
            found.sizes = _sizes(files)
            found.left_out = _left_out(files)
            used = sorted({int(reference["image_id"]) for reference in files.references})
            for number in track(used):
                if said := _image_fault(files, number):
                    found.images.append(said)
    except RisError as error:
        found.missing = str(error)
    return found


def _sizes(files: ReferFiles) -> list[Size]:
    key = files.name, files.split_by
    named = (split_of(reference) for reference in files.references)
    splits = Counter(split for split in named if split is not None)
    stated = REFERENCES.get(key, {})
    sizes = [
        Size(f"references of {split}", splits.get(split, 0), stated.get(split))
        for split in [*stated, *sorted(set(splits) - set(stated))]
    ]
    images = {int(reference["image_id"]) for reference in files.references}
    expressions = sum(len(reference["sentences"]) for reference in files.references)
    sizes.append(Size("images", len(images), IMAGES.get(key)))
    sizes.append(Size("expressions", expressions, EXPRESSIONS.get(key)))
    return sizes


def _left_out(files: ReferFiles) -> dict[str, dict[int, str]]:
    splits = splits_of(files)
    found: dict[str, dict[int, str]] = defaultdict(dict)
    for protocol in PROTOCOLS.values():
        if files.name in protocol.rules:
            for split in splits:
                asked = protocol.rules[files.name].asking(split).of(files, split)
                found[protocol.name].update(asked.left_out)
    return {name: reasons for name, reasons in found.items() if reasons}


def _image_fault(files: ReferFiles, number: int) -> str | None:
    """What is wrong with an image file; None where it is whole as far as its header says."""
    if number not in files.images:
        return f"image {number} is not in instances.json"
    path = files.image_file(number)
    stated = int(files.images[number]["height"]), int(files.images[number]["width"])
    if not path.exists():
        return f"{path.name} is missing"
    try:
        size = image_size(path)
    except RisError as error:
        return str(error)
    if size not in (stated, stated[::-1]):
        return f"{path.name} is {size[1]}x{size[0]}, instances.json says {stated[1]}x{stated[0]}"
    return None
