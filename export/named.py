"""Models by name: what `ris-export --model` fetches, and what it holds the files to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from ris.engines.errors import CheckpointError, HubError
from ris.export.sources import ModelSource
from ris.reference.families import FAMILIES
from ris.runtime.bundle import sha256_of
from ris.runtime.hub.download import Report, is_cached, silent
from ris.runtime.hub.entries import (
    by_hand,
    fetch_entry,
    option_of,
    require_accepted,
    unverified,
)
from ris.runtime.hub.models import Entry, PublishedFile, read_table
from ris.runtime.manifest_source import Published, Source


@dataclass(frozen=True)
class Named:
    """A published model whose files are here."""

    entry: Entry
    """What is published."""

    files: Mapping[str, Path]
    """Its weight files, by the names of `WeightFiles`."""

    published: Published
    """What the manifest says of it."""

    notes: tuple[str, ...] = ()
    """Which given files were not verified, in sentences."""

    def checked(self, source: ModelSource) -> ModelSource:
        """The source, which the manifest will know by name.

        Raises CheckpointError where its files are of another model than the name says.
        """
        wanted = self.entry.family, self.entry.preset or source.config.preset
        if (source.family, source.config.preset) != wanted:
            raise CheckpointError(
                f"{source.origin} is {source.config.preset} of the family {source.family}, and"
                f" {self.entry.name} is {wanted[1]} of {wanted[0]}; leave --model out for a file of"
                " your own"
            )

        def describe() -> Source:
            return replace(source.describe(), published=self.published)

        found = source.inspection
        if found is not None:
            found = replace(found, notes=(*found.notes, *self.notes))
        return replace(source, describe=describe, inspection=found)


def look_up(name: str, accepted: str | None = None) -> Entry:
    """The published model of a name, one that can be exported.

    accepted: the word of the terms that the user accepts. Raises HubError where there is no such
    model, this version cannot export it, or its terms were not accepted.
    """
    entry = read_table().named(name)
    if entry.kind != "model":
        what = "a data set" if entry.kind == "data" else "a part of models"
        raise HubError(f"{name} is {what} and no model; `ris-models fetch {name}` gets it")
    if entry.refused:
        raise HubError(f"{name} cannot be exported: it {entry.refused}")
    if entry.family not in FAMILIES:
        raise HubError(
            f"{name} is of the family {entry.family}, which this version of ris-runtime does not"
            f" have; it has {', '.join(FAMILIES)}. Upgrade ris-runtime"
        )
    require_accepted(entry, accepted)
    return entry


def missing(entry: Entry, given: Mapping[str, Path]) -> tuple[PublishedFile, ...]:
    """The files of a model that would have to be downloaded.

    given: the files that the user has, by the names of `WeightFiles`. Raises HubError where a file
    is behind a page and was not given.
    """
    wanted = _wanted(entry, given)
    _require_given(entry, wanted)
    sources = [(file, file.source) for file in wanted]
    return tuple(file for file, source in sources if source is not None and not is_cached(source))


def get(entry: Entry, given: Mapping[str, Path], report: Report = silent) -> Named:
    """Fetches a model's files; what is in the cache stays there, a part of a file is gone on with.

    Args:
        entry: The model.
        given: The files that the user has, by the names of `WeightFiles`. They take the place of
            the published ones, and are held to their hashes where these are known.
        report: Called while a file is downloaded.

    Raises:
        HubError: Where a file cannot be had, or is behind a page and was not given.
        CheckpointError: Where a given file is not the published one.
    """
    wanted = _wanted(entry, given)
    _require_given(entry, wanted)
    notes = _require_published(entry, given)
    fetched = fetch_entry(replace(entry, files=wanted), report, verify=True)
    commit = fetched.commits.get(entry.repository or "")
    verified = not notes and not unverified(fetched.entry)
    published = Published(entry.name, entry.repository if commit else None, commit, verified)
    return Named(entry, {**fetched.options, **given}, published, notes)


def _wanted(entry: Entry, given: Mapping[str, Path]) -> tuple[PublishedFile, ...]:
    """The files that are not given. What stands beside the checkpoint comes with it."""
    roles = {*given, *(["beside"] if "checkpoint" in given else [])}
    return tuple(file for file in entry.files if file.role not in roles)


def _require_given(entry: Entry, wanted: tuple[PublishedFile, ...]) -> None:
    for file in wanted:
        if file.source is None:
            way = f"ris-export --model {entry.name} {option_of(file)} {file.name}"
            raise by_hand(entry, file, way)


def _require_published(entry: Entry, given: Mapping[str, Path]) -> tuple[str, ...]:
    """Which given files cannot be held to a hash, in sentences.

    Raises CheckpointError where one has another hash than the published one.
    """
    notes = []
    for role, path in given.items():
        files = _files_in(path) if path.is_dir() else [path]
        published = [file for file in entry.files if file.role == role]
        expected = {file: _published_as(file, published, path.is_dir()) for file in files}
        for file, names in expected.items():
            if names and all(one.sha256 for one in names):
                _require_one_of(file, names, entry)
        if not any(names and all(one.sha256 for one in names) for names in expected.values()):
            notes.append(f"{path} is not verified: no hash of it is published as {entry.name}")
    return tuple(notes)


def _files_in(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_file())


def _published_as(
    path: Path, published: list[PublishedFile], in_folder: bool
) -> list[PublishedFile]:
    """What a given file may be of a role's files: the one of its name, else any of them.

    A folder may have more in it, so that a name is needed there.
    """
    own = [file for file in published if file.name.rpartition("/")[2] == path.name]
    return own or ([] if in_folder else published)


def _require_one_of(path: Path, published: list[PublishedFile], entry: Entry) -> None:
    """Raises CheckpointError where a file has the hash of none of these."""
    if sha256_of(path) not in {file.sha256 for file in published}:
        name = published[0].name if len(published) == 1 else f"{published[0].role} file"
        raise CheckpointError(
            f"{path} is not the {name} that is published as {entry.name} (sha256 differs);"
            " leave --model out for a file of your own"
        )
