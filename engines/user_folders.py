"""The user's own folders: for what can be made again, and for what is to be kept.

HOME may be unset, unreadable or unwritable, and the user without an entry in the system's list, as
in containers. So there are several places, in the order in which they are tried. The last is a
folder of the user's own below the system's temporary one, so that every user has a place.
"""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

_NAME = "ris-runtime"


def home_folder() -> Path | None:
    """The user's home; None where the system knows of none."""
    try:
        return Path.home()
    except (RuntimeError, KeyError):
        return None


def cache_folders() -> list[Path]:
    """Where to keep what can be made again: below $XDG_CACHE_HOME or ~/.cache, then temporary.

    A folder need not be there, and it may refuse; `make` makes it.
    """
    return [folder / _NAME for folder in _base("XDG_CACHE_HOME", ".cache")] + _temporary()


def state_folders() -> list[Path]:
    """Where to keep what is not to be lost: below $XDG_STATE_HOME or ~/.local/state.

    Then $XDG_RUNTIME_DIR, then temporary. As in `cache_folders`, none need be there.
    """
    folders = _base("XDG_STATE_HOME", ".local/state")
    if runtime := os.environ.get("XDG_RUNTIME_DIR"):
        folders.append(Path(runtime))
    return [folder / _NAME for folder in folders] + _temporary()


def make(folder: Path) -> None:
    """Makes a folder, and those above it, for this user alone; those that are there stay.

    Raises OSError where it cannot be made.
    """
    for missing in reversed([folder, *folder.parents]):
        if not missing.is_dir():
            missing.mkdir(0o700, exist_ok=True)


def _base(variable: str, below_home: str) -> list[Path]:
    """The folder that an environment variable names, or the usual one below the user's home."""
    if given := os.environ.get(variable):
        return [Path(given)]
    home = home_folder()
    return [home / below_home] if home else []


def _temporary() -> list[Path]:
    """The user's folder below the system's temporary one, unless somebody else has put it there."""
    try:
        folder = Path(tempfile.gettempdir()) / f"{_NAME}-{os.getuid()}"
    except FileNotFoundError:  # no temporary folder can be written
        return []
    return [folder] if not folder.exists() or is_private(folder) else []


def is_private(folder: Path) -> bool:
    """Whether a folder is this user's and closed to all others."""
    about = folder.lstat()
    own = stat.S_ISDIR(about.st_mode) and about.st_uid == os.getuid()
    return own and not about.st_mode & 0o077
