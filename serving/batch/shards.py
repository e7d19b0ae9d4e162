"""Web-dataset shards: tar files in which the members of a sample have one key.

A sample is the members with one key, wherever they stand in the shard: the name up to the first
dot. KEY.txt has an expression a line, KEY.json is {"expression": ..., "category": ...}; an
expression in the JSON comes before the text. A member of more parts, such as KEY.v2.jpg, is an
image of its own where KEY.v2.txt or KEY.v2.json stands with it or the sample has no KEY.jpg;
otherwise it belongs to the sample's image (KEY.seg.png) and is left alone.
"""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any

from ris.engines.errors import RisError
from ris.engines.text import echoed, reason_of
from ris.runtime.image import IMAGE_SUFFIXES
from ris.runtime.json_lines import parse_json, text_lines, utf_8
from ris.serving.batch.asked import (
    Asked,
    Given,
    Location,
    categories_of,
    own_category,
    texts_of,
    unusable,
)

_TEXT_BYTES = 1_000_000  # of a .txt or .json


@dataclass(frozen=True)
class _Member:
    """A file in a shard."""

    name: str
    """As the shard has it."""

    offset: int
    """Its first byte in the shard."""

    size: int
    """Its bytes."""

    problem: str = ""
    """Why it cannot be read in place; "" where it can."""

    @property
    def stem(self) -> str:
        """The name without its last extension, and without a leading "./"."""
        return posixpath.normpath(self.name).rpartition(".")[0]

    @property
    def suffix(self) -> str:
        """The last extension in small letters, with its dot."""
        return Path(self.name).suffix.lower()


@dataclass
class _Sample:
    """The members of one key."""

    key: str
    """Folder and base name up to the first dot."""

    images: list[_Member] = field(default_factory=list)
    """Its images, in order."""

    texts: list[_Member] = field(default_factory=list)
    """Its .txt and .json members, in order."""


def read_shard(path: Path, given: Given) -> Iterator[Asked]:
    """The samples of a shard in the order of their first members.

    What cannot be asked costs its own row.

    Raises:
        RisError: Where the file is no uncompressed tar file, or ends too early.
    """
    members: list[_Member] = []
    problem = ""
    try:
        _scan(path, members)
    except (OSError, tarfile.TarError, ValueError, OverflowError, MemoryError) as error:
        problem = reason_of(error)  # beyond TarError: sizes that no file has

    samples = _samples(members)
    # where the end is missing, the text of an image may be missing with it
    lost = bool(problem) and any(sample.texts for sample in samples)
    if samples:
        with path.open("rb") as file:
            asking = _Asking(path, file, given, lost)
            for sample in samples:
                yield from asking.asked(sample)
    if problem:
        raise RisError(f"{path} cannot be read as an uncompressed tar file: {problem}")


def _scan(path: Path, members: list[_Member]) -> None:
    """Appends the images and texts of a shard, as far as it can be read; links come last.

    Raises what tarfile raises, and ReadError where the file ends too early.
    """
    length = path.stat().st_size
    files: dict[str, _Member] = {}
    links: list[tuple[str, str]] = []
    try:
        with path.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            kept: list[tarfile.TarInfo] = vars(tar)["members"]
            for member in tar:
                kept.clear()  # it would keep them all
                if member.size < 0:
                    raise tarfile.ReadError(f"{echoed(member.name)} has a negative size")
                if member.islnk() or member.issym():
                    links.append((member.name, _target(member)))
                elif member.isfile():
                    sparse = "it is stored as a sparse file" if member.issparse() else ""
                    found = _Member(member.name, member.offset_data, member.size, sparse)
                    if not sparse and found.offset + found.size > length:
                        raise tarfile.ReadError("unexpected end of data")
                    files[posixpath.normpath(found.name)] = found
                    members.append(found)
            _check_end(path, tar.offset)
    finally:
        for name, target in links:
            found = files.get(target, _Member(name, 0, 0, "it is a link to nothing in the shard"))
            members.append(replace(found, name=name))


def _target(link: tarfile.TarInfo) -> str:
    """What a link leads to: a hard link has the name, a symbolic one the way from its folder."""
    if link.islnk():
        return posixpath.normpath(link.linkname)
    return posixpath.normpath(posixpath.join(posixpath.dirname(link.name), link.linkname))


