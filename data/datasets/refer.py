"""RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO and Ref-ZOM as their authors publish them, and where people
usually keep them.

    ROOT/refcoco/refs(unc).p         ROOT/refcoco/instances.json       the same in refcoco+,
    refcocog ROOT/grefcoco/grefs(unc).json    ROOT/grefcoco/instances.json
    ROOT/ref-zom/refs(final).p       ROOT/ref-zom/instances.json       published as Ref-ZOM(final).p
    ROOT/images/train2014/COCO_train2014_000000000009.jpg              or any folder with these
    files; Ref-ZOM's come
                                                                       from train2014 and val2014,
                                                                       put into one

A reference is one object (RefCOCO) or any number of objects, none included (gRefCOCO, ann_id -1;
Ref-ZOM, source "zero"), with its sentences.
"""

from __future__ import annotations

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ris import pip_install
from ris.data.datasets.plain_pickle import load_plain_pickle
from ris.engines.errors import RisError
from ris.runtime.masks import Rle, decode_rle, pack_counts

# folder and split-by of each data set, as the authors name them; the first split-by is the usual
# one
DATASETS: dict[str, tuple[str, ...]] = {
    "refcoco": ("unc", "google"),
    "refcoco+": ("unc",),
    "refcocog": ("umd", "google"),
    "grefcoco": ("unc",),
    "ref-zom": ("final",),
}
IMAGE_FOLDERS = (
    "images/trainval2014",
    "trainval2014",
    "images/train2014",
    "images/mscoco/images/train2014",
    "train2014",
    "images",
)
_WHERE = (
    "the RefCOCO files are published with the refer API (refcoco.zip, refcoco+.zip, refcocog.zip),"
    " gRefCOCO's and Ref-ZOM's by their authors, the images by COCO (train2014; Ref-ZOM: val2014"
    " too, in one folder)"
)


@dataclass(frozen=True)
class Reference:
    """One expression and the annotations it means; `annotations` is empty where nothing is meant.

    expression: the text as the benchmark uses it; category: COCO's name of the first object, None
    without object; reference_id and sentence_id as in the files.
    """

    expression: str
    annotations: tuple[int, ...]
    category: str | None
    reference_id: int
    sentence_id: int


@dataclass(frozen=True)
class ReferImage:
    """One image of the split and every expression about it. name: what the data set calls it."""

    name: str
    path: Path
    height: int
    width: int
    references: tuple[Reference, ...]


