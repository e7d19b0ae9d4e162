"""RefCOCO, RefCOCO+, RefCOCOg and gRefCOCO as their authors publish them, and where people usually keep them.

    ROOT/refcoco/refs(unc).p         ROOT/refcoco/instances.json       the same in refcoco+, refcocog
    ROOT/grefcoco/grefs(unc).json    ROOT/grefcoco/instances.json
    ROOT/images/train2014/COCO_train2014_000000000009.jpg              or any folder with these files

A reference is one object (RefCOCO) or any number of objects, none included (gRefCOCO, ann_id -1), with its sentences.
"""

from __future__ import annotations

import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.calibration.datasets.plain_pickle import load_plain_pickle
from ris.engines.errors import RisError

# folder and split-by of each data set, as the authors name them; the first split-by is the usual one
DATASETS: dict[str, tuple[str, ...]] = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
    "grefcoco": ("unc",),
}
IMAGE_FOLDERS = ("images/train2014", "images/mscoco/images/train2014", "train2014", "images")
_WHERE = (
    "the RefCOCO files are published with the refer API (refcoco.zip, refcoco+.zip, refcocog.zip), gRefCOCO's by its "
    "authors, the images by COCO (train2014)"
)


@dataclass(frozen=True)
class Reference:
    """One expression and the annotations it means; `annotations` is empty where nothing is meant.

    expression: the text as the benchmark uses it; category: COCO's name of the first object, None without object;
    reference_id and sentence_id as in the files.
    """

    expression: str
    annotations: tuple[int, ...]
    category: str | None
    reference_id: int
    sentence_id: int


@dataclass(frozen=True)
class ReferImage:
    """One image of the split and every expression about it."""

    path: Path
    height: int
    width: int
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class ReferData:
    """A split: its images in the order of their numbers, and the annotations' outlines by id (COCO polygons or RLE)."""

    name: str
    split: str
    images: tuple[ReferImage, ...]
    outlines: dict[int, Any]


def _find(candidates: list[Path], what: str) -> Path:
    for path in candidates:
        if path.exists():
            return path
    raise RisError(f"{what} is missing: looked for {', '.join(map(str, candidates))}; {_WHERE}")


def read(
    root: str | Path, name: str, split: str, *, split_by: str | None = None, images: str | Path | None = None
) -> ReferData:
    """Reads one split ("train", "val", "testA", ...).

    split_by: whose splits (`DATASETS`), by default the usual ones; images: the folder of the JPEGs.
    Raises RisError for a data set or split that is not there, for missing files (all places named) and damaged ones.
    """
    if name not in DATASETS:
        raise RisError(f"there is no reader for {name!r}; known are {', '.join(DATASETS)}")
    by = split_by or DATASETS[name][0]
    folder = Path(root) / name
    stem = f"{'grefs' if name == 'grefcoco' else 'refs'}({by})"
    refs_file = _find([folder / f"{stem}{end}" for end in (".p", ".json")], f"{name}'s list of references")
    instances_file = _find([folder / "instances.json"], f"{name}'s instances.json")
    picture_folders = [Path(images)] if images else [Path(root) / part for part in IMAGE_FOLDERS]
    pictures = _find(picture_folders, "the folder of images")
    refs = load_plain_pickle(refs_file) if refs_file.suffix == ".p" else _json(refs_file)
    instances = _json(instances_file)
    try:
        return _assemble(name, split, refs, instances, pictures)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise RisError(
            f"{refs_file} or {instances_file} has not the published form ({type(error).__name__}: {error})"
        ) from error


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RisError(f"{path} is no JSON ({error}); download it again") from error


def _assemble(name: str, split: str, refs: Any, instances: Any, pictures: Path) -> ReferData:
    shapes = {int(image["id"]): image for image in instances["images"]}
    names = {int(category["id"]): str(category["name"]) for category in instances["categories"]}
    annotations = {int(annotation["id"]): annotation for annotation in instances["annotations"]}
    by_image: dict[int, list[Reference]] = defaultdict(list)
    wanted: set[int] = set()
    splits: set[str] = set()
    for ref in refs:
        splits.add(str(ref["split"]))
        if ref["split"] != split:
            continue
        given = ref["ann_id"]
        ids = tuple(int(i) for i in (given if isinstance(given, list | tuple) else [given]) if int(i) >= 0)
        unknown = [i for i in ids if i not in annotations]
        if unknown:
            raise ValueError(f"annotation {unknown[0]} of reference {ref['ref_id']} is not in instances.json")
        wanted.update(ids)
        category = names[int(annotations[ids[0]]["category_id"])] if ids else None
        by_image[int(ref["image_id"])] += [
            Reference(str(sentence["sent"]), ids, category, int(ref["ref_id"]), int(sentence["sent_id"]))
            for sentence in ref["sentences"]
        ]
    if not by_image:
        raise RisError(f"{name} has no split {split!r}; it has {', '.join(sorted(splits))}")
    images = tuple(
        ReferImage(
            pictures / str(shapes[number]["file_name"]),
            int(shapes[number]["height"]),
            int(shapes[number]["width"]),
            tuple(found),
        )
        for number, found in sorted(by_image.items())
    )
    missing = [image.path.name for image in images if not image.path.exists()]
    if missing:
        raise RisError(
            f"{len(missing)} of {len(images)} images are not in {pictures}, the first is {missing[0]}; {_WHERE}"
        )
    return ReferData(name, split, images, {i: annotations[i]["segmentation"] for i in wanted})


def reference_mask(data: ReferData, image: ReferImage, reference: Reference) -> NDArray[np.bool_]:
    """The union of the reference's annotations, bool [height, width]; all False where nothing is meant.

    Outlines are polygons, or COCO's run-length codes (compressed or not), rasterised by pycocotools. Raises RisError
    where that is not installed.
    """
    mask = np.zeros((image.height, image.width), np.bool_)
    if not reference.annotations:
        return mask
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise RisError('outlines need pycocotools: pip install "ris-runtime[train]"') from error
    for number in reference.annotations:
        outline = data.outlines[number]
        if isinstance(outline, dict):
            compressed = isinstance(outline["counts"], str | bytes)
            code = outline if compressed else coco.frPyObjects(outline, image.height, image.width)
        else:
            code = coco.merge(coco.frPyObjects(outline, image.height, image.width))
        mask |= coco.decode(code).astype(np.bool_)
    return mask
