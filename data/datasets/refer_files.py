"""A referring data set's files as their authors publish them, found and read as they are.

They are looked for where people usually keep them:

    ROOT/refcoco/refs(unc).p         ROOT/refcoco/instances.json    the same in refcoco+, refcocog
    ROOT/grefcoco/grefs(unc).p       or grefs(unc).json; ROOT/grefcoco/instances.json
    ROOT/ref-zom/refs(final).p       or Ref-ZOM(final).p, as published; ROOT/ref-zom/instances.json
    ROOT/images/train2014/COCO_train2014_000000000009.jpg           or other folders of
                                                                    IMAGE_FOLDERS

`refer` makes samples of them for a model to be asked or trained. The protocols of the published
evaluators, which each read the same files in another way, take them from here.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ris.data.datasets.plain_pickle import load_plain_pickle
from ris.engines.errors import RisError
from ris.engines.text import reason_of
from ris.runtime.json_lines import parse_json

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
    "images/val2014",
    "images/mscoco/images/val2014",
    "val2014",
    "images",
)
"""Where COCO's images are looked for below the root; an image is taken from the first that has it.
"""

WHERE = (
    "the RefCOCO files are published with the refer API (refcoco.zip, refcoco+.zip, refcocog.zip), "
    "gRefCOCO's and Ref-ZOM's by their authors, the images by COCO (train2014; Ref-ZOM: val2014 "
    "too)"
)
"""Where the files come from, for messages."""

_NOT_AS_PUBLISHED = (
    KeyError,
    TypeError,
    IndexError,
    ValueError,
    AttributeError,
    OverflowError,
    RecursionError,
)
_FOLDERS = {"ref-zom": ("ref-zom", "Ref-ZOM")}
_STEMS = {"grefcoco": ("grefs",), "ref-zom": ("refs", "Ref-ZOM")}


@dataclass(frozen=True)
class ReferFiles:
    """What the files of a data set hold."""

    name: str
    """The data set, one of `DATASETS`."""

    split_by: str
    """Whose splits, as the authors name them: "unc", "umd", "google", "final"."""

    references: tuple[Any, ...]
    """The references in the order of the file, as dicts."""

    images: dict[int, Any]
    """Image id -> its entry in instances.json: `file_name`, `height`, `width`."""

    annotations: dict[int, Any]
    """Annotation id -> its entry: `segmentation`, `category_id`, `iscrowd`, `bbox`."""

    categories: dict[int, str]
    """Category id -> COCO's name."""

    folders: tuple[Path, ...] = ()
    """The folders of image files that are there."""

    def image_file(self, number: int) -> Path:
        """The file of an image's pixels; in the first folder where none has it."""
        name = str(self.images[number]["file_name"])
        found = (folder / name for folder in self.folders if os.path.exists(folder / name))
        return next(found, self.folders[0] / name if self.folders else Path(name))


@contextlib.contextmanager
def as_published(files: str) -> Iterator[None]:
    """Makes one sentence of what reading a reference or an annotation of another form raises.

    files: what they are of, for the RisError.
    """
    try:
        yield
    except _NOT_AS_PUBLISHED as error:
        kind = type(error).__name__
        raise RisError(
            f"{files} has not the published form ({kind}: {reason_of(error)})"
        ) from error


def candidates(root: Path, name: str, split_by: str) -> list[Path]:
    """The files that may be a data set's list of references, in the order in which they count."""
    folders = [root / folder for folder in _FOLDERS.get(name, (name,))]
    stems = _STEMS.get(name, ("refs",))
    return [
        folder / f"{stem}({split_by}){suffix}"
        for folder in folders
        for stem in stems
        for suffix in (".p", ".json")
    ]


def read_files(
    root: str | Path,
    name: str,
    split_by: str | None = None,
    images: str | Path | None = None,
) -> ReferFiles:
    """Reads a data set's list of references and its instances.json.

    Args:
        root: The folder that the data set's folder is in.
        name: One of `DATASETS`.
        split_by: Whose splits, of those in `DATASETS`; by default the usual ones.
        images: The folder of the JPEGs; by default those of `IMAGE_FOLDERS` that are below `root`.

    Raises:
        RisError: For an unknown data set, for files that are missing (it names all places that
            were looked at), and for damaged ones.
    """
    if name not in DATASETS:
        raise RisError(f"there is no reader for {name!r}; known are {', '.join(DATASETS)}")
    split_by = split_by or DATASETS[name][0]
    if split_by not in DATASETS[name]:
        raise RisError(f"{name} has no splits by {split_by!r}; it has {', '.join(DATASETS[name])}")
    root = Path(root)
    references = find(candidates(root, name, split_by), f"{name}'s list of references")
    instances = find([references.parent / "instances.json"], f"{name}'s instances.json")
    folders = [Path(images)] if images else [root / folder for folder in IMAGE_FOLDERS]

    load = load_plain_pickle if references.suffix == ".p" else _json
    with as_published(f"{references} or {instances}"):
        return assembled(name, split_by, load(references), _json(instances), _there(folders))


def assembled(
    name: str, split_by: str, references: Any, instances: Any, folders: Sequence[Path] = ()
) -> ReferFiles:
    """The files' contents by their ids. Raises KeyError, TypeError or ValueError for another form.

    Args:
        name: The data set.
        split_by: Whose splits.
        references: The list of references.
        instances: What instances.json holds.
        folders: The folders of image files.
    """
    return ReferFiles(
        name=name,
        split_by=split_by,
        references=tuple(references),
        images={int(image["id"]): image for image in instances["images"]},
        annotations={int(one["id"]): one for one in instances["annotations"]},
        categories={int(one["id"]): str(one["name"]) for one in instances["categories"]},
        folders=tuple(folders),
    )


def category_of(reference: Any, files: ReferFiles) -> str:
    """What a model that asks by category is given: the name of the reference's own `category_id`.

    "background" where a reference may mean any number of objects, as the released loader has it.
    """
    if files.name in ("grefcoco", "ref-zom"):
        return "background"
    return files.categories.get(int(reference["category_id"]), "background")


def split_of(reference: Any) -> str | None:
    """The split that a reference belongs to; None where its entry names none."""
    return str(reference["split"]) if "split" in reference else None


def splits_of(files: ReferFiles) -> list[str]:
    """The splits that a data set's references belong to, sorted."""
    named = (split_of(reference) for reference in files.references)
    return sorted({split for split in named if split is not None})


def find(places: Sequence[Path], what: str) -> Path:
    """The first of the places that exists; `what` they are, for the message of a RisError."""
    for path in places:
        if path.exists():
            return path
    raise RisError(f"{what} is missing: looked for {', '.join(map(str, places))}; {WHERE}")


def _there(folders: Sequence[Path]) -> list[Path]:
    return [folder for folder in folders if folder.is_dir()]


def _json(path: Path) -> Any:
    try:
        return parse_json(path.read_bytes())
    except ValueError as error:
        raise RisError(f"{path} is {error}; download it again") from error
    except OSError as error:
        raise RisError(f"{path} cannot be read: {error.strerror}") from error
