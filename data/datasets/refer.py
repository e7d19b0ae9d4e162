"""RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO and Ref-ZOM as samples: images with their expressions.

`refer_files` finds and reads the files that their authors publish.

A reference means one object (RefCOCO) or any number of objects, none included (gRefCOCO: ann_id -1;
Ref-ZOM: source "zero"). It has one or more sentences.
"""

from __future__ import annotations

import itertools
import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ris.data.datasets.refer_files import (
    IMAGE_FOLDERS,
    WHERE,
    ReferFiles,
    as_published,
    category_of,
    find,
    read_files,
)
from ris.engines.errors import RisError, Skipped, refuse
from ris.engines.text import echoed, quoted


@dataclass(frozen=True)
class Reference:
    """One expression and the annotations it means."""

    expression: str
    """The text as its author wrote it (`raw`), which is what the model is trained on."""

    annotations: tuple[int, ...]
    """Ids of the objects that are meant; empty where nothing is meant."""

    category: str | None
    """What a model that asks by category is given (`refer_files.category_of`); None where a JSONL
    file does not say."""

    reference_id: int
    """`ref_id` in the file."""

    sentence_id: int
    """`sent_id` in the file."""


@dataclass(frozen=True)
class ReferImage:
    """One image of a split and every expression about it."""

    name: str
    """What the data set calls it."""

    path: Path
    """The file of its pixels."""

    height: int
    """Pixels, as the data set states it."""

    width: int
    """Pixels, as the data set states it."""

    references: tuple[Reference, ...]
    """Every expression about it, in the order of the file."""


@dataclass(frozen=True)
class ReferData:
    """One split of a data set."""

    name: str
    """One of `DATASETS`, or the name of a JSONL file."""

    split: str
    """As the authors name it: "train", "val", "testA", ...; "all" for a JSONL file."""

    images: tuple[ReferImage, ...]
    """The images with expressions, in the order of their numbers."""

    outlines: dict[int, Any]
    """Annotation id -> COCO polygons, run-length codes, or the path of a picture file."""

    shown_frame: bool = False
    """Whether outlines are of pictures as they are shown, where they fit the stored pixels too.
    COCO's are of the stored pixels."""


def read(
    root: str | Path,
    name: str,
    split: str,
    *,
    split_by: str | None = None,
    images: str | Path | None = None,
    skipped: Skipped = refuse,
) -> ReferData:
    """Reads one split of a data set.

    Args:
        root: The folder that the data set's folder is in.
        name: One of `DATASETS`.
        split: "train", "val", "testA", ...
        split_by: Whose splits, of those in `DATASETS`; by default the usual ones.
        images: The folder of the JPEGs; by default those of `IMAGE_FOLDERS` that are below `root`.
        skipped: Gets a sentence for each image whose file is missing. The others are read.

    Raises:
        RisError: For a data set or a split that is not there, for missing files (it names all
            places that were looked at), for damaged ones, and where no image of the split is there;
            by default also in place of leaving an image out.
    """
    files = read_files(root, name, split_by, images)
    require_folder(files, root, images)
    with as_published(f"one of {name}'s files below {root}"):
        found, outlines = _assemble(files, split)
    return ReferData(name, split, with_pictures(found, files, skipped), outlines)


def require_folder(files: ReferFiles, root: str | Path, images: str | Path | None) -> None:
    """Raises RisError where a data set has no folder of images.

    Args:
        files: The data set's files.
        root: The folder that the data set's folder is in.
        images: The folder of the JPEGs; None: looked for below `root`.
    """
    if not files.folders:
        places = [Path(images)] if images else [Path(root) / part for part in IMAGE_FOLDERS]
        find(places, "the folder of images")


def _assemble(files: ReferFiles, split: str) -> tuple[tuple[ReferImage, ...], dict[int, Any]]:
    """The images of a split, and the outlines that they need."""
    by_image: dict[int, list[Reference]] = defaultdict(list)
    wanted: set[int] = set()
    for ref in files.references:
        if ref["split"] != split:
            continue
        ids = _object_ids(ref, files.annotations)
        wanted.update(ids)
        for reference in _references(ref, ids, category_of(ref, files)):
            by_image[int(ref["image_id"])].append(reference)
    if not by_image:
        splits = ", ".join(sorted({str(ref["split"]) for ref in files.references}))
        raise RisError(f"{files.name} has no split {split!r}; it has {echoed(splits)}")

    images = tuple(
        refer_image(files, number, references) for number, references in sorted(by_image.items())
    )
    return images, {number: files.annotations[number].get("segmentation") for number in wanted}


def _object_ids(ref: Any, annotations: dict[int, Any]) -> tuple[int, ...]:
    """The annotations that a reference means. ValueError for one that is not there."""
    given = ref["ann_id"]
    if not isinstance(given, list | tuple):
        given = [given]
    if ref.get("source") == "zero":
        given = []  # Ref-ZOM: ann_id may name an object that is somewhere else
    ids = tuple(int(number) for number in given if int(number) >= 0)

    unknown = [number for number in ids if number not in annotations]
    if unknown:
        raise ValueError(
            f"annotation {unknown[0]} of reference {quoted(ref['ref_id'])} is not in instances.json"
        )
    return ids


def _references(ref: Any, ids: tuple[int, ...], category: str) -> Iterator[Reference]:
    """One for each of the reference's sentences."""
    for sentence in ref["sentences"]:
        text = str(sentence["raw"] if "raw" in sentence else sentence["sent"])
        yield Reference(text, ids, category, int(ref["ref_id"]), int(sentence["sent_id"]))


def refer_image(files: ReferFiles, number: int, references: list[Reference]) -> ReferImage:
    """Image `number` of instances.json with these references."""
    shape = files.images[number]
    return ReferImage(
        name=str(shape["file_name"]),
        path=files.image_file(number),
        height=int(shape["height"]),
        width=int(shape["width"]),
        references=tuple(references),
    )


def with_pictures(
    images: tuple[ReferImage, ...], files: ReferFiles, skipped: Skipped
) -> tuple[ReferImage, ...]:
    """The images whose files are there.

    Args:
        images: All images of a split.
        files: The data set's files.
        skipped: Gets a sentence for each image whose file is missing.

    Raises:
        RisError: Where none is there.
    """
    exists = [os.path.exists(image.path) for image in images]
    there = tuple(itertools.compress(images, exists))
    places = ", ".join(map(str, files.folders))
    if not there:
        raise RisError(
            f"none of the {len(images)} images is in {places}, the first is"
            f" {echoed(images[0].name)}; {WHERE}"
        )
    for image, is_there in zip(images, exists, strict=True):
        if not is_there:
            skipped(f"{echoed(image.name)} is not in {places}")
    return there
