"""What goes wrong between this machine and a Hub, each in one sentence that says what to do.

huggingface_hub's HTTP library changed from version to version, so that its errors are told by the
names of their classes and by the status of the answer, not by their types.
"""

from __future__ import annotations

import errno
import os
import re
from typing import Any

from ris.engines.errors import HubError
from ris.engines.text import echoed, reason_of

_UNREACHABLE = {"ConnectError", "ConnectTimeout", "PoolTimeout", "ConnectionError", "ProxyError"}
_BROKEN = {
    "ReadError",
    "ReadTimeout",
    "WriteError",
    "WriteTimeout",
    "RemoteProtocolError",
    "ChunkedEncodingError",
    "TimeoutException",
}
_AROUND = {"LocalEntryNotFoundError", "RuntimeError"}
"""What huggingface_hub wraps around an error that says more."""

_LOGIN = re.compile(r"//[^/@\s]*@")

_KEPT = "what was downloaded is kept, the same command goes on from there"
_TOKEN = "log in with `hf auth login`, or set HF_TOKEN to a token"


class MissingFileError(HubError):
    """A repository has no such file."""


def explained(error: BaseException, what: str, repository: str | None) -> HubError:
    """The sentence for an error of huggingface_hub, of its HTTP library or of the disk.

    It has no login that an address has in it.

    Args:
        error: What was raised.
        what: What was asked for, such as "config.json of org/name".
        repository: "org/name"; None for what lies on no Hub.
    """
    if isinstance(error, HubError):
        return error
    if type(error).__name__ in _AROUND and error.__cause__ is not None:
        return explained(error.__cause__, what, repository)
    kind = MissingFileError if _is_missing_file(error) else HubError
    return kind(without_login(_sentence(error, what, repository)))


def _sentence(error: BaseException, what: str, repository: str | None) -> str:
    names = _names(error)
    if "OfflineModeIsEnabled" in names or "LocalEntryNotFoundError" in names:
        return _offline(what)
    if (status := _status(error)) is not None:
        return _of_status(status, names, error, what, repository)
    if "LocalTokenNotFoundError" in names:
        return f"{what}: there is no login here; {_TOKEN} that may write to {repository}"
    if "FileMetadataError" in names:
        return (
            f"{what}: {endpoint()} does not answer as a Hub does; check HF_ENDPOINT, and whether a"
            " proxy answers in its place"
        )
    if names & _UNREACHABLE:
        needed = "HTTPS_PROXY and HF_ENDPOINT where they are" if repository else "HTTPS_PROXY if"
        return (
            f"{what}: {endpoint() if repository else 'its server'} cannot be reached"
            f" ({reason_of(error)}); check the connection, and {needed} needed"
        )
    if names & _BROKEN or (type(error) is OSError and error.errno is None):
        return f"the transfer of {what} broke off ({_first(error)}); {_KEPT}"
    if isinstance(error, OSError):
        return _of_disk(error, what, "HF_HOME" if repository else "XDG_CACHE_HOME")
    return f"{what}: {reason_of(error)}"


def full_disk(folder: object, what: str, missing: int, place: str) -> HubError:
    """There is not enough space for a file.

    Args:
        folder: Where it was to be.
        what: The file, in words.
        missing: How many bytes more it takes.
        place: The environment variable that names another folder.
    """
    return HubError(
        f"{what} needs {max(missing // 1_000_000, 1)} MB more than the disk of"
        f" {echoed(str(folder))} has; free some space, or set {place} to a folder elsewhere."
        f" {_KEPT.capitalize()}"
    )


def damaged(what: str, path: object) -> HubError:
    """A file of the cache has another hash than its own, and cannot be fetched again."""
    return HubError(
        f"{what} is damaged in the cache, at {echoed(str(path))}, and the Hub cannot be asked for"
        " it; run the same command again where there is a network"
    )


def wrong_content(what: str, found: str, expected: str, whose: str) -> HubError:
    """A file came that is not the expected one, and was removed.

    Args:
        what: The file, in words.
        found: Its hash.
        expected: The hash that it should have.
        whose: Who says so.
    """
    return HubError(
        f"{what} is not the file that {whose} names: its hash is {found}, {expected} was expected."
        " It was removed and is not used; fetch it again, and where this stays so, something on the"
        " way alters it, or it was replaced"
    )


