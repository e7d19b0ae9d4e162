"""One export at a time into a bundle: two would write to each other's kept files."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from ris.engines.errors import BundleError
from ris.engines.temporary import LONGEST_NAME, lock, shortened
from ris.runtime.bundle_folder import behind_links, refusing

_LOCK = "lock"
"""The locked file, in the folder of what is kept. NFS locks no folders, and no file for who may
not write to it."""


def kept_folder(out: Path) -> Path:
    """Where an export into `out` keeps what it writes: beside the folder that `out` leads to."""
    folder = behind_links(out)
    return folder.with_name(f".{shortened(folder.name, LONGEST_NAME - len('..export'))}.export")


@contextlib.contextmanager
def alone(out: Path) -> Iterator[None]:
    """No other export writes to `out` during the block, where the file system has locks.

    The system takes the lock back when a process dies, so that nobody has to clear up behind one
    that was killed. Raises BundleError where another run holds it, or the disk refuses.
    """
    folder = kept_folder(out)
    with refusing(out):
        handle = _locked(folder, out)
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            (folder / _LOCK).unlink()
            folder.rmdir()  # it stays where a stopped export left something in it
        os.close(handle)


def _locked(folder: Path, out: Path) -> int:
    """The descriptor of the locked file, made where there is none."""
    path = folder / _LOCK
    while True:
        folder.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileNotFoundError):  # who held it has just removed it
            handle = _opened(path)
            try:
                if lock(handle) == "busy":
                    raise BundleError(
                        f"another run writes {out} at the moment; wait until it has ended, or"
                        " choose another --out"
                    )
                if os.path.samestat(os.fstat(handle), path.stat()):
                    return handle
            except BaseException:
                os.close(handle)
                raise
            os.close(handle)


def _opened(path: Path) -> int:
    """The descriptor of a lock file; one that another user has left is locked as it is."""
    try:
        return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
