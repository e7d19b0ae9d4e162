"""Which compiled graphs may be loaded: those that this user's key vouches for.

A compiled graph is code. What lies beside it travels with it, so that nothing there can vouch for
it. The key does not travel: 32 random bytes in a file that nobody else can read. A tag, the
HMAC-SHA256 of a sidecar under that key, stands in the sidecar, which has the hash of the compiled
file. Besides, the file must belong to this user or to root, and no other user may write it, since
engines go on reading it after it was checked.

The key is made once, in the first of `state_folders` that will have it. $RIS_PLAN_KEY names another
file of 32 bytes, for graphs that are compiled on one machine and loaded on others.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import hmac
import json
import os
import secrets
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ris.engines.errors import EngineError
from ris.engines.temporary import temporary_sibling
from ris.engines.user_folders import make, state_folders

VARIABLE = "RIS_PLAN_KEY"
"""The environment variable that names the file of another key."""

_BYTES = 32


@dataclass(frozen=True)
class Key:
    """What compiled graphs are vouched for with."""

    secret: bytes
    """The 32 bytes."""

    file: Path | None
    """Where they are kept; None where no folder would have them and this process made them up."""

    @property
    def name(self) -> str:
        """Sixteen hexadecimal digits that tell keys apart and do not give them away."""
        return hashlib.sha256(b"ris-runtime key " + self.secret).hexdigest()[:16]


def user_key() -> Key:
    """The key of $RIS_PLAN_KEY, or else this user's own, which is made where there is none.

    Raises:
        EngineError: Where $RIS_PLAN_KEY names a file that is no key or that others may change.
    """
    if given := os.environ.get(VARIABLE):
        return Key(_read_given(Path(given)), Path(given))
    for folder in state_folders():
        with contextlib.suppress(OSError):
            return Key(_read_or_make(folder / "key"), folder / "key")
    return Key(_of_this_process(), None)


def seal(sidecar: Mapping[str, Any]) -> dict[str, Any]:
    """A sidecar with the name of this user's key and the tag that vouches for the rest."""
    key = user_key()
    named = {**json.loads(json.dumps(sidecar)), "key": key.name}  # as it will be read
    return {**named, "tag": _tag(named, key)}


def is_foreign(sidecar: Mapping[str, Any]) -> bool:
    """Whether a sidecar is vouched for by another key than this user's."""
    return isinstance(sidecar.get("key"), str) and sidecar["key"] != user_key().name


def distrust(sidecar: Mapping[str, Any]) -> str | None:
    """Why a sidecar is not trusted; None where this user's key vouches for it."""
    tag = sidecar.get("tag")
    if not isinstance(tag, str):
        return "no key vouches for it"
    if is_foreign(sidecar):
        return f"another key than this user's vouches for it; {VARIABLE} can name that one"
    rest = {name: value for name, value in sidecar.items() if name != "tag"}
    if not hmac.compare_digest(tag.encode(), _tag(rest, user_key()).encode()):
        return "it was changed after it was compiled"
    return None


def unsafe_owner(about: os.stat_result) -> str | None:
    """Why other users could change a file; None where they cannot."""
    if about.st_uid not in (os.geteuid(), 0):
        return f"it belongs to user {about.st_uid}, neither this one ({os.geteuid()}) nor root"
    if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "other users may write it"
    return None


def _tag(sidecar: Mapping[str, Any], key: Key) -> str:
    """64 hexadecimal digits."""
    text = json.dumps(sidecar, sort_keys=True, separators=(",", ":"))
    return hmac.new(key.secret, text.encode(), "sha256").hexdigest()


def _read_given(file: Path) -> bytes:
    """The key in the file that the user names. Raises EngineError."""
    try:
        secret, about = file.read_bytes(), file.stat()
    except OSError as error:
        raise EngineError(f"{VARIABLE}: {file} cannot be read ({error.strerror})") from None
    if len(secret) != _BYTES:
        raise EngineError(
            f"{VARIABLE}: {file} has {len(secret)} bytes, and a key has {_BYTES}; make one with:"
            f" head -c {_BYTES} /dev/urandom > {file}"
        )
    if reason := unsafe_owner(about):
        raise EngineError(f"{VARIABLE}: {file} is no secret of this user: {reason}")
    return secret


def _read_or_make(file: Path) -> bytes:
    """The key in a file of this user's. Raises OSError where there can be none."""
    with contextlib.suppress(FileNotFoundError):
        return _read(file)

    make(file.parent)
    partial = temporary_sibling(file)
    try:
        handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as target:
            target.write(secrets.token_bytes(_BYTES))
            target.flush()
            os.fsync(target.fileno())
        try:
            os.link(partial, file)  # fails where another process was faster, unlike a rename
        except FileExistsError:
            pass
        except OSError:  # there are file systems without links
            partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
    return _read(file)


def _read(file: Path) -> bytes:
    """The key in a file. Raises OSError for a file that is no key, or that others may read."""
    with file.open("rb") as source:
        about, secret = os.fstat(source.fileno()), source.read(_BYTES + 1)
    if about.st_uid != os.geteuid() or about.st_mode & 0o077 or len(secret) != _BYTES:
        raise PermissionError(f"{file} is not a key of this user alone")
    return secret


@functools.cache
def _of_this_process() -> bytes:
    return secrets.token_bytes(_BYTES)
