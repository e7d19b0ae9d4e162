"""An entry of the cache: a compiled graph and, beside it, the sidecar that describes it.

Compiled engines contain code, so one is loaded only if its sidecar says exactly what is wanted, the
artifact's hash is the one in the sidecar, and this user's own key vouches for the sidecar
(`trust`).
"""

from __future__ import annotations

import json
import mmap
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ris.engines.base import Compiled
from ris.engines.errors import PlanError
from ris.engines.fitting import misfit
from ris.engines.recipe import Recipe, differences, file_hash, hash_of, operating_system
from ris.engines.text import quoted, reason_of
from ris.engines.trust import distrust, is_foreign, seal, unsafe_owner

Build = Callable[[Path], dict[str, Any]]
"""Writes the artifact to the path it is given, and returns its report as JSON."""


@dataclass(frozen=True)
class Refusal:
    """An entry that must not be loaded."""

    text: str
    """Which, and why, for people."""

    foreign: bool = False
    """Whether it is whole, what is wanted, and of another user or key."""


def read_entry(folder: Path, recipe: Recipe, *, exact: bool = True) -> Compiled | Refusal:
    """The entry in `folder`, or what is wrong with it.

    exact: whether it has to be of this very recipe; otherwise of one that serves (`misfit`).
    """
    sidecar = read_sidecar(folder / f"{recipe.stage}.json")
    if isinstance(sidecar, str):
        return Refusal(f"{folder} is damaged ({sidecar})")
    differ = differences(sidecar["recipe"], recipe.to_dict())
    if different := differ if exact else misfit(sidecar["recipe"], recipe):
        return Refusal(f"{folder} is of another {different}")
    artifact = folder / f"{recipe.stage}.plan"
    if not artifact.is_file():
        return Refusal(f"{folder} is damaged ({artifact.name} is missing)")
    if file_hash(artifact) != sidecar["sha256"]:
        return Refusal(
            f"{folder} is damaged ({artifact.name} is not the file that was built: sha256 differs)"
        )
    about = artifact.stat()
    if reason := unsafe_owner(about) or distrust(sidecar):
        foreign = is_foreign(sidecar) or about.st_uid not in (os.geteuid(), 0)
        return Refusal(f"{folder} is not trusted ({reason})", foreign)
    return Compiled(artifact, sidecar["report"], sidecar["seconds"], built_now=False)


def read_sidecar(file: Path) -> dict[str, Any] | str:
    """A sidecar, or what is wrong with it."""
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return f"{file.name} is missing"
    except (OSError, ValueError, RecursionError) as error:
        return f"{file.name} cannot be read: {reason_of(error)}"
    kinds: dict[str, Any] = {"recipe": dict, "sha256": str, "report": dict, "seconds": (int, float)}
    values = data if isinstance(data, dict) else {}
    wrong = [name for name, kind in kinds.items() if not isinstance(values.get(name), kind)]
    return f"{file.name} lacks {', '.join(wrong)}" if wrong else values


def write_entry(folder: Path, recipe: Recipe, build: Build) -> dict[str, Any]:
    """Builds the artifact and writes its sidecar, both to the disk; returns the sidecar."""
    artifact = folder / f"{recipe.stage}.plan"
    start = time.perf_counter()
    report = build(artifact)
    seconds = round(time.perf_counter() - start, 3)

    sidecar = seal(
        {
            "recipe": recipe.to_dict(),
            "sha256": file_hash(artifact),
            "bytes": artifact.stat().st_size,
            "seconds": seconds,
            "report": report,
        }
    )
    text = json.dumps(sidecar, indent=2, sort_keys=True) + "\n"
    (folder / f"{recipe.stage}.json").write_text(text, encoding="utf-8")

    for file in folder.iterdir():
        file.chmod(file.stat().st_mode & ~0o022)  # engines go on reading it after it was checked
        with file.open("rb") as handle:
            os.fsync(handle.fileno())
    return sidecar


def recipe_of(artifact: Path) -> dict[str, Any]:
    """The recipe of a compiled graph, as its sidecar has it.

    Raises:
        PlanError: Where there is no sidecar, or this user's key does not vouch for it.
    """
    sidecar = read_sidecar(artifact.with_suffix(".json"))
    reason = sidecar if isinstance(sidecar, str) else distrust(sidecar)
    if isinstance(sidecar, str) or reason:
        raise PlanError(f"{artifact} is not trusted: {reason}; compile it again")
    recipe: dict[str, Any] = sidecar["recipe"]
    return recipe


def read_checked(artifact: Path, engine: str) -> bytes:
    """The bytes of a compiled graph, after they are compared with the sidecar.

    Raises:
        PlanError: As in `map_checked`.
    """
    return map_checked(artifact, engine).tobytes()


def map_checked(artifact: Path, engine: str) -> NDArray[np.uint8]:
    """A compiled graph, mapped into memory after it is compared with the sidecar.

    The file is read where the array is used; what is written to the array stays in memory.

    Raises:
        PlanError: Where the sidecar is missing, is not of `engine`, this platform and these very
            bytes, or this user's key does not vouch for it; where others could change the file, and
            where it cannot be read.
    """
    sidecar = read_sidecar(artifact.with_suffix(".json"))
    if isinstance(sidecar, str):
        raise PlanError(
            f"{artifact}: {sidecar}; compiled graphs are only loaded with their sidecar"
        )
    recipe = sidecar["recipe"]
    for name, wanted in (("engine", engine), ("platform", operating_system())):
        if recipe.get(name) != wanted:
            raise PlanError(
                f"{artifact} is of another {name} ({quoted(recipe.get(name))}, here {wanted!r});"
                " compile it again"
            )

    try:
        with artifact.open("rb") as file:
            data = np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY), np.uint8)
            owner = unsafe_owner(os.fstat(file.fileno()))
            sha256 = hash_of(file)
    except (OSError, ValueError) as error:
        raise PlanError(f"{artifact} cannot be read ({error}); compile it again") from None
    if sha256 != sidecar["sha256"]:
        raise PlanError(
            f"{artifact} is damaged (its sha256 is not the sidecar's); compile it again"
        )
    if reason := owner or distrust(sidecar):
        raise PlanError(f"{artifact} is not trusted: {reason}; compile it again")
    return data


def let_go(data: NDArray[np.uint8]) -> None:
    """Drops from memory what was read of an array of `map_checked`.

    What is used afterwards is read from the file again.
    """
    mapped = data.base.obj if isinstance(data.base, memoryview) else data.base
    if isinstance(mapped, mmap.mmap) and hasattr(mmap, "MADV_DONTNEED"):
        mapped.madvise(mmap.MADV_DONTNEED)
