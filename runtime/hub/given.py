"""Names of the table in the place of paths: a weight file, or the folder of a data set.

A word that is a name of the table, and no path that is there, stands for what is published under
it.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ris.engines.errors import HubError
from ris.runtime.hub.download import Report, is_cached, silent
from ris.runtime.hub.entries import OPTIONS, by_hand, fetch_entry, unverified
from ris.runtime.hub.models import Entry, PublishedFile, read_table
from ris.runtime.hub.unpacked import inner_folder, unpack

_KINDS = {"model": "a model", "part": "a part of models", "data": "a data set"}


@dataclass(frozen=True)
class GivenNames:
    """The names that were given where a command takes paths."""

    weights: Mapping[str, Entry]
    """Published weight files by the names of `WeightFiles`, each entry with the files of its role
    alone."""

    data: Mapping[str, Entry]
    """Data sets, by the option that takes their folder."""

    @property
    def entries(self) -> tuple[Entry, ...]:
        """What they name, each once."""
        found = {entry.name: entry for entry in (*self.weights.values(), *self.data.values())}
        return tuple(found.values())

    def missing(self) -> tuple[PublishedFile, ...]:
        """The files that would have to be downloaded."""
        entries = (*self.weights.values(), *self.data.values())
        return tuple(
            file
            for entry in entries
            for file in entry.files
            if file.source is not None and not is_cached(file.source)
        )

    def notes(self) -> tuple[str, ...]:
        """Which files cannot be verified, in sentences."""
        return tuple(
            f"{file.name}: no hash is known, so it is not verified"
            for entry in self.entries
            for file in unverified(entry)
        )

    def fetch(self, report: Report = silent) -> dict[str, Path]:
        """The paths by the same names: weight files, folders of unpacked data sets.

        Raises HubError where a file cannot be had; what was downloaded before it is kept.
        """
        paths: dict[str, Path] = {}
        for role, entry in self.weights.items():
            paths[role] = fetch_entry(entry, report, verify=True).options[role]
        for option, entry in self.data.items():
            folder = _unpacked(entry, report)
            paths[option] = inner_folder(folder) if option == "images" else folder
        return paths


def given_names(
    weights: Mapping[str, Path | None],
    data: Mapping[str, Path | None] | None = None,
    family: str | None = None,
) -> GivenNames:
    """The names among paths that were given. Asks no network.

    Args:
        weights: What was given for weight files, by the names of `WeightFiles`.
        data: What was given for folders of data sets, by option: "root", "images".
        family: The family that a named checkpoint has to be of; None for any.

    Raises:
        HubError: Where a name has no such file, its terms have to be accepted, a person has to
            fetch it, or the table cannot be read.
    """
    parts = {
        role: _part(entry, role, family)
        for role, path in weights.items()
        if (entry := entry_given(path)) is not None
    }
    sets = {
        option: _data_set(entry, option)
        for option, path in (data or {}).items()
        if (entry := entry_given(path)) is not None
    }
    return GivenNames(parts, sets)


def entry_given(path: Path | None) -> Entry | None:
    """What a word names that was given for a path; None for a path, and for no name.

    What is there is a path, whatever it is called. Raises HubError where the table cannot be read.
    """
    if path is None or len(path.parts) != 1 or os.path.lexists(path):
        return None
    return read_table().by_name.get(str(path))


def _part(entry: Entry, role: str, family: str | None) -> Entry:
    """The entry with the files that an option takes."""
    option, what = OPTIONS[role], f"{_KINDS[entry.kind]}: {entry.title}"
    roles = (role, "beside") if role == "checkpoint" else (role,)
    if all(file.role != role for file in entry.files):
        raise HubError(f"{entry.name} has no file for {option}; it is {what}")
    if entry.refused:
        raise HubError(f"{entry.name} cannot be taken as {option}: it {entry.refused}")
    if role == "checkpoint" and family not in (None, entry.family):
        raise HubError(
            f"{entry.name} is of the family {entry.family}, and {option} takes one of {family} here"
        )
    found = replace(entry, files=tuple(file for file in entry.files if file.role in roles))
    _require_free(found, f"give its path as {option}")
    return found


def _data_set(entry: Entry, option: str) -> Entry:
    if entry.kind != "data":
        raise HubError(f"{entry.name} is {_KINDS[entry.kind]}, and no data set: {entry.title}")
    _require_free(entry, f"give the folder as {_option(option)}")
    return entry


def _option(option: str) -> str:
    return "ROOT" if option == "ROOT" else f"--{option}"


def _require_free(entry: Entry, way_out: str) -> None:
    """Raises HubError where a person has to accept terms, or to fetch a file."""
    if entry.terms is not None:
        raise HubError(
            f"{entry.name}: {entry.terms.words} Where that is so, `ris-models fetch {entry.name}"
            f" --accept-licence {entry.terms.word}` gets it; then {way_out}"
        )
    for file in entry.by_hand:
        raise by_hand(entry, file, way_out)


def _unpacked(entry: Entry, report: Report) -> Path:
    """The folder of a data set's archive, which is unpacked once."""
    fetched = fetch_entry(entry, report, verify=True)
    archives: Sequence[str] = [name for name in fetched.files if name.endswith(".zip")]
    if len(archives) != 1 or len(fetched.files) != 1:
        raise HubError(
            f"{entry.name} is not one archive (.zip); `ris-models fetch {entry.name} --out FOLDER`"
            " gets its files"
        )
    path = fetched.files[archives[0]]
    return unpack(path, f"{archives[0]} of {entry.name}", report)
