"""What the label files of a run have in common: where they lie, and what their classes are."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ris.engines.errors import RisError
from ris.engines.temporary import Save
from ris.engines.text import echoed, shown
from ris.runtime.segmentation import Segmentation

_NAME_BYTES = 255  # of a file's name


class LabelFiles(Protocol):
    """One format's label files of a run."""

    def files(self) -> list[Path]:
        """The files that may be written. Raises RisError where images would share one."""

    def add(self, image: Path, results: Sequence[Segmentation], more: bool) -> list[Path]:
        """Takes the answers about an image, and returns the files that it wrote.

        more: whether there will be other answers about the image.
        """

    def finish(self) -> list[Path]:
        """Writes what is about the whole run, and returns these files."""


class Places:
    """Where the images of a run are, and where files about them go.

    A file about an image lies in the folder of the results as the image lies in the deepest folder
    that holds all images: beside its neighbours, with the image's own name and another suffix.
    """

    folder: Path
    """The folder of the results."""

    root: Path
    """The deepest folder that holds all images, absolute."""

    def __init__(self, folder: Path, images: Sequence[Path]) -> None:
        """folder: of the results; images: those of the run, not empty."""
        self.folder = folder
        self._images = images
        parents = {os.path.dirname(os.path.abspath(image)) for image in images}
        self.root = Path(os.path.commonpath(parents))

    def below(self, image: Path) -> Path:
        """The image's file below `root`; the same however the image is spelled."""
        return Path(os.path.relpath(os.path.abspath(image), self.root))

    def name(self, image: Path) -> str:
        """`below` with slashes, as valid Unicode."""
        return shown(self.below(image).as_posix())

    def file(self, image: Path, suffix: str) -> Path:
        """The file about an image; a name that file systems would not take is cut."""
        below = self.below(image)
        stem = below.stem
        while len(os.fsencode(stem)) > _NAME_BYTES - len(suffix):
            stem = stem[:-1]
        return self.folder / below.parent / (stem + suffix)

    def check(self, suffix: str) -> list[Path]:
        """The files about all images.

        Raises:
            RisError: Where two images would have the same one.
        """
        files: dict[Path, Path] = {}
        for image in self._images:
            file = self.file(image, suffix)
            other = files.setdefault(file, image)
            if self.below(other) != self.below(image):
                raise RisError(
                    f"{echoed(other)} and {echoed(image)} would have the same labels,"
                    f" {echoed(file.name)}; rename one of them"
                )
        return list(files)


class Classes:
    """The classes of a run, numbered from 0 in the order in which they were asked first."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}

    @property
    def names(self) -> list[str]:
        """The names by number."""
        return list(self._numbers)

    def number(self, result: Segmentation) -> int:
        """The number of an answer's class, empty or not."""
        return self._numbers.setdefault(class_name(result), len(self._numbers))


def class_name(result: Segmentation) -> str:
    """The category that was asked; for models that ask by none, the expression. Valid Unicode."""
    return shown(result.category or result.expression)


def check_apart(files: Sequence[Path]) -> None:
    """Raises RisError where two formats would write the same file."""
    if twice := [file for file, count in Counter(files).items() if count > 1]:
        raise RisError(
            f"two formats would write {echoed(twice[0])}; rename the image of that name, or ask for"
            " one format at a time"
        )


def check_free(files: Sequence[Path]) -> None:
    """Raises RisError where one of these files is there: labels are corrected by hand."""
    there = [file for file in files if os.path.lexists(file)]
    if there:
        more = f" and {len(there) - 1} more are" if there[1:] else " is"
        raise RisError(
            f"{echoed(there[0])}{more} there already, and labels are not replaced; choose another"
            " --out, or move them away"
        )


def plain(ring: NDArray[np.number]) -> list[list[float]]:
    """The points of a ring for JSON, whole numbers without a point."""
    whole = ring.astype(np.int64)
    found: list[list[float]] = (whole if (whole == ring).all() else ring).tolist()
    return found


def json_file(data: Any) -> Save:
    """Writes data as JSON, in lines."""
    text = json.dumps(data, indent=2, ensure_ascii=False) + "\n"
    return lambda file: file.write(text.encode())
