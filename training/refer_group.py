"""Sentences of data sets, and groups of them with their images at the model's square."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris.data.datasets import ReferData, Reference, ReferImage
from ris.data.datasets.outlines import check_size
from ris.data.datasets.squares import object_squares
from ris.data.samples import place_of
from ris.engines.errors import RisError
from ris.engines.text import echoed
from ris.reference.dfam.categories import COCO_PANOPTIC
from ris.runtime.image import Picture, load_picture
from ris.training.samples import Example, Frame, Place, RawBatch, Stored, StoredImage, squares


@dataclass(frozen=True)
class Entry:
    """One sentence, and where it stands."""

    data: ReferData
    """Its data set."""

    image: ReferImage
    """Its image."""

    reference: Reference
    """What it says, and what it means."""


class Sentences:
    """All sentences of some data sets, in one list.

    Args:
        sets: The data sets.
    """

    def __init__(self, sets: Sequence[ReferData]) -> None:
        self.sets = tuple(sets)
        places = [
            (which, number, reference)
            for which, data in enumerate(sets)
            for number, image in enumerate(data.images)
            for reference in range(len(image.references))
        ]
        self.places = np.asarray(places, np.int32).reshape(-1, 3)

    def place(self, number: int) -> Place:
        """Where sentence `number` stands."""
        which, image, reference = (int(one) for one in self.places[number])
        return which, image, reference

    def entry(self, place: Place) -> Entry:
        """What stands there."""
        which, image, reference = place
        data = self.sets[which]
        return Entry(data, data.images[image], data.images[image].references[reference])

    def summary(self, chosen: NDArray[np.intp] | None = None) -> str:
        """How many sentences there are, and a digest of what they say and mean.

        chosen: the numbers of some of them; None: all.
        """
        found = hashlib.sha256()
        numbers = range(len(self.places)) if chosen is None else chosen
        for number in numbers:
            entry = self.entry(self.place(int(number)))
            image, said = entry.image, entry.reference
            line = (
                *(image.name, image.width, image.height, said.expression),
                *(said.annotations, said.category, said.reference_id, said.sentence_id),
            )
            found.update(repr(line).encode())
        return f"{len(numbers)} sentences, sha256 {found.hexdigest()[:16]}"

    def wide(self) -> NDArray[np.bool_]:
        """Whether each sentence's image is wider than high, bool [all]."""
        each = [[image.width > image.height for image in data.images] for data in self.sets]
        return np.asarray([each[which][image] for which, image, _ in self.places], np.bool_)


@dataclass(frozen=True)
class _Opened:
    """One image of a group."""

    picture: Picture
    """Its size and orientation; of stored features no pixels."""

    key: str | None
    """The hash of its file; None where no features are kept."""

    stored: StoredImage | None
    """Its features, where they are stored."""

    square: NDArray[np.uint8] | None
    """The model's square, uint8 [S, S, 3]; None where features are stored."""


@dataclass
class Group:
    """The samples of a batch as they are found. An image that comes twice is there once."""

    sentences: Sentences
    """All there are."""

    side: int
    """The side of the model's square."""

    stored: Stored | None
    """Finds stored features."""

    examples: list[Example] = field(default_factory=list)
    """What was added."""

    left_out: list[str] = field(default_factory=list)
    """A sentence for each that could not be used."""

    _opened: dict[tuple[int, int], _Opened] = field(default_factory=dict)
    """Numbers of data set and image -> the image; their order is that of the batch."""

    def add(self, place: Place) -> bool:
        """Adds the sentence there; False, with a reason in `left_out`, if it cannot be used."""
        entry, own = self.sentences.entry(place), place[:2]
        try:
            opened = self._opened.get(own) or _open(entry.image, self.side, self.stored)
        except RisError as error:
            self.left_out.append(str(error))
            return False
        try:
            objects = object_squares(
                entry.data, entry.image, entry.reference, opened.picture, self.side
            )
        except RisError as error:
            where = place_of(entry.data, entry.image, entry.reference)
            self.left_out.append(f"{where}: {error}")
            return False
        self._opened.setdefault(own, opened)
        category, row = entry.reference.category, list(self._opened).index(own)
        self.examples.append(
            Example(
                image_index=row,
                expression=entry.reference.expression,
                mask=np.logical_or.reduce(objects),
                present=bool(len(objects)),
                category=COCO_PANOPTIC.index(category) if category in COCO_PANOPTIC else -1,
                kind="expression",
                objects=objects,
                place=place,
            )
        )
        return True

    def raw(self) -> RawBatch:
        """The batch of what was added."""
        opened = list(self._opened.values())
        keys = [one.key for one in opened if one.key is not None]
        frames: list[Frame] = [
            (one.picture.height, one.picture.width, one.picture.orientation) for one in opened
        ]
        return RawBatch(
            images=squares([one.square for one in opened if one.square is not None], self.side),
            examples=tuple(self.examples),
            keys=tuple(keys) if keys else None,
            frames=tuple(frames),
            stored=tuple(one.stored for one in opened) if keys else (),
            left_out=tuple(self.left_out),
        )


def _open(image: ReferImage, side: int, stored: Stored | None) -> _Opened:
    """The image at the model's square, or what is stored of it. RisError where it is unusable."""
    key = found = None
    if stored is not None:
        key = file_hash(image)
        found = stored(key)
    if found is not None:
        picture = Picture(np.empty(0, np.uint8), *found.frame)
        check_size(image, picture)
        return _Opened(picture, key, found, None)
    picture = load_picture(image.path)
    check_size(image, picture)
    pixels = picture.pixels
    rgb = Image.fromarray(pixels) if isinstance(pixels, np.ndarray) else pixels
    square = np.asarray(rgb.resize((side, side), Image.Resampling.BILINEAR))
    return _Opened(picture, key, None, square)


def file_hash(image: ReferImage) -> str:
    """SHA-256 of an image's file, from which its pixels follow. RisError where it is unreadable."""
    try:
        with image.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise RisError(f"{echoed(image.path)} cannot be read: {error.strerror}") from error
