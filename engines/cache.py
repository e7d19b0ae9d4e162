"""The cache of compiled graphs: `<bundle>/engines/<key>/<stage>.plan` with a sidecar beside it.

The key is a hash over everything the artifact depends on (`Recipe`). The sidecar, `<stage>.json`,
spells it out. Compiled engines contain code, so one is loaded only if its sidecar says exactly what
is wanted and the artifact's hash is the one in the sidecar. An entry that does not fit is named,
with the fields that differ, and left alone; a damaged one is replaced.

An artifact is built in a hidden folder and renamed, under a lock that ends with its process. So two
processes build once, and what a killed one leaves behind is never loaded: the next process that
builds the same removes it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import mmap
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.engines.base import Compiled, EngineOptions, Progress, silent
from ris.engines.errors import EngineError
from ris.engines.recipe import Recipe, differences, file_hash, operating_system

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAMED = 3  # the most entries that do not fit and are named in a message

Build = Callable[[Path], dict[str, Any]]
"""Writes the artifact to the path it is given, and returns its report as JSON."""


def user_folder() -> Path:
    """The folder for compiled graphs that cannot lie in their bundle.

    It is ris-runtime/engines below $XDG_CACHE_HOME or ~/.cache.
    """
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "ris-runtime" / "engines"


def obtain(
    recipe: Recipe,
    home: Path | None,
    build: Build,
    options: EngineOptions,
    progress: Progress = silent,
) -> Compiled:
    """The entry of `recipe`, from the cache or built now.

    Args:
        recipe: What is wanted.
        home: The bundle's folder for engines. Where it is None or read-only, `user_folder` serves.
        build: Makes the artifact.
        options: `build=False` refuses to build.
        progress: Called for each entry that does not fit, and while another process builds the
            same.

    Raises:
        EngineError: Where nothing fits and `options.build` is False, saying what is there instead;
            where no folder can be written; for a full disk; and what `build` raises.
    """
    places = [user_folder()] if home is None else [home, user_folder()]
    reasons: list[str] = []
    for place in places:
        found = _look(place, recipe)
        if isinstance(found, Compiled):
            return found
        reasons += found

    if not options.build:
        there = "; ".join(reasons) or f"nothing was compiled for it in {places[0]}"
        raise EngineError(
            f"{recipe.stage}: no compiled {recipe.engine} graph may be loaded ({there}); allow"
            " building it"
        )
    for reason in reasons:
        progress(recipe.stage, f"not used: {reason}", None)

    for place in places:
        with contextlib.suppress(_ReadOnlyError):
            return _build(place, recipe, build, progress)
    raise EngineError(
        f"{recipe.stage}: cannot write to {' or '.join(map(str, places))}; set XDG_CACHE_HOME"
    )


def read_checked(artifact: Path, engine: str) -> bytes:
    """The bytes of a compiled graph, after they are compared with the sidecar.

    Raises:
        EngineError: As in `map_checked`.
    """
    return map_checked(artifact, engine).tobytes()


def map_checked(artifact: Path, engine: str) -> NDArray[np.uint8]:
    """A compiled graph, mapped into memory after it is compared with the sidecar.

    The file is read where the array is used; what is written to the array stays in memory.

    Raises:
        EngineError: Where the sidecar is missing or is not of `engine`, this platform and these
            very bytes, or the file cannot be read.
    """
    sidecar = _read_sidecar(artifact.with_suffix(".json"))
    if isinstance(sidecar, str):
        raise EngineError(
            f"{artifact}: {sidecar}; compiled graphs are only loaded with their sidecar"
        )
    recipe = sidecar["recipe"]
    for name, wanted in (("engine", engine), ("platform", operating_system())):
        if recipe.get(name) != wanted:
            raise EngineError(
                f"{artifact} is of another {name} ({recipe.get(name)}, here {wanted}); compile it"
                " again"
            )

    try:
        with artifact.open("rb") as file:
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
    except (OSError, ValueError) as error:
        raise EngineError(f"{artifact} cannot be read ({error}); compile it again") from None
    if file_hash(artifact) != sidecar["sha256"]:
        raise EngineError(
            f"{artifact} is damaged (its sha256 is not the sidecar's); compile it again"
        )
    return data


def let_go(data: NDArray[np.uint8]) -> None:
    """Drops from memory what was read of an array of `map_checked`.

    What is used afterwards is read from the file again.
    """
    mapped = data.base.obj if isinstance(data.base, memoryview) else data.base
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)


class _ReadOnlyError(Exception):
    """Nothing can be written to a folder."""


def _look(place: Path, recipe: Recipe) -> Compiled | list[str]:
    """The entry below `place`, or why those that are there must not be loaded."""
    folder = place / recipe.key
    if folder.is_dir():
        found = _read_entry(folder, recipe)
        return found if isinstance(found, Compiled) else [f"{folder} {found}"]

    reasons = []
    for file in sorted(place.glob(f"*/{recipe.stage}.json")):
        sidecar = _read_sidecar(file)
        if isinstance(sidecar, str) or sidecar["recipe"].get("engine") != recipe.engine:
            continue
        if different := differences(sidecar["recipe"], recipe.to_dict()):
            reasons.append(f"{file.parent} is of another {different}")
    more = [f"and {len(reasons) - _NAMED} more"] if len(reasons) > _NAMED else []
    return reasons[:_NAMED] + more


def _read_entry(folder: Path, recipe: Recipe) -> Compiled | str:
    """The entry in `folder`, or what is wrong with it."""
    sidecar = _read_sidecar(folder / f"{recipe.stage}.json")
    if isinstance(sidecar, str):
        return f"is damaged ({sidecar})"
    if different := differences(sidecar["recipe"], recipe.to_dict()):
        return f"is of another {different}"
    artifact = folder / f"{recipe.stage}.plan"
    if not artifact.is_file():
        return f"is damaged ({artifact.name} is missing)"
    if file_hash(artifact) != sidecar["sha256"]:
        return f"is damaged ({artifact.name} is not the file that was built: sha256 differs)"
    return Compiled(artifact, sidecar["report"], sidecar["seconds"], built_now=False)


def _read_sidecar(file: Path) -> dict[str, Any] | str:
    """A sidecar, or what is wrong with it."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{file.name} is missing"
    except (OSError, ValueError) as error:
        return f"{file.name} cannot be read: {str(error).splitlines()[0]}"
    kinds: dict[str, Any] = {"recipe": dict, "sha256": str, "report": dict, "seconds": (int, float)}
    values = data if isinstance(data, dict) else {}
    wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]
    return f"{file.name} lacks {', '.join(wrong)}" if wrong else values


