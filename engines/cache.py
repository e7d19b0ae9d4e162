"""The cache of compiled graphs: `<bundle>/engines/<key>/<stage>.plan` with a sidecar beside it.

The key is a hash over everything the artifact depends on (`Recipe`). The sidecar, `<stage>.json`,
spells it out, and `entry` says what is loaded. An entry that does not fit is named, with the fields
that differ, and left alone; a damaged one is replaced. One of another user or key is left alone as
long as another folder will do. Where two folders have an entry, the newer one counts: it was built
because the engine did not load the other, in a bundle that cannot be written.

Where there is no entry of the very recipe, one that serves is taken, unless `EngineOptions.exact`
is set: compiled for more expressions, or with options that the run leaves open (`fitting`). Of
several the one with the smallest limits is taken.

An artifact is built in a hidden folder and renamed, under a lock that ends with its process. So two
processes build once, and what a killed one leaves behind is never loaded: the next process that
builds the same removes it. On a file system without locks both build, and one of the two stays.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ris.engines.base import Compiled, EngineOptions, Progress, silent
from ris.engines.entry import Build, Refusal, read_entry, read_sidecar, write_entry
from ris.engines.errors import EngineError
from ris.engines.fitting import largest, misfit
from ris.engines.recipe import Recipe, differences
from ris.engines.temporary import clear_dead, lock, temporary_folder, temporary_sibling
from ris.engines.trust import distrust, user_key
from ris.engines.user_folders import cache_folders, make

_FULL = (errno.ENOSPC, errno.EDQUOT)
_NAMED = 3  # the most entries that do not fit and are named in a message


def user_folder() -> Path | None:
    """The folder for compiled graphs that cannot lie in their bundle; None where none will do.

    It is ris-runtime/engines below $XDG_CACHE_HOME or ~/.cache, or below a folder of the user's own
    in the system's temporary one.
    """
    for folder in _user_folders():
        with contextlib.suppress(OSError):
            make(folder)
            if os.access(folder, os.W_OK | os.X_OK):
                return folder
    return None


def obtain(
    recipe: Recipe,
    home: Path | None,
    build: Build,
    options: EngineOptions,
    progress: Progress = silent,
    *,
    anew: bool = False,
) -> Compiled:
    """The entry of `recipe`, from the cache or built now.

    Args:
        recipe: What is wanted.
        home: The bundle's folder for engines. Where it is None or cannot be written, the user's own
            folders serve.
        build: Makes the artifact.
        options: `build=False` refuses to build, `exact` takes no entry of another recipe.
        progress: Called for each entry that does not fit, and while another process builds the
            same.
        anew: Build it also where it is there, and replace it.

    Raises:
        EngineError: Where nothing fits and `options.build` is False, saying what is there instead;
            where no folder can be written; for a full disk; and what `build` raises.
    """
    user_key()  # a wrong $RIS_PLAN_KEY is said before the work
    places = _user_folders() if home is None else [home, *_user_folders()]
    exact = options.exact
    looks = {} if anew else {place: _look(place, recipe, exact) for place in places}
    if fitting := [found for found in looks.values() if isinstance(found, Compiled)]:
        return max(reversed(fitting), key=lambda found: (_is_of(recipe, found), _built_at(found)))
    refusals = {place: found for place, found in looks.items() if not isinstance(found, Compiled)}
    # these places have an entry of another user or key
    taken = [place for place, found in refusals.items() if any(r.foreign for r in found)]

    reasons = _shortened([refusal.text for found in refusals.values() for refusal in found])
    if not options.build:
        there = "; ".join(reasons) or f"nothing was compiled for it in {places[0]}"
        raise EngineError(
            f"{recipe.stage}: no compiled {recipe.engine} graph may be loaded ({there}); allow"
            " building it"
        )
    for reason in reasons:
        progress(recipe.stage, f"not used: {reason}", None)

    unusable = []
    for place in [*(place for place in places if place not in taken), *taken]:
        try:
            return _build(place, recipe, build, progress, anew=anew, exact=exact)
        except _UnusableError as error:
            unusable.append(f"{place} ({error})")
    raise EngineError(
        f"{recipe.stage}: cannot write to {' or '.join(unusable)}; set XDG_CACHE_HOME to a folder"
        " that can be written"
    )


class _UnusableError(Exception):
    """Nothing can be written to a folder."""


def _user_folders() -> list[Path]:
    """The user's own folders for compiled graphs, in the order in which they are tried."""
    return [folder / "engines" for folder in cache_folders()]


def recipes_that_serve(recipe: Recipe, home: Path | None) -> list[dict[str, Any]]:
    """The recipes of the entries that serve `recipe`, as far as their sidecars tell.

    home: as in `obtain`.
    """
    places = _user_folders() if home is None else [home, *_user_folders()]
    return [found for place in places for found in _serving(place, recipe).values()]