def other_content(what: str, found: str, expected: str, whose: str) -> HubError:
    """The Hub says beforehand that it has another file than the expected one.

    Args:
        what: The file, in words.
        found: The hash of what the Hub has.
        expected: The hash that it should have.
        whose: Who says so.
    """
    return HubError(
        f"{what} was replaced: the Hub has a file of hash {found}, {whose} names {expected}."
        " Nothing was downloaded; ask for the revision that it belongs to"
    )


def may_use_cache(error: BaseException) -> bool:
    """Whether a file that was downloaded before may stand for one that cannot be asked for now.

    Not where the Hub answers: that there is no such file, or that this login may not read it.
    """
    status = _status(error)
    unreachable = _UNREACHABLE | _BROKEN | {"OfflineModeIsEnabled", "FileMetadataError"}
    if status is None:
        return bool(_names(error) & unreachable)
    return status == 429 or status >= 500


def is_offline(error: BaseException) -> bool:
    """Whether the user forbade to ask the network."""
    return "OfflineModeIsEnabled" in _names(error)


def endpoint() -> str:
    """The Hub's address, without a login."""
    from huggingface_hub import constants

    return without_login(str(constants.ENDPOINT))


def without_login(text: str) -> str:
    """A text without the user and the password of the addresses in it."""
    return _LOGIN.sub("//", text)


def _names(error: BaseException) -> set[str]:
    """The names of an error's classes."""
    return {kind.__name__ for kind in type(error).__mro__}


def _is_missing_file(error: BaseException) -> bool:
    return _status(error) is not None and "EntryNotFoundError" in _names(error)


def _status(error: BaseException) -> int | None:
    """The status of the answer that an error is about; None where there was no answer."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _of_status(status: int, names: set[str], error: Any, what: str, repository: str | None) -> str:
    """The sentence for an answer that is no success."""
    if repository is None:
        return f"{what}: its server answers {status}; {_for_server(status)}"
    page = f"{endpoint()}/{repository}"
    if "GatedRepoError" in names:
        return (
            f"{what}: its authors ask for their terms to be accepted first; do so at {page} with"
            f" your account, then {_TOKEN} of it, and run again"
        )
    if "RevisionNotFoundError" in names:
        return f"{what}: {page} has no such revision; its branches and tags are listed there"
    if "EntryNotFoundError" in names:
        return f"{what}: {page} has no such file; its files are listed there"
    if status == 404:
        return f"{what}: there is no {repository} at {endpoint()}; check the name"
    if status == 401:
        return (
            f"{what}: {endpoint()} wants a login (401), because {repository} is private, or is not"
            f" there, or the token has expired; check the name, or {_TOKEN} that may read it"
        )
    if status == 403:
        return (
            f"{what}: this login may not do that (403{_said(error)}); {_TOKEN} that has the rights"
        )
    return f"{what}: {endpoint()} answers {status}{_said(error)}; {_for_server(status)}"


def _for_server(status: int) -> str:
    """What to do about an answer that is the server's affair."""
    if status == 429:
        return f"it was asked too often, so wait some minutes and run again; {_KEPT}"
    if status >= 500:
        return f"that is a fault over there, so run again later; {_KEPT}"
    return "check the name and the address"


def _said(error: Any) -> str:
    """What the Hub says in its answer, where it says something."""
    text = getattr(error, "server_message", None)
    return f": {echoed(' '.join(text.split()))}" if text else ""


def _offline(what: str) -> str:
    from huggingface_hub import constants

    return (
        f"{what} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to"
        " download it; unset that, or fetch it where there is a network and copy the cache"
    )


def _of_disk(error: OSError, what: str, variable: str) -> str:
    """variable: the environment variable that names another folder."""
    place = f"{echoed(os.fsdecode(error.filename))}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"{place}the disk is full, and {what} does not fit; free some space, or set {variable}"
            f" to a folder elsewhere. {_KEPT.capitalize()}"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"{place}no permission to write there, and {what} has to be kept; set {variable} to a"
            " folder of your own"
        )
    return f"{place}{what} cannot be kept ({reason_of(error)})"


def _first(error: BaseException) -> str:
    """The first line of what an error says; huggingface_hub's have several."""
    lines = str(error).strip().splitlines()
    return echoed(lines[0]) if lines else type(error).__name__
