"""Writing a bundle: its folder holds the old one or the new one, whole, whenever a writer dies."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from ris.engines.errors import BundleError
from ris.engines.temporary import recover_folder, replace_folder, temporary_folder
from ris.runtime.bundle import ENGINES, MANIFEST


@contextlib.contextmanager
def building(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder to write a bundle to, a hidden sibling of `out`.

    It takes the place of `out` when the block ends well, and is removed when it does not. Where
    `out` is a link, the link stays and the folder that it leads to is replaced. Raises BundleError
    where `out` must not be replaced or the disk refuses.
    """
    recover(out)
    check_target(out, overwrite)
    target = behind_links(out)
    with refusing(out):
        target.parent.mkdir(parents=True, exist_ok=True)
        with temporary_folder(target) as folder:
            yield folder
            _make_readable(folder)
            replace_folder(target, folder, _keep_engines)


def check_target(out: Path, overwrite: bool) -> None:
    """Raises BundleError where `out` is something that a new bundle must not or cannot replace."""
    with refusing(out):
        _check_target(out, behind_links(out), overwrite)


def _check_target(out: Path, target: Path, overwrite: bool) -> None:
    """`check_target`, where `target` is what `out` leads to."""
    if not target.exists():
        return
    if not target.is_dir():
        raise BundleError(f"{out} exists and is not a folder; choose another --out")
    require_movable(out)
    if any(target.iterdir()) and not (target / MANIFEST).exists():
        raise BundleError(
            f"{out} exists and is not a bundle, so it is not overwritten; choose another --out"
        )
    if not overwrite:
        raise BundleError(f"{out} exists; use --force to replace it, or choose another --out")


def recover(out: Path) -> None:
    """Cleans up behind processes that were killed while they wrote this bundle.

    What is half-written is removed. Where a process was killed between its two renames, the old
    bundle comes back. What may belong to a living process stays.
    """
    with refusing(out):
        recover_folder(behind_links(out), _keep_engines)


def behind_links(out: Path) -> Path:
    """The folder that `out` really is, or would be."""
    return Path(os.path.realpath(out))


def require_movable(out: Path) -> None:
    """Raises BundleError where another folder cannot be put in the place of `out`."""
    target = behind_links(out)
    if _is_around(target):
        raise BundleError(
            f"{out} is the folder that this command runs in, or is around it, so it cannot be"
            " replaced; name a folder in it, or go to another one first"
        )
    if target.is_mount():
        raise BundleError(f"{out} is a mount point and cannot be replaced; name a folder in it")


def _is_around(folder: Path) -> bool:
    """Whether this process runs in the folder or somewhere below it."""
    try:
        return Path.cwd().is_relative_to(folder)
    except FileNotFoundError:  # it runs in a folder that was removed
        return False


def _make_readable(folder: Path) -> None:
    """Gives every file the manifest's mode: ONNX writes its data files for their owner alone."""
    mode = (folder / MANIFEST).stat().st_mode & 0o777
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _keep_engines(old: Path, out: Path) -> None:
    """Moves compiled graphs on: they are found by content, so those of unchanged graphs still fit.

    What is compiled for the new bundle already stays.
    """
    if (old / ENGINES).is_dir() and not (out / ENGINES).exists():
        (old / ENGINES).rename(out / ENGINES)


@contextlib.contextmanager
def refusing(out: Path) -> Iterator[None]:
    """Makes a sentence of what the disk refuses."""
    try:
        yield
    except OSError as error:
        raise _refusal(out, error) from None


def _refusal(out: Path, error: OSError) -> BundleError:
    """What went wrong on the disk, in a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BundleError(
            f"{out}: the disk is full; nothing was written. Free some space and run again"
        )
    if error.errno in (errno.EACCES, errno.EROFS):
        return BundleError(f"{out}: no permission to write there")
    return BundleError(f"{error.filename or out}: {error.strerror or error}; nothing was written")
