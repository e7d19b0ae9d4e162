"""The files of a published model, fetched together."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO

from ris.engines.errors import HubError
from ris.engines.temporary import write_atomically
from ris.engines.text import reason_of
from ris.runtime.hub.download import (
    Fetched,
    HubFile,
    Report,
    WebFile,
    fetch,
    fetch_from_web,
    silent,
)
from ris.runtime.hub.failures import MissingFileError
from ris.runtime.hub.models import Entry, PublishedFile

OPTIONS = {
    "checkpoint": "--checkpoint",
    "sam": "--sam-checkpoint",
    "clip": "--clip-checkpoint",
    "bert": "--bert",
}
"""The options that take weight files, by role."""

_PARTS = ("sam", "clip", "bert")
"""Roles of files that a checkpoint is put together with."""

_FOLDERS = ("bert",)
"""Roles whose option takes the folder of the files."""


@dataclass(frozen=True)
class FetchedEntry:
    """What is here of an entry."""

    entry: Entry
    """The entry."""

    files: Mapping[str, Path]
    """Its files by their names in the table, without those that a person has to fetch."""

    commits: Mapping[str, str]
    """The commit that each repository's files are of."""

    @property
    def options(self) -> dict[str, Path]:
        """What a command takes as weight files, by the fields of `WeightFiles`.

        A role with several files stands for their folder.
        """
        found: dict[str, Path] = {}
        for file in self.entry.files:
            if file.role in (None, "beside") or file.name not in self.files:
                continue
            path, role = self.files[file.name], str(file.role)
            several = sum(one.role == role for one in self.entry.files) > 1
            found.setdefault(role, path.parent if several or role in _FOLDERS else path)
        return found


def option_of(file: PublishedFile) -> str:
    """The option that takes a file; for what stands beside the checkpoint, the checkpoint's."""
    return OPTIONS.get(str(file.role), "--checkpoint")


def require_accepted(entry: Entry, accepted: str | None) -> None:
    """Raises HubError where the entry's terms were not accepted, or others were."""
    terms = entry.terms
    if accepted is not None and (terms is None or terms.word != accepted):
        wanted = "asks for no terms" if terms is None else f"asks for {terms.word!r}"
        raise HubError(
            f"--accept-licence {accepted} is not what {entry.name} asks for; it {wanted}"
        )
    if terms is not None and accepted is None:
        raise HubError(
            f"{entry.name}: {terms.words} Where that is so, say --accept-licence {terms.word}"
        )


def unverified(entry: Entry) -> tuple[PublishedFile, ...]:
    """The files for which neither the table nor their server has a hash."""
    return tuple(
        file for file in entry.files if isinstance(file.source, WebFile) and file.sha256 is None
    )


def by_hand(entry: Entry, file: PublishedFile, way_out: str) -> HubError:
    """What to do about a file that no program can fetch.

    way_out: how to go on when it is there.
    """
    return HubError(
        f"{file.name} of {entry.name} has to be fetched by hand, from {file.page}; then {way_out}"
    )


def fetch_entry(entry: Entry, report: Report = silent, *, verify: bool = False) -> FetchedEntry:
    """Fetches what can be fetched of an entry; an optional file may not be there.

    Files of one repository are of one commit, so that they lie in one folder of the cache.

    Args:
        entry: The entry.
        report: Called while a file is downloaded.
        verify: Hash files that were downloaded before, too.

    Raises:
        HubError: Where a file cannot be had; what was downloaded before it is kept.
    """
    files: dict[str, Path] = {}
    commits: dict[str, str] = {}
    pinned: dict[tuple[str, str], str] = {}
    for file in entry.files:
        source = file.source
        if source is None:
            continue
        if isinstance(source, HubFile):
            key = source.repository, source.revision
            source = replace(source, revision=pinned.get(key, source.revision))
            try:
                found: Fetched = fetch(source, report, verify=verify)
            except MissingFileError:
                if not file.optional:
                    raise
                continue
            pinned[key] = commits[source.repository] = found.commit or source.revision
        else:
            found = fetch_from_web(source, report, verify=verify)
        files[file.name] = found.path
    return FetchedEntry(entry, files, commits)


def place(fetched: FetchedEntry, out: Path) -> FetchedEntry:
    """Copies of the files in a folder of the user's; the cache's own are shared by programs.

    The file of a part, such as CLIP's, that comes with a checkpoint lies in a folder of its role.

    Raises HubError where it cannot be written.
    """
    roles = {file.name: file.role for file in fetched.entry.files}
    # a folder with the checkpoint's files is read as a whole
    apart = _PARTS if "checkpoint" in roles.values() else ()
    placed = {
        name: out / str(roles[name]) / name if roles[name] in apart else out / name
        for name in fetched.files
    }
    try:
        for name, target in placed.items():
            target.parent.mkdir(parents=True, exist_ok=True)
            _copy(fetched.files[name], target)
    except OSError as error:
        raise HubError(
            f"{out} cannot be written ({reason_of(error)}); name another --out"
        ) from None
    return replace(fetched, files=placed)


def _copy(source: Path, target: Path) -> None:
    def save(file: IO[bytes]) -> None:
        with source.open("rb") as content:
            shutil.copyfileobj(content, file, 1 << 20)

    write_atomically(target, save)
