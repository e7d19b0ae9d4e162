"""Web-dataset shards: tar files in which the members of a sample stand together.

A sample is the members with one key: the name up to the first dot. KEY.txt has an expression a
line, KEY.json is {"expression": ..., "category": ...}; an expression in the JSON comes before the
text. A member of more parts, such as KEY.v2.jpg, is an image of its own where KEY.v2.txt or
KEY.v2.json stands with it or the sample has no KEY.jpg; otherwise it belongs to the sample's image
(KEY.seg.png) and is left alone.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ris.engines.errors import RisError
from ris.engines.text import echoed, reason_of
from ris.runtime.image import IMAGE_SUFFIXES
from ris.runtime.json_lines import parse_json, text_lines, utf_8
from ris.serving.batch.asked import Asked, Given, Location, categories_of, texts_of, unusable

_TEXT_BYTES = 1_000_000  # of a .txt or .json


@dataclass
class _Sample:
    """The members of one key."""

    key: str
    """Folder and base name up to the first dot."""

    images: list[tarfile.TarInfo] = field(default_factory=list)
    """Its images, in order."""

    texts: dict[str, bytes | None] = field(default_factory=dict)
    """Its .txt and .json members: name -> content, None for one that is too large to read."""


def read_shard(path: Path, given: Given) -> Iterator[Asked]:
    """The samples of a shard; what cannot be asked costs its own row.

    Raises:
        RisError: Where the file is no uncompressed tar file, or ends too early.
    """
    try:
        with tarfile.open(path, "r:") as tar:
            sample = _Sample("")
            for member in tar:
                if member.size < 0:
                    raise tarfile.ReadError(f"{echoed(member.name)} has a negative size")
                key = _key(member.name)
                if key is None or not member.isfile():
                    continue
                if key != sample.key:
                    yield from _asked(path, sample, given)
                    sample = _Sample(key)
                _add(sample, tar, member)
            yield from _asked(path, sample, given)
    except (OSError, tarfile.TarError, ValueError, OverflowError, MemoryError) as error:
        reason = reason_of(error)  # beyond TarError: sizes that no file has
        raise RisError(f"{path} cannot be read as an uncompressed tar file: {reason}") from None


def _key(name: str) -> str | None:
    """The key of a member; None for one that has none: no extension, or a hidden file."""
    folder, _, base = name.rpartition("/")
    stem, dot, _ = base.partition(".")
    return f"{folder}/{stem}" if stem and dot and "__MACOSX" not in folder.split("/") else None


def _suffix(name: str) -> str:
    return Path(name).suffix.lower()


def _add(sample: _Sample, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
    suffix = _suffix(member.name)
    if suffix in IMAGE_SUFFIXES:
        sample.images.append(member)
    elif suffix in (".txt", ".json"):
        content = tar.extractfile(member) if member.size <= _TEXT_BYTES else None
        sample.texts[member.name] = content.read() if content else None


def _asked(path: Path, sample: _Sample, given: Given) -> Iterator[Asked]:
    """What is asked of each of the sample's images, and errors for what has no use."""
    stems = {_stem(name) for name in sample.texts}
    main = [image for image in sample.images if "." not in Path(_stem(image.name)).name]
    for image in sample.images:
        stem = _stem(image.name)
        if image in main[1:]:
            reason = f"the sample has another image, {echoed(Path(main[0].name).name)}"
            yield unusable(f"{path.name}/{image.name}", reason)
        elif image in main or stem in stems:
            yield _about(path, image, _of(sample, stem), given)
        elif not main:
            yield _about(path, image, _of(sample, sample.key.removeprefix("/")), given)

    used = {_stem(image.name) for image in sample.images} | {sample.key.removeprefix("/")}
    for name in sample.texts:
        if not sample.images or _stem(name) not in used:
            yield unusable(f"{path.name}/{name}", "there is no image beside it")


def _stem(name: str) -> str:
    """The name without its last extension."""
    return name.rpartition(".")[0]


def _of(sample: _Sample, stem: str) -> dict[str, bytes | None]:
    """The sample's texts of this name, by suffix."""
    return {_suffix(n): text for n, text in sample.texts.items() if _stem(n) == stem}


def _whole(suffix: str, text: bytes | None) -> bytes:
    if text is None:
        raise ValueError(f"its {suffix} has more than {_TEXT_BYTES / 1e6:g} MB")
    return text


def _about(
    path: Path, image: tarfile.TarInfo, texts: dict[str, bytes | None], given: Given
) -> Asked:
    """What is asked of an image; texts: what stands beside it, by suffix."""
    name = f"{path.name}/{image.name}"
    expressions: tuple[str, ...] = given.expressions
    category: Any = given.category
    try:
        beside = {suffix: _whole(suffix, text) for suffix, text in texts.items()}
        if ".txt" in beside:
            expressions = tuple(text_lines(utf_8(beside[".txt"])))
        if ".json" in beside:
            data = parse_json(beside[".json"])
            if not isinstance(data, dict):
                raise TypeError("the JSON is not an object")
            if "expression" in data:
                expressions = texts_of(data["expression"])
            category = data.get("category", category)
        categories = categories_of(category, expressions)
        if not expressions:
            raise ValueError("there is no expression")
    except (ValueError, TypeError) as error:
        return unusable(name, str(error))
    return Asked(
        name, Location(str(path.absolute()), image.offset_data, image.size), expressions, categories
    )
