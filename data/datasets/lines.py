"""A data set of your own: a JSONL file, one expression a line.

    {"image": "1.jpg", "expression": "left man", "mask": "masks/1.png"}
    {"image": "1.jpg", "expression": "the dog", "mask": {"size": [480, 640], "counts": "..."}}
    {"image": "1.jpg", "expression": "a zebra", "mask": null}

Paths are relative to the file. A mask is a PNG file (all but 0 is the object), COCO's run-length
code, or null where nothing is meant. "category", COCO's name of the object, is only for models that
ask by category.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from ris.data.datasets.refer import ReferData, Reference, ReferImage
from ris.engines.errors import RisError


def read_lines(path: Path) -> ReferData:
    """The data set in the JSONL file `path`; a line's number is the id of its annotation.

    Raises:
        RisError: Where a file is missing or a line is not of this form; it names the line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RisError(f"{path} cannot be read: {error}") from error

    references: dict[str, list[Reference]] = {}
    outlines: dict[int, Any] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        image, reference, mask = _parsed(line, number, path)
        references.setdefault(image, []).append(reference)
        if mask is not None:
            outlines[number] = path.parent / mask if isinstance(mask, str) else mask
    if not references:
        raise RisError(f"{path} has no lines")

    images = tuple(_image(name, path, found) for name, found in references.items())
    return ReferData(path.name, "all", images, outlines)


def _parsed(line: str, number: int, path: Path) -> tuple[str, Reference, Any]:
    """The image's name, the reference, and the mask as the line has it."""
    try:
        row = json.loads(line)
        image, expression, mask = str(row["image"]), str(row["expression"]), row["mask"]
        if not isinstance(mask, str | dict | None):
            raise ValueError("mask is a file name, a run-length code or null")
    except (ValueError, KeyError, TypeError) as error:
        said = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise RisError(
            f'{path}, line {number}: not of the form {{"image", "expression", "mask"}}: {said}'
        ) from error

    category = row.get("category")
    reference = Reference(
        expression=expression,
        annotations=() if mask is None else (number,),
        category=None if category is None else str(category),
        reference_id=number,
        sentence_id=number,
    )
    return image, reference, mask


def _image(name: str, path: Path, references: list[Reference]) -> ReferImage:
    """The image of this name beside the JSONL file `path`, with its size."""
    file = path.parent / name
    try:
        with Image.open(file) as opened:  # reads the header alone
            width, height = opened.size
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        line = references[0].reference_id
        raise RisError(f"{file} (line {line} of {path}) cannot be read: {error}") from error
    return ReferImage(name, file, height, width, tuple(references))
