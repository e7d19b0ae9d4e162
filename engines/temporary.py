"""Files and folders that appear whole or not at all, and what killed writers leave behind.

A writer works on a hidden sibling, `.NAME.KIND-PLACE-PROCESS-RANDOM`, and renames it when it is
done. PLACE stands for this start of the system, this host name and this namespace of process ids:
containers that share a folder all have a process 1. A writer holds a lock on its sibling, where the
file system has locks. Only what is provably dead is removed: its lock is free and it was locked on
this running system, or there are no locks and its process, of this very place, has ended.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import os
import platform
import re
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

Save = Callable[[IO[bytes]], Any]
"""Writes the content of a file to it."""

Keep = Callable[[Path, Path], None]
"""Moves what is to stay from a folder to the one that has taken its place."""

LONGEST_NAME = 255
"""The bytes of a file's name."""

_NO_LOCKS = (errno.ENOSYS, errno.EOPNOTSUPP, errno.ENOLCK, errno.EINVAL)
_FOLDER = os.O_RDONLY | os.O_DIRECTORY
_HALF = 6  # hexadecimal digits of each half of a place
_REST = re.compile(rf"(?P<place>[0-9a-f]{{{2 * _HALF}}})-(?P<process>\d+)-[0-9a-f]{{8}}$")
_REST_LENGTH = 2 * _HALF + 1 + 10 + 1 + 8  # at most
_PARTIAL = re.compile(rf"\..*\.partial-{_REST.pattern}")


def temporary_sibling(path: Path, kind: str = "partial") -> Path:
    """A name beside `path` that nobody else uses: hidden, and no longer than file systems take.

    kind: what it is for, a word; "partial" for what is being written.
    """
    rest = f"{_place()}-{os.getpid()}-{secrets.token_hex(4)}"
    return path.with_name(f"{_prefix(path.name, kind)}{rest}")


def write_atomically(path: Path, save: Save, *, to_disk: bool = False) -> None:
    """Writes a hidden sibling and renames it, so a failure leaves what was there before.

    A link at `path` is replaced by the file.

    Args:
        path: The file.
        save: Writes its content.
        to_disk: Wait until the disk has the content; otherwise a power cut may lose it.

    Raises:
        OSError: Where the disk refuses.
    """
    with temporary_file(path) as (partial, file):
        save(file)
        file.flush()
        if to_disk:
            os.fsync(file.fileno())
        partial.replace(path)


