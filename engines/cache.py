"""What engines compile is kept: `<bundle>/engines/<key>/<stage>.plan` with a sidecar `<stage>.json`
beside it.

The key is a hash over everything the artifact depends on (`Recipe`), and the sidecar spells it out.
Compiled engines contain code, so one is loaded only where its sidecar says exactly what is wanted
and its own hash is the sidecar's. One that does not fit is named, with the fields that differ, and
left alone; a damaged one is replaced.

An artifact is built in a hidden folder and renamed, under a lock that dies with its process: two
processes build once, and what a killed one leaves behind is never loaded and removed by the next
that builds the same.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import mmap
import os
import platform
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.engines.base import Compiled, EngineOptions, Graph, Progress, silent
from ris.engines.errors import EngineError

_READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)
_FULL = (errno.ENOSPC, errno.EDQUOT)
_SHOWN = 3  # entries that do not fit and are named

Build = Callable[[Path], dict[str, Any]]
"""Writes the artifact to the path it is given, and returns what is worth knowing about it, as
JSON.
"""


def operating_system() -> str:
    """OS and architecture, as in "Linux-x86_64"."""
    return f"{platform.system()}-{platform.machine()}"


@dataclass(frozen=True)
class Recipe:
    """Everything a compiled graph depends on.

    onnx: sha256 of the graph's files by name; engine, version: in full; device: compute capability,
    CPU features, or "none" for what is compiled ahead of time for any; profiles: smallest, usual
    and largest shape by input; options: those that change the artifact.
    """

    stage: str
    onnx: Mapping[str, str]
    engine: str
    version: str
    device: str
    profiles: Mapping[str, Any]
    options: Mapping[str, Any]
    platform: str = field(default_factory=operating_system)

    @property
    def key(self) -> str:
        """The name of the folder: the first 32 hexadecimal digits of a sha256."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:32]

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(json.dumps(asdict(self)))
        return data


def graph_hashes(graph: Graph) -> dict[str, str]:
    """sha256 of the graph's files by name: those it comes with, else computed (the graph and its
    .data file).
    """
    if graph.sha256:
        return {Path(name).name: value for name, value in graph.sha256.items()}
    data = graph.path.with_name(graph.path.name + ".data")
    try:
        return {
            file.name: _sha256(file)
            for file in (graph.path, data)
            if file == graph.path or file.exists()
        }
    except OSError as error:
        raise EngineError(
            f"{graph.stage}: {graph.path} cannot be read ({error.strerror}); export it again"
        ) from None


def user_folder() -> Path:
    """Where compiled graphs go that cannot lie in their bundle: $XDG_CACHE_HOME or ~/.cache,
    ris-runtime/engines.
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

    home: the bundle's folder for engines; where it is None or read-only, the user's own folder
    serves. Raises EngineError under `options.build=False` where there is no entry that fits, saying
    what is there instead, for a full disk, and what `build` raises.
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
    """The bytes of a compiled graph, if the sidecar beside it is of `engine`, this platform and
    these very bytes.

    Raises EngineError.
    """
    return map_checked(artifact, engine).tobytes()


def map_checked(artifact: Path, engine: str) -> NDArray[np.uint8]:
    """`read_checked`, mapped into memory: the file is read where it is used, and what is written
    stays in memory.
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
    if _sha256(artifact) != sidecar["sha256"]:
        raise EngineError(
            f"{artifact} is damaged (its sha256 is not the sidecar's); compile it again"
        )
    return data


def let_go(data: NDArray[np.uint8]) -> None:
    """What `map_checked` has read of a file so far leaves memory; what is used again is read
    again.
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
        if differences := _differences(sidecar["recipe"], recipe.to_dict()):
            reasons.append(f"{file.parent} is of another {differences}")
    more = [f"and {len(reasons) - _SHOWN} more"] if len(reasons) > _SHOWN else []
    return reasons[:_SHOWN] + more


def _read_entry(folder: Path, recipe: Recipe) -> Compiled | str:
    """The entry in `folder`, or what is wrong with it."""
    sidecar = _read_sidecar(folder / f"{recipe.stage}.json")
    if isinstance(sidecar, str):
        return f"is damaged ({sidecar})"
    if differences := _differences(sidecar["recipe"], recipe.to_dict()):
        return f"is of another {differences}"
    artifact = folder / f"{recipe.stage}.plan"
    if not artifact.is_file():
        return f"is damaged ({artifact.name} is missing)"
    if _sha256(artifact) != sidecar["sha256"]:
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


def _differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> str:
    """The fields in which two recipes differ, with both values; empty where they are equal."""
    parts = []
    for name in sorted({*found, *wanted}):
        a, b = found.get(name), wanted.get(name)
        if isinstance(a, dict) and isinstance(b, dict):
            parts += [
                f"{name}.{key} ({_short(a.get(key))}, here {_short(b.get(key))})"
                for key in sorted({*a, *b})
                if a.get(key) != b.get(key)
            ]
        elif a != b:
            parts.append(f"{name} ({_short(a)}, here {_short(b)})")
    return ", ".join(parts)


def _short(value: Any) -> str:
    """A value of a recipe for people; hashes by their first digits."""
    text = "none" if value is None else str(value)
    return f"{text[:8]}…" if len(text) == 64 and " " not in text else text


def _build(place: Path, recipe: Recipe, build: Build, progress: Progress) -> Compiled:
    """Builds under the lock, or finds that another process has. Raises _ReadOnlyError and
    EngineError.
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
            partial.mkdir()
            artifact = partial / f"{recipe.stage}.plan"
            start = time.perf_counter()
            report = build(artifact)
            seconds = round(time.perf_counter() - start, 3)
            sidecar = {
                "recipe": recipe.to_dict(),
                "sha256": _sha256(artifact),
                "bytes": artifact.stat().st_size,
                "seconds": seconds,
                "report": report,
            }
            text = json.dumps(sidecar, indent=2, sort_keys=True) + "\n"
            (partial / f"{recipe.stage}.json").write_text(text, encoding="utf-8")
            for file in partial.iterdir():
                _to_disk(file)
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
    return Compiled(folder / artifact.name, report, seconds, built_now=True)


@contextlib.contextmanager
def _locked(place: Path, recipe: Recipe, progress: Progress) -> Iterator[None]:
    """Holds the lock of one key. The file stays; the lock itself goes with the process that holds
    it.
    """
    try:
        place.mkdir(parents=True, exist_ok=True)
        handle = os.open(
            place / f".{recipe.key}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644
        )
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


def _to_disk(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def _sha256(path: Path) -> str:
    """sha256 of a file; computed again only where the file is another or has changed since."""
    with path.open("rb") as file:
        about = os.fstat(file.fileno())
        return _hashed(
            path, (about.st_dev, about.st_ino, about.st_size, about.st_mtime_ns, about.st_ctime_ns)
        )


@functools.lru_cache(maxsize=64)
def _hashed(path: Path, version: tuple[int, ...]) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
