"""A transfer over the network: to a partial file that the next attempt appends to, and verified."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import os
import re
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ris.runtime.hub import failures

Report = Callable[[str, int, int | None], None]
"""Called as a file comes: its name, the bytes that are there, and those of the whole if known."""

VERIFYING = ", verifying"
"""What stands behind the name of a file that is hashed, and not downloaded."""

COMMIT = re.compile("[0-9a-f]{40}")
"""A commit, and the hash that git has of a file."""

SHA256 = re.compile("[0-9a-f]{64}")
"""A sha256."""

_File = io.BufferedRandom | io.BufferedReader
_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)


@dataclass(frozen=True)
class Target:
    """What a transfer is from and to."""

    path: Path
    """Where the file is to be."""

    name: str
    """What `Report` calls it."""

    words: str
    """The file in a sentence."""

    url: str
    """Where it comes from."""

    headers: dict[str, str] | None
    """What the request says beside its address."""

    bytes: int | None
    """The size of the whole; None where it is not known, and a part is of no use then."""

    expected: str | None
    """The hash: a sha256 of 64 digits, or git's of 40; None where it is not known."""

    named_by: str
    """Who says that hash, for the message about another one."""

    place: str
    """The environment variable that names another folder for such files."""

    damaged: os.stat_result | None = None
    """The file that is at `path`, and is to be replaced; None where there is none."""


def download(target: Target, report: Report) -> None:
    """Transfers a file to its place, by way of a partial one beside it.

    Raises HubError for what has another hash or too little room, else what the libraries raise.
    """
    path = target.path
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.ris-partial")
    with _alone(partial) as handle:
        if path.exists() and not _is_damaged(target):  # another process was faster
            partial.unlink(missing_ok=True)
            return
        try:
            _append_rest(target, handle, report)
        except BaseException:
            if not os.fstat(handle.fileno()).st_size:
                partial.unlink(missing_ok=True)
            raise
        if target.expected and (found := _digest(handle, target.expected)) != target.expected:
            partial.unlink(missing_ok=True)
            raise failures.wrong_content(target.words, found, target.expected, target.named_by)
        partial.replace(path)


def digest(path: Path, like: str, name: str, report: Report) -> str | None:
    """The hash of a file: its sha256, or git's where `like` is as short as that.

    Args:
        path: The file.
        like: A hash of the same length.
        name: What `Report` calls the file.
        report: Told that it is hashed.

    Returns:
        The hash; None where there is no such file.
    """
    if not path.is_file():
        return None
    report(f"{name}{VERIFYING}", 0, None)
    with path.open("rb") as file:
        return _digest(file, like)


def is_hash(text: str | None) -> bool:
    """Whether a text is a sha256, or a hash of git's."""
    return text is not None and bool(SHA256.fullmatch(text) or COMMIT.fullmatch(text))


def _is_damaged(target: Target) -> bool:
    """Whether the file that is there is still the one to be replaced."""
    return target.damaged is not None and os.path.samestat(target.path.stat(), target.damaged)


def _append_rest(target: Target, handle: _File, report: Report) -> None:
    """Downloads what the partial file lacks."""
    from huggingface_hub import file_download

    have = handle.seek(0, os.SEEK_END)
    # without a hash nothing would show that the two halves are of different files
    if target.bytes is None or have > target.bytes or target.expected is None:
        handle.truncate(0)
        have = handle.seek(0)
    if target.bytes is not None:
        _require_space(target, target.bytes - have)
    report(target.name, have, target.bytes)
    counted = _Counted(handle, target.name, have, target.bytes, report)
    with _quiet():
        file_download.http_get(
            target.url,
            counted,
            resume_size=have,
            headers=target.headers,
            expected_size=target.bytes,
            tqdm_class=_NoBar,
        )
    handle.flush()


class _NoBar:
    """A bar as huggingface_hub wants one; what there is to show is `Report`'s."""

    def __init__(self, *args: Any, **options: Any) -> None:
        pass

    def __enter__(self) -> _NoBar:
        return self

    def __exit__(self, *exception: object) -> None:
        pass

    def update(self, count: float = 1) -> None:
        """More bytes came."""


class _Counted:
    """A file that says how much is in it whenever something is written."""

    def __init__(
        self, file: _File, name: str, done: int, total: int | None, report: Report
    ) -> None:
        self._file, self._name, self._done, self._total = file, name, done, total
        self._report = report

    def write(self, data: bytes) -> int:
        self._file.write(data)
        self._done += len(data)
        self._file.flush()  # or what is in the buffer is lost with the process
        self._report(self._name, self._done, self._total)
        return len(data)

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, place: int) -> int:
        return self._file.seek(place)

    def truncate(self) -> int:
        self._done = self._file.truncate()  # the server sends the whole from here on
        return self._done


@contextlib.contextmanager
def _alone(partial: Path) -> Iterator[_File]:
    """The partial file, open, and locked where the file system has locks.

    Where it has none, two processes that fetch the same file at once spoil it, which its hash
    shows.
    """
    while True:
        with partial.open("ab+") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in _NO_LOCKS:
                    raise
            if _is_there(handle, partial):  # or the one before renamed it while this one waited
                yield handle
                return


def _is_there(handle: _File, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle.fileno()), path.stat())
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without huggingface_hub's warning of each new attempt."""
    from huggingface_hub.utils import logging as hub_logging

    before = hub_logging.get_verbosity()
    hub_logging.set_verbosity_error()
    try:
        yield
    finally:
        hub_logging.set_verbosity(before)


def _require_space(target: Target, needed: int) -> None:
    """Raises HubError where the disk has less than that many bytes."""
    folder = target.path.parent
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise failures.full_disk(folder, target.words, needed - free, target.place)


def _digest(file: _File, like: str) -> str:
    """The hash of a file: its sha256, or git's where `like` is as short as that."""
    size = file.seek(0, os.SEEK_END)
    file.seek(0)
    if len(like) == 64:
        return hashlib.file_digest(file, "sha256").hexdigest()
    digest_of = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
    while block := file.read(1 << 20):
        digest_of.update(block)
    return digest_of.hexdigest()