def _look(place: Path, recipe: Recipe, exact: bool) -> Compiled | list[Refusal]:
    """The entry below `place`, or why those that are there must not be loaded.

    A place that cannot be looked at has none.
    """
    refusals = []
    try:
        folder = place / recipe.key
        if folder.is_dir():
            found = read_entry(folder, recipe)
            if isinstance(found, Compiled) or exact:
                return found if isinstance(found, Compiled) else [found]
            refusals.append(found)
        for other in [] if exact else _serving(place, recipe):
            found = read_entry(other, recipe, exact=False)
            if isinstance(found, Compiled):
                return found
            refusals.append(found)
        return refusals or _others(place, recipe)
    except OSError:
        return refusals


def _serving(place: Path, recipe: Recipe) -> dict[Path, dict[str, Any]]:
    """The folders of entries that serve, and their recipes; the smallest limits first.

    A place that cannot be looked at has none.
    """
    found = {}
    try:
        for file in sorted(place.glob(f"*/{recipe.stage}.json")):
            sidecar = read_sidecar(file)
            if isinstance(sidecar, str) or misfit(sidecar["recipe"], recipe) or distrust(sidecar):
                continue
            found[file.parent] = sidecar["recipe"]
    except OSError:
        return {}
    return dict(sorted(found.items(), key=lambda entry: largest(entry[1].get("profiles"))))


def _is_of(recipe: Recipe, entry: Compiled) -> bool:
    """Whether an entry is of this very recipe."""
    return entry.artifact.parent.name == recipe.key


def _built_at(entry: Compiled) -> int:
    """When its artifact was written, in nanoseconds; 0 where another process has just moved it."""
    try:
        return entry.artifact.stat().st_mtime_ns
    except OSError:
        return 0


def _others(place: Path, recipe: Recipe) -> list[Refusal]:
    """Entries of the same graph and engine that were compiled for something else."""
    found = []
    for file in sorted(place.glob(f"*/{recipe.stage}.json")):
        sidecar = read_sidecar(file)
        if isinstance(sidecar, str) or sidecar["recipe"].get("engine") != recipe.engine:
            continue
        if different := differences(sidecar["recipe"], recipe.to_dict()):
            found.append(Refusal(f"{file.parent} is of another {different}"))
    return found


def _shortened(reasons: list[str]) -> list[str]:
    """The first reasons, and how many more there are."""
    more = [f"and {len(reasons) - _NAMED} more"] if len(reasons) > _NAMED else []
    return reasons[:_NAMED] + more


def _build(
    place: Path, recipe: Recipe, build: Build, progress: Progress, *, anew: bool, exact: bool
) -> Compiled:
    """The entry, built under its lock; or the one that another process has built meanwhile.

    Args:
        place: The folder to build in.
        recipe: What is wanted.
        build: Makes the artifact.
        progress: Called while another process builds the same.
        anew: As in `obtain`.
        exact: As `EngineOptions.exact`.

    Raises:
        _UnusableError: Where nothing can be written to `place`.
        EngineError: What `build` raises, and for a full disk.
    """
    folder = place / recipe.key
    with _locked(place, recipe, progress):
        found = _look(place, recipe, exact)
        if isinstance(found, Compiled) and not anew:
            return found

        for kind in ("partial", "old"):
            clear_dead(folder, kind)
        try:
            with temporary_folder(folder) as partial:
                sidecar = write_entry(partial, recipe, build)
                _replace(folder, partial)
        except OSError as error:
            raise _refusal(place, recipe, error) from None

    artifact = folder / f"{recipe.stage}.plan"
    return Compiled(artifact, sidecar["report"], sidecar["seconds"], built_now=True)


def _replace(folder: Path, partial: Path) -> None:
    """Puts `partial` in the place of what is in `folder`: damaged, foreign, or not wanted."""
    old = temporary_sibling(folder, "old")
    with contextlib.suppress(FileNotFoundError):
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)


def _refusal(place: Path, recipe: Recipe, error: OSError) -> Exception:
    """What became of an attempt to write to `place`."""
    if error.errno in _FULL:
        return EngineError(
            f"{recipe.stage}: the disk is full at {place}; nothing is left there, free some space"
            " and run again"
        )
    return _UnusableError(error.strerror or str(error))


@contextlib.contextmanager
def _locked(place: Path, recipe: Recipe, progress: Progress) -> Iterator[None]:
    """Holds the lock of one key, which ends with the process at the latest; its file stays."""
    try:
        make(place) if place in _user_folders() else place.mkdir(parents=True, exist_ok=True)
        file = place / f".{recipe.key}.lock"
        handle = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise _refusal(place, recipe, error) from None

    try:
        if lock(handle) == "busy":
            progress(recipe.stage, "waiting for another process that compiles the same", None)
            lock(handle, wait=True)
        yield
    finally:
        os.close(handle)