def _build(place: Path, recipe: Recipe, build: Build, progress: Progress) -> Compiled:
    """The entry, built under its lock; or the one that another process has built meanwhile.

    Raises _ReadOnlyError where nothing can be written to `place`, and EngineError.
    """
    folder = place / recipe.key
    with _locked(place, recipe, progress):
        found = _look(place, recipe)
        if isinstance(found, Compiled):
            return found

        # whoever holds the lock is alive, so whatever else lies here was left by a killed process
        for leftover in place.glob(f".{recipe.key}.partial-*"):
            shutil.rmtree(leftover, ignore_errors=True)

        partial = place / f".{recipe.key}.partial-{os.getpid()}-{threading.get_ident()}"
        try:
            sidecar = _write_entry(partial, recipe, build)
            shutil.rmtree(folder, ignore_errors=True)  # damaged or foreign, as was said
            partial.rename(folder)
        except OSError as error:
            if error.errno in _FULL:
                raise EngineError(
                    f"{recipe.stage}: the disk is full at {place}; nothing is left there, free some"
                    " space and run again"
                ) from None
            raise
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    artifact = folder / f"{recipe.stage}.plan"
    return Compiled(artifact, sidecar["report"], sidecar["seconds"], built_now=True)


def _write_entry(folder: Path, recipe: Recipe, build: Build) -> dict[str, Any]:
    """Builds the artifact and writes its sidecar, both to the disk; returns the sidecar."""
    folder.mkdir()
    artifact = folder / f"{recipe.stage}.plan"
    start = time.perf_counter()
    report = build(artifact)
    seconds = round(time.perf_counter() - start, 3)

    sidecar = {
        "recipe": recipe.to_dict(),
        "sha256": file_hash(artifact),
        "bytes": artifact.stat().st_size,
        "seconds": seconds,
        "report": report,
    }
    text = json.dumps(sidecar, indent=2, sort_keys=True) + "\n"
    (folder / f"{recipe.stage}.json").write_text(text, encoding="utf-8")

    for file in folder.iterdir():
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    return sidecar


@contextlib.contextmanager
def _locked(place: Path, recipe: Recipe, progress: Progress) -> Iterator[None]:
    """Holds the lock of one key, which ends with the process at the latest; its file stays."""
    try:
        place.mkdir(parents=True, exist_ok=True)
        lock = place / f".{recipe.key}.lock"
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        if error.errno in _READ_ONLY:
            raise _ReadOnlyError from None
        raise EngineError(f"{recipe.stage}: cannot write to {place} ({error.strerror})") from None

    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress(recipe.stage, "waiting for another process that compiles the same", None)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
