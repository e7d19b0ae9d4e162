"""RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO and Ref-ZOM, from the files that their authors publish.

The files are looked for where people usually keep them:

    ROOT/refcoco/refs(unc).p         ROOT/refcoco/instances.json    the same in refcoco+, refcocog
    ROOT/grefcoco/grefs(unc).json    ROOT/grefcoco/instances.json
    ROOT/ref-zom/refs(final).p       ROOT/ref-zom/instances.json    published as Ref-ZOM(final).p
    ROOT/images/train2014/COCO_train2014_000000000009.jpg           or another folder of
                                                                    IMAGE_FOLDERS

Ref-ZOM's images come from train2014 and val2014, put into one folder.

A reference means one object (RefCOCO) or any number of objects, none included (gRefCOCO: ann_id -1;
Ref-ZOM: source "zero"). It has one or more sentences.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ris.data.datasets.plain_pickle import load_plain_pickle
from ris.engines.errors import RisError

DATASETS: dict[str, tuple[str, ...]] = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
    "grefcoco": ("unc",),
    "ref-zom": ("final",),
}
"""Data set (and its folder) -> whose splits there are, as the authors name them; the first is the
usual one."""

IMAGE_FOLDERS = (
    "images/trainval2014",
    "trainval2014",
    "images/train2014",
    "images/mscoco/images/train2014",
    "train2014",
    "images",
)
"""Where COCO's images are looked for below the root, in this order."""

_WHERE = (
    "the RefCOCO files are published with the refer API (refcoco.zip, refcoco+.zip, refcocog.zip), "
    "gRefCOCO's and Ref-ZOM's by their authors, the images by COCO (train2014; Ref-ZOM: val2014 "
    "too, in one folder)"
)


@dataclass(frozen=True)
class Reference:
    """One expression and the annotations it means."""

    expression: str
    """The text as the benchmark uses it."""

    annotations: tuple[int, ...]
    """Ids of the objects that are meant; empty where nothing is meant."""

    category: str | None
    """COCO's name of the first object; None without an object."""

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
    """Annotation id -> COCO polygons, a run-length code, or the path of a PNG file."""


def read(
    root: str | Path,
    name: str,
    split: str,
    *,
    split_by: str | None = None,
    images: str | Path | None = None,
) -> ReferData:
    """Reads one split of a data set.

    Args:
        root: The folder that the data set's folder is in.
        name: One of `DATASETS`.
        split: "train", "val", "testA", ...
        split_by: Whose splits, of those in `DATASETS`; by default the usual ones.
        images: The folder of the JPEGs; by default one of `IMAGE_FOLDERS` below `root`.

    Raises:
        RisError: For a data set or a split that is not there, for missing files (it names all
            places that were looked at), and for damaged ones.
    """
    if name not in DATASETS:
        raise RisError(f"there is no reader for {name!r}; known are {', '.join(DATASETS)}")
    folder = Path(root) / name
    stem = f"{'grefs' if name == 'grefcoco' else 'refs'}({split_by or DATASETS[name][0]})"
    refs_file = _find(
        [folder / f"{stem}.p", folder / f"{stem}.json"], f"{name}'s list of references"
    )
    instances_file = _find([folder / "instances.json"], f"{name}'s instances.json")
    picture_folders = [Path(images)] if images else [Path(root) / part for part in IMAGE_FOLDERS]
    pictures = _find(picture_folders, "the folder of images")

    refs = load_plain_pickle(refs_file) if refs_file.suffix == ".p" else _json(refs_file)
    instances = _json(instances_file)
    try:
        return _assemble(name, split, refs, instances, pictures)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        kind = type(error).__name__
        raise RisError(
            f"{refs_file} or {instances_file} has not the published form ({kind}: {error})"
        ) from error


def _find(candidates: list[Path], what: str) -> Path:
    """The first of the candidates that exists; `what` they are, for the message."""
    for path in candidates:
        if path.exists():
            return path
    raise RisError(f"{what} is missing: looked for {', '.join(map(str, candidates))}; {_WHERE}")


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RisError(f"{path} is no JSON ({error}); download it again") from error


def _assemble(name: str, split: str, refs: Any, instances: Any, pictures: Path) -> ReferData:
    """The split, out of the two files' contents and the folder of images."""
    shapes = {int(image["id"]): image for image in instances["images"]}
    names = {int(category["id"]): str(category["name"]) for category in instances["categories"]}
    annotations = {int(annotation["id"]): annotation for annotation in instances["annotations"]}

    by_image: dict[int, list[Reference]] = defaultdict(list)
    wanted: set[int] = set()
    for ref in refs:
        if ref["split"] != split:
            continue
        ids = _object_ids(ref, annotations)
        category = names[int(annotations[ids[0]]["category_id"])] if ids else None
        wanted.update(ids)
        for reference in _references(ref, ids, category):
            by_image[int(ref["image_id"])].append(reference)
    if not by_image:
        splits = sorted({str(ref["split"]) for ref in refs})
        raise RisError(f"{name} has no split {split!r}; it has {', '.join(splits)}")

    images = tuple(
        _image(shapes[number], pictures, references)
        for number, references in sorted(by_image.items())
    )
    _require_pictures(images, pictures)
    outlines = {number: annotations[number]["segmentation"] for number in wanted}
    return ReferData(name, split, images, outlines)


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
            f"annotation {unknown[0]} of reference {ref['ref_id']} is not in instances.json"
        )
    return ids


def _references(ref: Any, ids: tuple[int, ...], category: str | None) -> Iterator[Reference]:
    """One for each of the reference's sentences."""
    for sentence in ref["sentences"]:
        text = str(sentence["sent"] if "sent" in sentence else sentence["raw"])
        yield Reference(text, ids, category, int(ref["ref_id"]), int(sentence["sent_id"]))


def _image(shape: Any, pictures: Path, references: list[Reference]) -> ReferImage:
    """One of the images of instances.json."""
    file = str(shape["file_name"])
    return ReferImage(
        name=file,
        path=pictures / file,
        height=int(shape["height"]),
        width=int(shape["width"]),
        references=tuple(references),
    )


def _require_pictures(images: tuple[ReferImage, ...], pictures: Path) -> None:
    missing = [image.path.name for image in images if not image.path.exists()]
    if missing:
        raise RisError(
            f"{len(missing)} of {len(images)} images are not in {pictures}, the first is "
            f"{missing[0]}; {_WHERE}"
        )