@dataclass(frozen=True)
class ReferData:
    """A split: its images in the order of their numbers, and the annotations' outlines by id (COCO
    polygons or RLE).
    """

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
    root: str | Path,
    name: str,
    split: str,
    *,
    split_by: str | None = None,
    images: str | Path | None = None,
) -> ReferData:
    """Reads one split ("train", "val", "testA", ...).

    split_by: whose splits (`DATASETS`), by default the usual ones; images: the folder of the JPEGs.
    Raises RisError for a data set or split that is not there, for missing files (all places named)
    and damaged ones.
    """
    if name not in DATASETS:
        raise RisError(f"there is no reader for {name!r}; known are {', '.join(DATASETS)}")
    by = split_by or DATASETS[name][0]
    folder = Path(root) / name
    stem = f"{'grefs' if name == 'grefcoco' else 'refs'}({by})"
    refs_file = _find(
        [folder / f"{stem}{end}" for end in (".p", ".json")], f"{name}'s list of references"
    )
    instances_file = _find([folder / "instances.json"], f"{name}'s instances.json")
    picture_folders = [Path(images)] if images else [Path(root) / part for part in IMAGE_FOLDERS]
    pictures = _find(picture_folders, "the folder of images")
    refs = load_plain_pickle(refs_file) if refs_file.suffix == ".p" else _json(refs_file)
    instances = _json(instances_file)
    try:
        return _assemble(name, split, refs, instances, pictures)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise RisError(
            f"{refs_file} or {instances_file} has not the published form ({type(error).__name__}:"
            f" {error})"
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
        absent = ref.get("source") == "zero"
        ids = tuple(
            int(i)
            for i in (given if isinstance(given, list | tuple) else [given])
            if not absent and int(i) >= 0
        )
        unknown = [i for i in ids if i not in annotations]
        if unknown:
            raise ValueError(
                f"annotation {unknown[0]} of reference {ref['ref_id']} is not in instances.json"
            )
        wanted.update(ids)
        category = names[int(annotations[ids[0]]["category_id"])] if ids else None
        for sentence in ref["sentences"]:
            text = str(sentence["sent"] if "sent" in sentence else sentence["raw"])
            found = Reference(text, ids, category, int(ref["ref_id"]), int(sentence["sent_id"]))
            by_image[int(ref["image_id"])].append(found)
    if not by_image:
        raise RisError(f"{name} has no split {split!r}; it has {', '.join(sorted(splits))}")
    images = tuple(
        ReferImage(
            str(shapes[number]["file_name"]),
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
            f"{len(missing)} of {len(images)} images are not in {pictures}, the first is"
            f" {missing[0]}; {_WHERE}"
        )
    return ReferData(name, split, images, {i: annotations[i]["segmentation"] for i in wanted})


def reference_mask(data: ReferData, image: ReferImage, reference: Reference) -> NDArray[np.bool_]:
    """The union of the reference's annotations, bool [height, width]; all False where nothing is
    meant.

    Outlines are polygons, COCO's run-length codes (compressed or not), or PNG files, where all but
    0 is the object. Raises RisError for one that cannot be read, and where pycocotools, which
    rasterises polygons, is not installed.
    """
    mask = np.zeros((image.height, image.width), np.bool_)
    if not reference.annotations:
        return mask
    for number in reference.annotations:
        outline = data.outlines[number]
        shape = _size(outline)  # before anything of that size is made
        if shape is not None and shape != mask.shape:
            raise RisError(
                f"{image.path} is {image.height}x{image.width} (height x width), a mask of it"
                f" {shape}"
            )
        found = (
            _png(outline)
            if isinstance(outline, Path)
            else _rasterised(outline, image.height, image.width)
        )
        mask |= found
    return mask


def _size(outline: Any) -> tuple[int, int] | None:
    """(height, width) that a PNG or a run-length code says it has; None for polygons, which have
    none, and for a damaged code."""
    if isinstance(outline, Path):
        with _opened(outline) as image:
            return image.height, image.width
    size = outline.get("size") if isinstance(outline, dict) else None
    return (size[0], size[1]) if isinstance(size, list | tuple) and len(size) == 2 else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    try:
        with Image.open(path) as image:
            yield image
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise RisError(f"{path} cannot be read: {error}") from error


def _png(path: Path) -> NDArray[np.bool_]:
    with _opened(path) as image:
        values = np.asarray(
            image if image.mode in ("1", "L", "P", "I", "I;16") else image.convert("RGB")
        )
    return (values if values.ndim == 2 else values.max(-1)) > 0


def _rasterised(outline: Any, height: int, width: int) -> NDArray[np.bool_]:
    if isinstance(outline, dict):
        return decode_any_rle(outline)
    try:
        from pycocotools import mask as coco
    except ImportError as error:
        raise RisError(f"polygons need pycocotools: {pip_install('eval')}") from error
    found: NDArray[np.bool_] = coco.decode(
        coco.merge(coco.frPyObjects(outline, height, width))
    ).astype(np.bool_)
    return found


def decode_any_rle(code: dict[str, Any]) -> NDArray[np.bool_]:
    """COCO's run-length code, counts a string (compressed) or a list of numbers -> bool [H, W].
    Raises RisError.
    """
    try:
        counts = code["counts"]
        if isinstance(counts, list):
            counts = pack_counts([int(run) for run in counts])
        text = counts.decode("ascii") if isinstance(counts, bytes) else str(counts)
        if not all(isinstance(side, int) for side in code["size"]):
            raise ValueError(f"its size is {code['size']}")
        return decode_rle(Rle(size=list(code["size"]), counts=text))
    except (KeyError, TypeError, ValueError, IndexError, UnicodeDecodeError) as error:
        raise RisError(
            f"a mask's run-length code is damaged ({type(error).__name__}: {error})"
        ) from error
