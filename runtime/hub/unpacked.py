"""Archives of data sets, unpacked once into this package's own cache."""

from __future__ import annotations

import hashlib
import os
import shutil
import zipfile
from pathlib import Path, PurePosixPath

from ris.engines.errors import HubError
from ris.engines.temporary import clear_dead, temporary_folder
from ris.engines.text import quoted, reason_of
from ris.engines.user_folders import cache_folders, make
from ris.runtime.hub.download import Report, silent
from ris.runtime.hub.failures import full_disk


def unpack(archive: Path, words: str, report: Report = silent) -> Path:
    """The folder with the files of a zip archive, which appears whole or not at all.

    Args:
        archive: The archive, which was verified where its hash is known.
        words: What it is, for messages.
        report: Called while it is unpacked.

    Raises:
        HubError: Where it is no archive, names a file outside of it, or cannot be unpacked.
    """
    about = archive.stat()
    # by what the file is, so that another one under its name is unpacked anew
    told = f"{archive.resolve()} {about.st_size} {about.st_mtime_ns}"
    key = hashlib.sha256(told.encode()).hexdigest()[:16]
    places = [folder / "unpacked" / key for folder in cache_folders()]
    for place in places:
        if place.is_dir():
            return place
    try:
        target = _writable(places)
        clear_dead(target)
        with temporary_folder(target) as partial:
            _extract(archive, partial, words, report)
            try:
                partial.rename(target)
            except OSError:
                if not target.is_dir():  # or another process was faster
                    raise
    except OSError as error:
        raise HubError(
            f"{words} cannot be unpacked ({reason_of(error)}); free some space, or set"
            " XDG_CACHE_HOME to a folder elsewhere"
        ) from None
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError) as error:
        raise HubError(f"{words} is no archive that can be unpacked: {reason_of(error)}") from None
    return target


def inner_folder(folder: Path) -> Path:
    """The folder that has the files: the only one in an archive that wraps them in one."""
    inside = list(folder.iterdir())
    while len(inside) == 1 and inside[0].is_dir():
        folder = inside[0]
        inside = list(folder.iterdir())
    return folder


def _writable(places: list[Path]) -> Path:
    """The first of the places that can be made. Raises OSError where none can."""
    refused: OSError | None = None
    for place in places:
        try:
            make(place.parent)
        except OSError as error:
            refused = refused or error
        else:
            if os.access(place.parent, os.W_OK):
                return place
    raise refused or PermissionError(13, "no folder of the cache can be written")


def _extract(archive: Path, folder: Path, words: str, report: Report) -> None:
    with zipfile.ZipFile(archive) as opened:
        members = opened.infolist()
        for member in members:
            path = PurePosixPath(member.filename)
            if path.is_absolute() or ".." in path.parts:
                raise HubError(f"{words} names a file outside of it: {quoted(member.filename)}")
        total, done = sum(member.file_size for member in members), 0
        free = shutil.disk_usage(folder).free
        if total > free:
            raise full_disk(folder, words, total - free, "XDG_CACHE_HOME")
        for member in members:
            opened.extract(member, folder)
            done += member.file_size
            report(f"{words}, unpacked", done, total)
