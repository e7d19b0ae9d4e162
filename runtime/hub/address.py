"""Where a bundle is on a Hub: `hf://org/name@revision/folder`."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, unquote

from ris.engines.errors import HubError
from ris.engines.text import echoed, one_line

SCHEME = "hf://"
"""What an address begins with, as huggingface_hub writes it."""

_REPOSITORY = re.compile(r"(?![-.])[\w.-]{1,96}(?<![-.])/(?![-.])[\w.-]{1,96}(?<![-.])", re.ASCII)
# a branch, a tag or a commit; the slashes of a pull request's are known, others are written %2F
_REVISION = re.compile(r"(?:refs/(?:pr|convert)/)?[\w.%+-]+", re.ASCII)
_OTHERS = {"datasets": "a data set", "spaces": "a space"}
_FORM = f"{SCHEME}ORGANISATION/NAME, with @REVISION and /FOLDER behind it where they are needed"


@dataclass(frozen=True)
class Address:
    """A repository on a Hub, or a folder of it."""

    repository: str
    """Organisation or user, and name: "org/name"."""

    revision: str | None = None
    """A branch, a tag or a commit; None for the main branch."""

    folder: str = ""
    """The folder of the bundle in the repository, "a/b"; empty for the repository itself."""

    def __str__(self) -> str:
        """The address as it is typed."""
        revision = self.revision or ""
        if not revision.startswith("refs/"):
            revision = quote(revision, safe="")
        at = f"@{revision}" if revision else ""
        return f"{SCHEME}{self.repository}{at}{'/' if self.folder else ''}{self.folder}"

    def file(self, name: str) -> str:
        """The name in the repository of a file of the bundle."""
        return f"{self.folder}/{name}" if self.folder else name


def is_address(place: str | os.PathLike[str]) -> bool:
    """Whether a bundle's place is on a Hub. A `Path` of an address has one slash less."""
    return os.fspath(place).startswith("hf:/")


def parse(place: str | os.PathLike[str]) -> Address:
    """The address that a text or a path is.

    Raises:
        HubError: Where it is none, or is of a data set or a space.
    """
    text = os.fspath(place)
    rest = text.removeprefix("hf:/").removeprefix("/").rstrip("/")
    if is_address(place) and (other := _OTHERS.get(rest.partition("/")[0])):
        raise HubError(f"{echoed(text)} is {other}; a bundle is in a model repository")
    repository = _REPOSITORY.match(rest)
    if not is_address(place) or repository is None:
        raise _no_address(text)
    rest, revision = rest[repository.end() :], None
    if rest.startswith("@"):
        found = _REVISION.match(rest, 1)
        if found is None:
            raise _no_address(text)
        rest, revision = rest[found.end() :], unquote(found[0])
        if not is_revision(revision):
            raise _no_address(text)
    folder = rest.removeprefix("/")
    parts = folder.split("/") if folder else []
    if (rest and not rest.startswith("/")) or any(part in ("", ".", "..") for part in parts):
        raise _no_address(text)
    return Address(repository[0], revision, folder)


def is_revision(text: str) -> bool:
    """Whether a text may be a branch, a tag or a commit; it becomes a path in the cache."""
    parts = text.split("/")
    return not any(part in ("", ".", "..") for part in parts) and (
        one_line(text) == text and "\\" not in text
    )


def address_of(path: Path) -> Address | None:
    """The address of a bundle that lies in Hugging Face's cache; None for any other folder.

    There it is `models--org--name/snapshots/COMMIT`, or a folder below that.
    """
    for snapshot in (path, *path.parents):
        store = snapshot.parent.parent
        if snapshot.parent.name != "snapshots" or not store.name.startswith("models--"):
            continue
        organisation, _, name = store.name.removeprefix("models--").partition("--")
        if organisation and name:
            folder = path.relative_to(snapshot).as_posix()
            return Address(f"{organisation}/{name}", snapshot.name, "" if folder == "." else folder)
    return None


def _no_address(text: str) -> HubError:
    return HubError(f"{echoed(text)} is no address on a Hub; write {_FORM}")
