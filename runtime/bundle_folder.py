"""Writing a bundle so that its folder holds the old one or the new one, whole, whenever the writer
is killed.
"""

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
    """A hidden sibling folder of `out` that takes its place when the block ends well, and is
    removed when not.
    """
    recover(out)
    check_target(out, overwrite)
    out.parent.mkdir(parents=True, exist_ok=True)
    folder = out.with_name(f".{out.name}.partial-{os.getpid()}")
    try:
        folder.mkdir()
        yield folder
        mode = (folder / MANIFEST).stat().st_mode & 0o777
        for file in (f for f in folder.rglob("*") if f.is_file()):
            file.chmod(mode)  # ONNX writes its data files for their owner alone
        if out.exists():
            old = out.with_name(f".{out.name}.old-{os.getpid()}")
            out.rename(old)
            folder.rename(out)
            if (
                old / ENGINES
                # compiled graphs are found by content, so those of the same graphs still fit
            ).is_dir():
                (old / ENGINES).rename(out / ENGINES)
            shutil.rmtree(old)
        else:
            folder.rename(out)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BundleError(
                f"{out}: the disk is full; nothing was written. Free some space and run again"
            ) from None
        if error.errno in (errno.EACCES, errno.EROFS):
            raise BundleError(f"{out}: no permission to write there") from None
        raise BundleError(
            f"{error.filename or out}: {error.strerror or error}; nothing was written"
        ) from None
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
    """Cleans up behind processes that were killed while they wrote this bundle: removes what is
    half-written, and puts the old bundle back where the kill fell between the two renames.
    """
    for leftover in out.parent.glob(f".{out.name}.*-*"):
        kind, _, process = leftover.name.removeprefix(f".{out.name}.").partition("-")
        if kind not in ("partial", "old") or not process.isdigit() or _alive(int(process)):
            continue
        if kind == "old" and not out.exists():
            leftover.rename(out)
        else:
            shutil.rmtree(leftover, ignore_errors=True)


def _alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
