"""The files of a run's folder: its states, its best weights, its log, and its lock.

A state holds what trains and nothing else. The frozen weights are found again from what the run
began with, and known by their hash.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from ris.engines.errors import CheckpointError, RisError
from ris.engines.temporary import clear_dead, lock, temporary_folder, write_atomically
from ris.reference.dfam.model import RISModel
from ris.runtime.commands.console import without_nan

LOG = "log.jsonl"
"""The log, a `Progress` a line."""

WEIGHTS = "model.safetensors"
"""The weights at the end, the whole model."""

BEST = "best.safetensors"
"""The weights that validated best: what trains alone, until the run's end adds the rest."""

BEGUN = "run.json"
"""What the run was last started with: "recipe" and "data". It is there before the first state."""

LOCK = "lock"
"""The file whose lock the writer of the folder holds."""

_STATE = re.compile(r"state-\d{8,}\.pt")

_held: set[int] = set()  # file descriptors of this process's locks


@dataclass(frozen=True)
class Progress:
    """One line of the log."""

    step: int
    """The step just done, counted from 1."""

    losses: dict[str, float]
    """The loss terms by name, weighted: means over the steps since the last line."""

    rate: float
    """The learning rate of the step."""

    seconds: float
    """Seconds since the last line."""

    validation: dict[str, dict[str, float]] | None = None
    """Figures by kind of expression; None where the step was not followed by a validation."""

    norm: float | None = None
    """The L2 norm of the gradient before it was clipped, a mean over the steps; None without any
    step that counts."""

    skipped: int = 0
    """Steps since the last line whose gradient was not finite, so that they changed nothing."""

    note: str | None = None
    """What happened at this step otherwise, as another learning rate."""


class Window:
    """The steps since the last line of the log."""

    def __init__(self) -> None:
        self._sums: dict[str, float] = {}
        self._norm = 0.0
        self._steps = self._skipped = 0
        self._start = time.perf_counter()

    def add(self, losses: Mapping[str, float], norm: float, *, changed: bool) -> None:
        """Adds a step: its loss terms and its gradient's norm, and whether it changed anything."""
        if not changed:
            self._skipped += 1
            return
        for name, value in losses.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        self._norm += norm
        self._steps += 1

    def line(self, step: int, rate: float, figures: dict[str, dict[str, float]] | None) -> Progress:
        """The line of the log after step `step`, whose rate is given."""
        return Progress(
            step=step,
            losses={name: value / self._steps for name, value in self._sums.items()},
            rate=rate,
            seconds=time.perf_counter() - self._start,
            validation=figures,
            norm=self._norm / self._steps if self._steps else None,
            skipped=self._skipped,
        )


def state_file(folder: Path, step: int) -> Path:
    """The state after so many steps."""
    return folder / f"state-{step:08d}.pt"


def step_of(state: Path) -> int:
    """The steps done in a state, by its name."""
    return int(state.stem.removeprefix("state-"))


def states(folder: Path) -> list[Path]:
    """The folder's states, the newest last."""
    names = os.listdir(folder) if folder.is_dir() else []
    return sorted((folder / name for name in names if _STATE.fullmatch(name)), key=step_of)


def files_of_another(folder: Path) -> list[str]:
    """The names of the files by which a folder without a state still is a run's.

    A log alone beside `BEGUN` is that of a run that was killed before its first state.
    """
    names = ["state.pt", LOG, WEIGHTS]  # earlier versions wrote state.pt
    if (folder / BEGUN).exists():
        names.remove(LOG)
    there = ((name, folder / name) for name in names)
    return [name for name, path in there if path.exists() and path.stat().st_size]


