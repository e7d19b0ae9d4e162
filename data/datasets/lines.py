"""A data set of one's own: a JSONL file, one expression a line.

    {"image": "photos/1.jpg", "expression": "left man", "mask": "masks/1.png"} {"image":
    "photos/1.jpg", "expression": "the dog", "mask": {"size": [480, 640], "counts": "..."}}
    {"image": "photos/1.jpg", "expression": "a zebra", "mask": null}

Paths are relative to the file. mask: a PNG (all but 0 is the object), COCO's run-length code, or
null where nothing is meant. "category", the object's COCO name, is only for models that ask by
category.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from ris.data.datasets.refer import ReferData, Reference, ReferImage
from ris.engines.errors import RisError


def read_lines(path: Path) -> ReferData:
    """The data set in `path`. Raises RisError, with the line's number, for what is missing or not
    of this form.
    """
    references: dict[str, list[Reference]] = {}
    outlines: dict[int, Any] = {}
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise RisError(f"{path} cannot be read: {error}") from error
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
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
        if mask is not None:
            outlines[number] = path.parent / mask if isinstance(mask, str) else mask
        meant = () if mask is None else (number,)
        category = row.get("category")
        found = Reference(
            expression, meant, None if category is None else str(category), number, number
        )
        references.setdefault(image, []).append(found)
    if not references:
        raise RisError(f"{path} has no lines")
    images = []
    for name, asked in references.items():
        file = path.parent / name
        try:
            with Image.open(file) as opened:  # reads the header alone
                width, height = opened.size
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise RisError(
                f"{file} (line {asked[0].reference_id} of {path}) cannot be read: {error}"
            ) from error
        images.append(ReferImage(name, file, height, width, tuple(asked)))
    return ReferData(path.name, "all", tuple(images), outlines)
