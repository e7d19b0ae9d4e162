"""The files of a run's folder: its state, its log and its weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from ris.engines.errors import CheckpointError
from ris.engines.temporary import clear_dead, temporary_folder, write_atomically
from ris.reference.model import RISModel

STATE = "state.pt"
"""The state that a run goes on from."""

LOG = "log.jsonl"
"""The log, a `Progress` a line."""

WEIGHTS = "model.safetensors"
"""The weights so far."""


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
    """The figures of `measure`; None where the step was not followed by a validation."""


def read_state(folder: Path, device: torch.device) -> dict[str, Any] | None:
    """The folder's state with its tensors on `device`, or None where there is none.

    Raises CheckpointError for a file that cannot be read.
    """
    path = folder / STATE
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
    except Exception as error:
        kind = type(error).__name__
        raise CheckpointError(f"{path} cannot be read ({kind}); remove it to start anew") from error
    return state


def write_state(folder: Path, state: dict[str, Any]) -> None:
    """Replaces the folder's state."""
    folder.mkdir(parents=True, exist_ok=True)
    clear_dead(folder / STATE)
    write_atomically(folder / STATE, lambda file: torch.save(state, file))


def write_weights(
    path: Path, weights: dict[str, Tensor], model: RISModel, notes: dict[str, Any]
) -> None:
    """A safetensors file that `ris-export --checkpoint` reads.

    Args:
        path: The file.
        weights: Tensors by their official key names.
        model: The model; its sizes go into the metadata.
        notes: Further metadata.
    """
    clear_dead(path)
    tensors = {name: value.detach().contiguous() for name, value in weights.items()}
    metadata = {"ris_config": json.dumps(model.config.to_dict()), **notes}
    with temporary_folder(path) as folder:  # safetensors makes temporary files of its own
        save_file(tensors, folder / path.name, metadata=metadata)
        (folder / path.name).replace(path)


def append_log(folder: Path, line: Progress) -> None:
    """Adds a line to the folder's log."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOG).open("a", encoding="utf-8") as file:
        file.write(json.dumps(line.__dict__) + "\n")


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