def _samples(members: list[_Member]) -> list[_Sample]:
    """The images and texts by their keys, in the order of their first members."""
    samples: dict[str, _Sample] = {}
    for member in members:
        key = _key(member.name)
        if key is None:
            continue
        if member.suffix in IMAGE_SUFFIXES:
            samples.setdefault(key, _Sample(key)).images.append(member)
        elif member.suffix in (".txt", ".json"):
            samples.setdefault(key, _Sample(key)).texts.append(member)
    return list(samples.values())


def _check_end(path: Path, offset: int) -> None:
    """Raises ReadError where no end of an archive stands at the offset.

    tarfile itself takes whatever is no header for the end.
    """
    with path.open("rb") as file:
        file.seek(offset)
        if file.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
            raise tarfile.ReadError("unexpected end of data")


def _key(name: str) -> str | None:
    """The key of a member; None for one that has none: no extension, or a hidden file."""
    folder, _, base = posixpath.normpath(name).rpartition("/")
    stem, dot, _ = base.partition(".")
    if not stem or not dot or "__MACOSX" in folder.split("/"):
        return None
    return posixpath.join(folder, stem)


class _Asking:
    """What is asked of the samples of one shard."""

    def __init__(self, path: Path, file: IO[bytes], given: Given, lost: bool) -> None:
        """Keeps what is the same for all samples.

        Args:
            path: The shard.
            file: The same, open.
            given: What is asked where a sample does not say.
            lost: Whether texts may be missing, so that an image without one is not asked.
        """
        self._path = path
        self._file = file
        self._given = given
        self._lost = lost

    def asked(self, sample: _Sample) -> Iterator[Asked]:
        """What is asked of each of the sample's images, and errors for what has no use."""
        stems = {text.stem for text in sample.texts}
        has_main = any(image.stem == sample.key for image in sample.images)
        first: dict[str, _Member] = {}
        for image in sample.images:
            if first.setdefault(image.stem, image) is not image:
                if image.stem == sample.key or image.stem in stems or not has_main:
                    other = echoed(posixpath.basename(first[image.stem].name))
                    yield self._unusable(image, f"the sample has another image, {other}")
            elif image.stem == sample.key or image.stem in stems:
                yield self._about(image, _of(sample, image.stem))
            elif not has_main:
                yield self._about(image, _of(sample, sample.key))

        used = {*first, sample.key} if sample.images else set()
        for text in sample.texts:
            if text.stem not in used:
                yield self._unusable(text, "there is no image beside it")

    def _unusable(self, member: _Member, reason: str) -> Asked:
        return unusable(f"{self._path.name}/{member.name}", reason)

    def _about(self, image: _Member, texts: list[_Member]) -> Asked:
        """What is asked of an image; texts: what stands beside it."""
        name = f"{self._path.name}/{image.name}"
        expressions: tuple[str, ...] = self._given.expressions
        category: Any = self._given.category
        try:
            if image.problem:
                raise ValueError(image.problem)
            beside = self._beside(texts)
            if self._lost and not beside:
                raise ValueError("the shard ends too early, and the text beside it may be lost")
            if ".txt" in beside:
                lines = text_lines(utf_8(beside[".txt"]))
                expressions = texts_of(lines) if lines else ()
            if ".json" in beside:
                data = parse_json(beside[".json"])
                if not isinstance(data, dict):
                    raise TypeError("the JSON is not an object")
                if "expression" in data:
                    expressions = texts_of(data["expression"])
                category = own_category(data, self._given)
            categories = categories_of(category, expressions)
            if not expressions:
                raise ValueError("there is no expression")
        except (ValueError, TypeError) as error:
            return unusable(name, str(error))
        location = Location(str(self._path.absolute()), image.offset, image.size)
        return Asked(name, location, expressions, categories)

    def _beside(self, texts: list[_Member]) -> dict[str, bytes]:
        """The contents by suffix. Raises ValueError for one that is too large or there twice."""
        found: dict[str, bytes] = {}
        for text in texts:
            if text.suffix in found:
                raise ValueError(f"its {text.suffix} is there twice")
            if text.problem:
                raise ValueError(f"its {text.suffix}: {text.problem}")
            if text.size > _TEXT_BYTES:
                raise ValueError(f"its {text.suffix} has more than {_TEXT_BYTES / 1e6:g} MB")
            self._file.seek(text.offset)
            found[text.suffix] = self._file.read(text.size)
            if len(found[text.suffix]) < text.size:
                raise ValueError(f"its {text.suffix} ends too early")
        return found


def _of(sample: _Sample, stem: str) -> list[_Member]:
    """The sample's texts of this name."""
    return [text for text in sample.texts if text.stem == stem]