@contextlib.contextmanager
def temporary_file(path: Path) -> Iterator[tuple[Path, IO[bytes]]]:
    """A new hidden sibling of `path`, open for writing; removed at the end unless it was renamed.

    Raises OSError where it cannot be made.
    """
    partial, handle = _new(path, "partial", folder=False)
    try:
        with os.fdopen(handle, "wb") as file:
            yield partial, file
    finally:
        partial.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(path: Path) -> Iterator[Path]:
    """A new hidden sibling of `path`, locked during the block and removed at its end.

    What the block renames stays. Raises OSError where it cannot be made.
    """
    folder, handle = _new(path, "partial", folder=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(handle)


def lock(handle: int, *, wait: bool = False) -> Literal["held", "busy", "none"]:
    """Takes the lock of an open file or folder, which ends when it is closed.

    Args:
        handle: Its file descriptor.
        wait: Until whoever holds the lock gives it back.

    Returns:
        "held"; "busy" where another holds it; "none" where the file system has no locks, as Lustre
        that is mounted without `flock`.
    """
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return "busy"
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return "none"
        raise
    return "held"


def dead_siblings(path: Path, kind: str = "partial") -> list[Path]:
    """The hidden siblings of `path` of this kind whose writer has provably ended."""
    return list(each_dead(path, kind))


def each_dead(path: Path, kind: str = "partial") -> Iterator[Path]:
    """`dead_siblings` one by one: until the next is asked for, nobody else takes this one.

    Warns once of each that may belong to a living process.
    """
    for sibling in _siblings(path, kind):
        with _claimed(sibling) as dead:
            if dead:
                yield sibling


def clear_dead(path: Path, kind: str = "partial") -> None:
    """Removes what killed writers of `path` left."""
    for sibling in each_dead(path, kind):
        _remove(sibling)


def clear_folder(folder: Path) -> None:
    """Removes what killed writers of any file in the folder left."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if _PARTIAL.fullmatch(name):
                with _claimed(folder / name) as dead:
                    if dead:
                        _remove(folder / name)


def _remove(sibling: Path) -> None:
    """Removes a file or a folder, unless it is another user's."""
    if sibling.is_dir():
        shutil.rmtree(sibling, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            sibling.unlink()


def replace_folder(path: Path, new: Path, keep: Keep) -> None:
    """Puts the folder `new` in the place of `path`, which may be another folder or nothing.

    Args:
        path: The place.
        new: The folder; its name is gone afterwards.
        keep: Moves what is to stay from the old folder, its first argument, to the new one.

    Raises:
        OSError: Where the system refuses; the old folder is there then.
    """
    if not path.exists():
        new.rename(path)
        return
    old = temporary_sibling(path, "old")
    with _locked_folder(path):  # so that nobody takes the old one for left behind
        path.rename(old)
        try:
            new.rename(path)
        except OSError:
            old.rename(path)
            raise
        keep(old, path)
        shutil.rmtree(old)


def recover_folder(path: Path, keep: Keep) -> None:
    """Clears up behind processes that were killed in `temporary_folder` or `replace_folder`.

    Where one was killed between its two renames, the old folder comes back.
    """
    for old in each_dead(path, "old"):
        if path.exists():
            keep(old, path)
            shutil.rmtree(old, ignore_errors=True)
        else:
            old.rename(path)
    clear_dead(path)


@contextlib.contextmanager
def _locked_folder(folder: Path) -> Iterator[None]:
    """Holds the lock of a folder that is there; waits for whoever holds it.

    Raises FileNotFoundError where it is gone.
    """
    while True:
        handle = os.open(folder, _FOLDER | os.O_CLOEXEC)
        try:
            lock(handle, wait=True)
            if os.path.samestat(os.fstat(handle), folder.stat()):
                yield
                return
        finally:
            os.close(handle)


def _new(path: Path, kind: str, folder: bool) -> tuple[Path, int]:
    """A new sibling, a folder or a file, and the file descriptor that holds its lock."""
    while True:
        made = temporary_sibling(path, kind)
        if folder:
            made.mkdir()
        flags = _FOLDER if folder else os.O_WRONLY | os.O_CREAT | os.O_EXCL
        with contextlib.suppress(FileNotFoundError):  # who clears up was faster than the lock
            handle = os.open(made, flags | os.O_CLOEXEC, 0o666)
            if lock(handle) != "busy" and made.exists():
                return made, handle
            os.close(handle)


def _prefix(name: str, kind: str) -> str:
    """`.NAME.KIND-`, with a long NAME cut and the digest of the whole at its end."""
    return f".{shortened(name, LONGEST_NAME - len(f'..{kind}-') - _REST_LENGTH)}.{kind}-"


def shortened(name: str, room: int) -> str:
    """A file's name of at most `room` bytes; a longer one is cut, and ends with its digest."""
    if len(os.fsencode(name)) <= room:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    while len(os.fsencode(name)) > room - len(digest) - 1:
        name = name[:-1]
    return f"{name}~{digest}"


def _siblings(path: Path, kind: str) -> Iterator[Path]:
    """Every hidden sibling of `path` of this kind, whoever wrote it."""
    prefix = _prefix(path.name, kind)
    with contextlib.suppress(OSError):
        for name in os.listdir(path.parent):
            if name.startswith(prefix) and _REST.fullmatch(name, len(prefix)):
                yield path.parent / name


@contextlib.contextmanager
def _claimed(sibling: Path) -> Iterator[bool]:
    """Whether the writer of a sibling is provably dead; during the block nobody else claims it."""
    found = _REST.search(sibling.name)
    assert found is not None
    here = found["place"] == _place()
    same_start = found["place"][:_HALF] == _place()[:_HALF]
    state: str = "none"
    handle = None
    try:
        # NFS locks a file only for who may write to it
        mode = _FOLDER if sibling.is_dir() else os.O_RDWR
        handle = os.open(sibling, mode | os.O_CLOEXEC)
        state = lock(handle)
    except FileNotFoundError:
        state = "busy"  # its writer has just renamed or removed it
    except OSError:
        pass  # somebody else's: its process may tell

    dead = (state == "held" and same_start) or (
        state == "none" and here and not _alive(int(found["process"]))
    )
    try:
        if not dead and state != "busy":
            _leave(sibling)
        yield dead
    finally:
        if handle is not None:
            os.close(handle)


@functools.cache
def _leave(sibling: Path) -> None:
    """Says once that a sibling stays."""
    warnings.warn(
        f"{sibling} is left alone: it may be of a process that still writes, in another container"
        " or on another machine; remove it by hand if none does",
        stacklevel=2,
    )


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


@functools.cache
def _place() -> str:
    """The first digits stand for this start of the system, the others for what is inside it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            start = file.read()
        namespace = os.stat("/proc/self/ns/pid").st_ino
    except OSError:  # nothing can be proved about what has this name
        start, namespace = secrets.token_hex(), 0
    return _digits(start) + _digits(f"{platform.node()} {namespace}")


def _digits(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:_HALF]
