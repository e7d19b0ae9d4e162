"""Writing a bundle: its folder holds the old one or the new one, whole, whenever a writer dies."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from ris.engines.errors import BundleError
from ris.runtime.bundle import ENGINES, MANIFEST


@contextlib.contextmanager
def building(out: Path, overwrite: bool) -> Iterator[Path]:
    """A new folder to write a bundle to, a hidden sibling of `out`.

    It takes the place of `out` when the block ends well, and is removed when it does not. Raises
    BundleError where `out` must not be replaced or the disk refuses.
    """
    recover(out)
    check_target(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        folder.mkdir()
        yield folder
        _make_readable(folder)
        _replace(out, folder)
    except OSError as error:
        raise _refusal(out, error) from None
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_target(out: Path, overwrite: bool) -> None:
    """Raises BundleError where `out` is something that a new bundle must not replace."""
    if not out.exists():
        return
    if not out.is_dir():
        raise BundleError(f"{out} exists and is not a folder; choose another --out")
    if any(out.iterdir()) and not (out / MANIFEST).exists():
        raise BundleError(
            f"{out} exists and is not a bundle, so it is not overwritten; choose another --out"
        )
    if not overwrite:
        raise BundleError(f"{out} exists; use --force to replace it, or choose another --out")


def recover(out: Path) -> None:
    """Cleans up behind processes that were killed while they wrote this bundle.

    What is half-written is removed. Where a process was killed between its two renames, the old
    bundle comes back.
    """
    for leftover in out.parent.glob(f".{out.name}.*-*"):
        kind, _, process = leftover.name.removeprefix(f".{out.name}.").partition("-")
        if kind not in ("partial", "old") or not process.isdigit() or _alive(int(process)):
            continue
        if kind == "old" and not out.exists():
            leftover.rename(out)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _make_readable(folder: Path) -> None:
    """Gives every file the manifest's mode: ONNX writes its data files for their owner alone."""
    mode = (folder / MANIFEST).stat().st_mode & 0o777
    for file in folder.rglob("*"):
        if file.is_file():
            file.chmod(mode)


def _replace(out: Path, folder: Path) -> None:
    """Puts the folder in the place of `out`."""
    if not out.exists():
        folder.rename(out)
        return
    old = out.with_name(f".{out.name}.old-{os.getpid()}")
    out.rename(old)
    folder.rename(out)
    # compiled graphs are found by content, so those of unchanged graphs still fit
    if (old / ENGINES).is_dir():
        (old / ENGINES).rename(out / ENGINES)
    shutil.rmtree(old)


def _refusal(out: Path, error: OSError) -> BundleError:
    """What went wrong on the disk, in a sentence."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return BundleError(
            f"{out}: the disk is full; nothing was written. Free some space and run again"
        )
    if error.errno in (errno.EACCES, errno.EROFS):
        return BundleError(f"{out}: no permission to write there")
    return BundleError(f"{error.filename or out}: {error.strerror or error}; nothing was written")


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
