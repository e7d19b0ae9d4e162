"""The table of published models, their parts, and the data sets that go with them.

It is data: `published.json` beside this file, or the file that $RIS_MODELS names
(docs/reference/models/names.md). What it does not know is absent there.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

from ris.engines.errors import BundleError, HubError
from ris.engines.text import echoed, quoted
from ris.runtime.from_json import Rule, build, read_json
from ris.runtime.hub.address import is_revision
from ris.runtime.hub.download import HubFile, WebFile
from ris.runtime.hub.failures import without_login
from ris.runtime.reference import family_names

TABLE = Path(__file__).resolve().parent / "published.json"
"""The built-in table."""

VARIABLE = "RIS_MODELS"
"""The environment variable that names another table."""

Role = Literal["checkpoint", "sam", "clip", "bert", "beside"]
"""What a file is for: one of the weight files, by the field of `WeightFiles`, or what a family
reads beside its checkpoint, such as a vocabulary."""

_Name = Annotated[str, Rule(lambda t: bool(re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", t)), "a name")]
_Sha256 = Annotated[str, Rule(lambda t: bool(re.fullmatch("[0-9a-f]{64}", t)), "a sha256")]
_Url = Annotated[str, Rule(lambda t: t.startswith(("https://", "http://")), "an address")]


@dataclass(frozen=True)
class PublishedFile:
    """A file of an entry: in a repository on a Hub, on another server, or behind a page."""

    role: Role | None
    """What it is for; None in a data set."""

    name: str
    """Its name; in a repository with the folders of it."""

    repository: str | None = None
    """The repository on the Hub, "org/name"; None: it is in none. May be absent."""

    kind: Literal["model", "dataset"] = "model"
    """What that repository is of. May be absent."""

    revision: str = "main"
    """A branch, a tag or a commit of it. May be absent."""

    url: _Url | None = None
    """Where a server that is no Hub has it. May be absent."""

    page: str | None = None
    """The page on which a person finds it, where no program can. May be absent."""

    bytes: int | None = None
    """Its size; None where nobody stated it. May be absent."""

    sha256: _Sha256 | None = None
    """Its hash; None where nobody stated it. May be absent."""

    optional: bool = False
    """Whether its repository may be without it. May be absent."""

    note: str | None = None
    """What else is known of it, such as who stated size and hash. May be absent."""

    @property
    def source(self) -> HubFile | WebFile | None:
        """What fetches it; None where a person has to."""
        if self.repository is not None:
            return HubFile(self.repository, self.name, self.revision, self.kind, self.sha256)
        return None if self.url is None else WebFile(self.url, self.bytes, self.sha256, self.name)

    @property
    def place(self) -> str:
        """Where it comes from, for people."""
        if self.repository is None:
            return without_login(self.url or self.page or "unknown")
        kind = "datasets/" if self.kind == "dataset" else ""
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{kind}{self.repository}{at}"


@dataclass(frozen=True)
class Licences:
    """What is known of the licences."""

    code: str | None = None
    """That of the authors' code. May be absent."""

    weights: str | None = None
    """That of the weights as their page states it, a word such as "apache-2.0"; None: not stated.

    May be absent.
    """

    data: str | None = None
    """That of a data set. May be absent."""

    note: str | None = None
    """What a word does not say. May be absent."""


@dataclass(frozen=True)
class Terms:
    """Terms that a user has to accept by name before anything is fetched."""

    word: _Name
    """What `--accept-licence` takes."""

    words: str
    """What is accepted, in a sentence."""


@dataclass(frozen=True)
class Score:
    """A published figure."""

    data: str
    """The data set and its split."""

    measure: str
    """What is measured, "cIoU"."""

    value: float
    """The figure, percent."""

    source: str
    """Who published it, and of what."""


@dataclass(frozen=True)
class Cost:
    """Operations of a mask, in 10^9; a multiply-add counts as two."""

    first_mask: float | None = None
    """An image and an expression about it. May be absent."""

    next_mask: float | None = None
    """Another expression about that image. May be absent."""


