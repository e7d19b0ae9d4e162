"""A table of models and their files on the Hub of `hub_server`, for the tests of models by name."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch

from checkpoint_files import save_training_checkpoint
from ris.reference.families import FAMILIES

NAME = "tiny-published"
REPOSITORY = "lab/tiny"
VOCABULARY = b"what a family reads beside its weights"


def write_checkpoint(path: Path, preset: str = "tiny-rela", seed: int = 0) -> Path:
    """A file of a family's tiny model, as its authors' training would write it."""
    family = next(one for one in FAMILIES.values() if preset in one.presets)
    model = family.made_up_model(family.presets[preset], seed)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    return save_training_checkpoint(path, state)


def entry(**more: Any) -> dict[str, Any]:
    """The entry of a model of the family rela."""
    files = [
        {"role": "checkpoint", "name": "gres.pth", "repository": REPOSITORY},
        {"role": "beside", "name": "vocabulary.model", "repository": REPOSITORY},
    ]
    licences = {"code": "mit", "weights": "apache-2.0"}
    known = {"name": NAME, "kind": "model", "title": "A tiny ReLA", "family": "rela"}
    return {**known, "preset": "tiny-rela", "files": files, "licences": licences, **more}


def write_table(path: Path, *entries: dict[str, Any]) -> Path:
    """A table of these entries."""
    path.write_text(json.dumps({"format": 1, "entries": entries}))
    return path


def sha256(path: Path) -> str:
    """A file's hash."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