def read_state(folder: Path) -> dict[str, Any] | None:
    """The folder's newest state, its tensors on the CPU, or None where there is none.

    Raises CheckpointError for a file that cannot be read.
    """
    found = states(folder)
    if not found:
        return None
    try:
        state: dict[str, Any] = torch.load(found[-1], weights_only=True, map_location="cpu")
    except Exception as error:
        kind = type(error).__name__
        before = f"go on from {found[-2].name}" if len(found) > 1 else "start anew"
        raise CheckpointError(
            f"{found[-1]} cannot be read ({kind}); remove it to {before}"
        ) from error
    return state


def write_state(folder: Path, state: dict[str, Any], keep: int) -> None:
    """Writes a state beside the older ones, of which the newest stay: `keep` in all."""
    folder.mkdir(parents=True, exist_ok=True)
    path = state_file(folder, state["step"])
    clear_dead(path)
    write_atomically(path, lambda file: torch.save(state, file), to_disk=True)
    for old in states(folder)[:-keep]:
        old.unlink(missing_ok=True)
        clear_dead(old)  # what a killed writer of it left


def write_weights(
    path: Path, weights: Mapping[str, Tensor], model: RISModel, notes: dict[str, str]
) -> None:
    """A safetensors file that `ris-export --checkpoint` reads.

    Args:
        path: The file.
        weights: Tensors by their official key names.
        model: The model; its sizes go into the metadata.
        notes: Further metadata.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    clear_dead(path)
    tensors = {name: value.detach().contiguous() for name, value in weights.items()}
    metadata = {"ris_config": json.dumps(model.config.to_dict()), **notes}
    with temporary_folder(path) as folder:  # safetensors makes temporary files of its own
        save_file(tensors, folder / path.name, metadata=metadata)
        (folder / path.name).chmod(0o644)  # safetensors writes for the owner alone
        (folder / path.name).replace(path)


def complete_weights(path: Path, others: Mapping[str, Tensor], model: RISModel) -> None:
    """Adds to a file of `write_weights` what it lacks, where it is there and lacks something."""
    if not path.exists():
        return
    with safe_open(path, "pt") as file:
        notes = {k: v for k, v in (file.metadata() or {}).items() if k != "ris_config"}
        own = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    if others.keys() - own.keys():
        write_weights(path, {**others, **own}, model, notes)


def digest(tensors: Mapping[str, Tensor]) -> str:
    """The SHA-256 of tensors with their names, in hexadecimal digits."""
    found = hashlib.sha256()
    for name, value in sorted(tensors.items()):
        found.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        flat = value.detach().cpu().contiguous().flatten()
        if flat.numel():
            found.update(flat.view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


@contextlib.contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Holds the folder's lock, so that no second run writes into it; makes the folder.

    Raises RisError where another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    _held.add(handle)
    try:
        if lock(handle) == "busy":
            raise RisError(f"another process trains in {folder}; give another --out, or stop it")
        yield
    finally:
        _held.discard(handle)
        os.close(handle)


def _leave_locks() -> None:
    """Closes the locks in a process that was forked: they end with the one that took them."""
    while _held:
        os.close(_held.pop())


os.register_at_fork(after_in_child=_leave_locks)


def write_begun(folder: Path, recipe: Mapping[str, Any], data: str) -> None:
    """Writes what the run is started with."""
    text = json.dumps({"recipe": recipe, "data": data}, indent=2) + "\n"
    write_atomically(folder / BEGUN, lambda file: file.write(text.encode()))


def append_log(folder: Path, line: Progress) -> None:
    """Adds a line to the folder's log; a figure that is not finite is null, as JSON has no NaN."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(without_nan(line.__dict__), allow_nan=False) + "\n")


def cut_log(folder: Path, step: int) -> None:
    """Drops the log's lines about steps after `step`, which will run again, and torn lines."""
    path = folder / LOG
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    kept = [line for line in lines if _is_complete(line) and json.loads(line)["step"] <= step]
    text = "".join(line + "\n" for line in kept)
    write_atomically(path, lambda file: file.write(text.encode()))


def _is_complete(line: str) -> bool:
    try:
        json.loads(line)
    except ValueError:
        return False
    return True
