"""A data set of your own: a JSONL file, one expression a line.

    {"image": "1.jpg", "expression": "left man", "mask": "masks/1.png"}
    {"image": "1.jpg", "expression": "the dog", "mask": {"size": [480, 640], "counts": "..."}}
    {"image": "1.jpg", "expression": "a zebra", "mask": null}

Paths are relative to the file. A mask is a picture (0 around the object, one other value in it),
COCO's run-length code, or null where nothing is meant. "category", COCO's name of the object, is
only for models that ask by category.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ris.data.datasets.refer import ReferData, Reference, ReferImage
from ris.engines.errors import ImageError, RisError, Skipped, refuse
from ris.runtime.image import image_size
from ris.runtime.json_lines import JsonLine, read_json_lines


def read_lines(path: Path, skipped: Skipped = refuse) -> ReferData:
    """The data set in the JSONL file `path`; a line's number is the id of its annotation.

    Args:
        path: The file.
        skipped: Gets a sentence for each line that is not of this form, and for each image that
            cannot be read. The others are read.

    Raises:
        RisError: Where the file cannot be read or nothing of it is left, and by default in place of
            leaving something out.
    """
    references: dict[str, list[Reference]] = {}
    outlines: dict[int, Any] = {}
    empty = True
    for line in read_json_lines(path):
        empty = False
        try:
            image, reference, mask = _parsed(line, path)
        except RisError as error:
            skipped(str(error))
            continue
        references.setdefault(image, []).append(reference)
        if mask is not None:
            outlines[line.number] = path.parent / mask if isinstance(mask, str) else mask
    if empty:
        raise RisError(f"{path} has no lines")

    images = []
    for name, found in references.items():
        try:
            images.append(_image(name, path, found))
        except RisError as error:
            skipped(str(error))
    if not images:
        raise RisError(f"{path} has no line that can be used")
    return ReferData(path.name, "all", tuple(images), outlines, shown_frame=True)


def _parsed(line: JsonLine, path: Path) -> tuple[str, Reference, Any]:
    """The image's name, the reference, and the mask as the line has it."""
    place, row = f"{path}, line {line.number}", line.value
    if line.problem:
        raise RisError(f"{place}: {line.problem}")
    if wrong := _wrong(row):
        raise RisError(f'{place}: not of the form {{"image", "expression", "mask"}}: {wrong}')

    mask = row["mask"]
    reference = Reference(
        expression=row["expression"],
        annotations=() if mask is None else (line.number,),
        category=row.get("category"),
        reference_id=line.number,
        sentence_id=line.number,
    )
    return row["image"], reference, mask


def _wrong(row: Any) -> str | None:
    """What is wrong with a line's JSON; None where nothing is."""
    if not isinstance(row, dict):
        return f"it is {type(row).__name__}, not an object"
    for field in ("image", "expression", "mask"):
        if field not in row:
            return f"{field!r} is missing"
    if not isinstance(row["image"], str) or not row["image"]:
        return "image is a file name"
    if not isinstance(row["expression"], str):
        return "expression is one text"
    if not isinstance(row["mask"], str | dict | None):
        return "mask is a file name, a run-length code or null"
    if not isinstance(row.get("category"), str | None):
        return "category is a name or null"
    return None


def _image(name: str, path: Path, references: list[Reference]) -> ReferImage:
    """The image of this name beside the JSONL file `path`, with its size."""
    file = path.parent / name
    try:
        height, width = image_size(file)
    except ImageError as error:
        raise RisError(f"{error} (line {references[0].reference_id} of {path})") from None
    return ReferImage(name, file, height, width, tuple(references))
