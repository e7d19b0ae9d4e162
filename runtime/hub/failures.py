"""What goes wrong between this machine and a Hub, each in one sentence that says what to do.

huggingface_hub's HTTP library changed from version to version, so that its errors are told by the
names of their classes and by the status of the answer, not by their types.
"""

from __future__ import annotations

import errno
import os
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

_KEPT = "what was downloaded is kept, the same command goes on from there"
_TOKEN = "log in with `hf auth login`, or set HF_TOKEN to a token"


def explained(error: BaseException, what: str, repository: str | None) -> HubError:
    """The sentence for an error of huggingface_hub, of its HTTP library or of the disk.

    Args:
        error: What was raised.
        what: What was asked for, such as "config.json of org/name".
        repository: "org/name"; None for what lies on no Hub.
    """
    if isinstance(error, HubError):
        return error
    if type(error).__name__ in _AROUND and error.__cause__ is not None:
        return explained(error.__cause__, what, repository)
    names = {kind.__name__ for kind in type(error).__mro__}
    if "OfflineModeIsEnabled" in names or "LocalEntryNotFoundError" in names:
        return _offline(what)
    if (status := _status(error)) is not None:
        return HubError(_of_status(status, names, error, what, repository))
    if "LocalTokenNotFoundError" in names:
        return HubError(f"{what}: there is no login here; {_TOKEN} that may write to {repository}")
    if "FileMetadataError" in names:
        return HubError(
            f"{what}: {endpoint()} does not answer as a Hub does; check HF_ENDPOINT, and whether a"
            " proxy answers in its place"
        )
    if names & _UNREACHABLE:
        return HubError(
            f"{what}: {endpoint() if repository else 'its server'} cannot be reached"
            f" ({reason_of(error)}); check the connection, and HTTPS_PROXY and HF_ENDPOINT where"
            " they are needed"
        )
    if names & _BROKEN or (type(error) is OSError and error.errno is None):
        return HubError(f"the transfer of {what} broke off ({_first(error)}); {_KEPT}")
    if isinstance(error, OSError):
        return _of_disk(error, what)
    return HubError(f"{what}: {reason_of(error)}")


def full_disk(folder: object, what: str, missing: int) -> HubError:
    """There is not enough space for a file; missing: how many bytes more it takes."""
    return HubError(
        f"{what} needs {max(missing // 1_000_000, 1)} MB more than the disk of"
        f" {echoed(str(folder))} has; free some space, or set HF_HOME to a folder elsewhere."
        f" {_KEPT.capitalize()}"
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

    Not where the Hub says that there is no such file, revision or repository.
    """
    status = _status(error)
    names = {kind.__name__ for kind in type(error).__mro__}
    unreachable = names & (_UNREACHABLE | _BROKEN | {"OfflineModeIsEnabled", "FileMetadataError"})
    return bool(unreachable) or (status is not None and status != 404)


def endpoint() -> str:
    """The Hub's address."""
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


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


def _offline(what: str) -> HubError:
    from huggingface_hub import constants

    return HubError(
        f"{what} is not in the cache {constants.HF_HUB_CACHE}, and HF_HUB_OFFLINE forbids to"
        " download it; unset that, or fetch it where there is a network and copy the cache"
    )


def _of_disk(error: OSError, what: str) -> HubError:
    place = f"{echoed(os.fsdecode(error.filename))}: " if error.filename else ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return HubError(
            f"{place}the disk is full, and {what} does not fit; free some space, or set HF_HOME to"
            f" a folder elsewhere. {_KEPT.capitalize()}"
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return HubError(
            f"{place}no permission to write there, and {what} has to be kept; set HF_HOME to a"
            " folder of your own"
        )
    return HubError(f"{place}{what} cannot be kept ({reason_of(error)})")


def _first(error: BaseException) -> str:
    """The first line of what an error says; huggingface_hub's have several."""
    lines = str(error).strip().splitlines()
    return echoed(lines[0]) if lines else type(error).__name__