@dataclass(frozen=True)
class Entry:
    """Something that is published under a name."""

    name: _Name
    """Its name here."""

    kind: Literal["model", "part", "data"]
    """A model, a weight file that models are made with, or a data set."""

    title: str
    """What it is, in a line."""

    files: tuple[PublishedFile, ...]
    """Its files."""

    licences: Licences
    """Their licences."""

    page: str | None = None
    """Its authors' page. May be absent."""

    family: str | None = None
    """The family of a model, a name of `ris.reference.families`. May be absent."""

    preset: str | None = None
    """The model's configuration, a preset of its family. May be absent."""

    variant: Literal["cls", "category"] | None = None
    """What the model asks with, where its family has variants. May be absent."""

    refused: str | None = None
    """Why the model cannot be exported, to follow "it"; None where it can. May be absent."""

    terms: Terms | None = None
    """What has to be accepted first. May be absent."""

    parameters: float | None = None
    """Millions of numbers in the checkpoint. May be absent."""

    operations: Cost = Cost()
    """What a mask costs. May be absent."""

    export_memory: float | None = None
    """The memory that an export takes at most, GB, as measured. May be absent."""

    scores: tuple[Score, ...] = ()
    """Published figures. May be absent."""

    notes: tuple[str, ...] = ()
    """What a user should know, in sentences. May be absent."""

    @property
    def bytes(self) -> int | None:
        """The size of all files; None where that of one is not known."""
        sizes = [file.bytes for file in self.files]
        return None if None in sizes else sum(size or 0 for size in sizes)

    @property
    def by_hand(self) -> tuple[PublishedFile, ...]:
        """The files that a person has to fetch."""
        return tuple(file for file in self.files if file.source is None)

    @property
    def repository(self) -> str | None:
        """The repository of the model's weights, or of its first file; None: it has none."""
        weights = [file for file in self.files if file.role == "checkpoint"] or self.files
        return next((file.repository for file in weights), None)


@dataclass(frozen=True)
class Table:
    """All entries."""

    format: Literal[1]
    """The version of the table's form."""

    entries: tuple[Entry, ...] = field(default=())
    """In the order in which they are shown."""

    @cached_property
    def by_name(self) -> dict[str, Entry]:
        """The entries by name."""
        return {entry.name: entry for entry in self.entries}

    def named(self, name: str) -> Entry:
        """The entry of a name. Raises HubError, with names that are like it, for an unknown one."""
        if name in self.by_name:
            return self.by_name[name]
        near = difflib.get_close_matches(name, self.by_name, n=3, cutoff=0.5)
        like = f"; is it {' or '.join(near)}?" if near else ""
        raise HubError(f"no model is known as {quoted(name)}{like} `ris-models list` has all names")


def read_table(path: Path | None = None) -> Table:
    """The table of published models.

    path: its file; None for the one that $RIS_MODELS names, else the built-in one. Raises HubError
    where it cannot be read.
    """
    if path is None:
        path = Path(os.environ.get(VARIABLE) or TABLE)
    try:
        data = read_json(path)
    except FileNotFoundError:
        raise HubError(
            f"{path}, the table of models that ${VARIABLE} names, is not there"
        ) from None
    except BundleError as error:
        raise HubError(str(error).removesuffix("; export the bundle again")) from None
    table, problems = build(Table, data, "the table")
    problems = problems or list(_problems(table))
    if problems:
        raise HubError(f"{path} is no table of models: {echoed(problems[0])}")
    found: Table = table
    return found


def is_known(entry: Entry) -> bool:
    """Whether this version can make a bundle of a model: it has the family.

    True where PyTorch's side is not installed, which alone knows the families.
    """
    known = family_names()
    return entry.family is None or not known or entry.family in known


def _problems(table: Table) -> list[str]:
    """What is wrong with a table whose values are of the right kinds."""
    names = [entry.name for entry in table.entries]
    found = [f"{name} stands there twice" for name in sorted(set(names)) if names.count(name) > 1]
    for entry in table.entries:
        if entry.kind == "model" and entry.family is None:
            found.append(f"the model {entry.name} has no family")
        files = [file.name for file in entry.files]
        found += [
            f"{entry.name}: {name} stands there twice"
            for name in dict.fromkeys(files)
            if files.count(name) > 1
        ]
        found += [f"{entry.name}: {text}" for file in entry.files for text in _wrong(entry, file)]
    return found


def _wrong(entry: Entry, file: PublishedFile) -> Sequence[str]:
    places = [place for place in (file.repository, file.url, file.page) if place is not None]
    if len(places) != 1:
        return [f"{file.name} is to have one of repository, url and page"]
    if (file.role is None) != (entry.kind == "data"):
        return [f"{file.name} has no role, or one in a data set"]
    if file.url is not None and file.url.startswith("http:") and file.sha256 is None:
        return [f"{file.name} comes over plain HTTP, and has no sha256"]
    parts = file.name.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in file.name:
        return [f"{file.name!r} is no name of a file"]
    if file.url is not None and len(parts) > 1:
        return [f"{file.name!r} has a folder, which only files of a repository have"]
    if not is_revision(file.revision):
        return [f"{file.revision!r} of {file.name} is no revision"]
    return []


def as_data(entry: Entry) -> dict[str, Any]:
    """An entry for JSON: without what is not known."""
    import dataclasses

    return _filled(dataclasses.asdict(entry))


def _filled(value: Any) -> Any:
    """A value without entries that are None, False or empty."""
    if isinstance(value, dict):
        filled = {key: _filled(one) for key, one in value.items()}
        return {key: one for key, one in filled.items() if not _is_empty(one)}
    return [_filled(one) for one in value] if isinstance(value, list | tuple) else value


def _is_empty(value: Any) -> bool:
    return value is False or value in (None, {}, [], ())  # a figure of 0 is none of these
