"""Folders of weights as transformers writes them: which file is read, and the JSON beside it."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ris.engines.errors import CheckpointError
from ris.engines.text import reason_of

INDEX_END = ".index.json"
"""How the name of an index ends, which says in which of several files a tensor is."""

_WEIGHT_NAMES = (
    "model.safetensors",
    "pytorch_model.bin",
    "open_clip_model.safetensors",
    "open_clip_pytorch_model.bin",
)
_INDEX_NAMES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")

# pytorch_model-00001-of-00002.bin
_SHARD = re.compile(r"-0*(\d{1,9})-of-0*(\d{1,9})\.\w+$")


def find_weights(folder: Path) -> Path | None:
    """The one weight file of a folder; None where there is none."""
    return next((folder / name for name in _WEIGHT_NAMES if (folder / name).is_file()), None)


def weights_in(folder: Path, option: str) -> Path:
    """The one weight file of a folder that was given as an option.

    Raises CheckpointError where there is none.
    """
    found = find_weights(folder)
    if found is None:
        names = ", ".join(_WEIGHT_NAMES)
        raise CheckpointError(f"{folder}, given as {option}, holds none of {names}")
    return found


def checkpoint_in(folder: Path) -> Path:
    """The index of a folder's shards, or its one weight file.

    Raises CheckpointError where there is neither.
    """
    index = next((folder / name for name in _INDEX_NAMES if (folder / name).is_file()), None)
    found = index or find_weights(folder)
    if found is None:
        raise CheckpointError(
            f"{folder} is a folder without {_INDEX_NAMES[1]}, {_WEIGHT_NAMES[0]} or"
            f" {_WEIGHT_NAMES[1]}; give the weight file in it"
        )
    return found


def require_no_shard(path: Path) -> None:
    """Raises CheckpointError for one of several files that make a model together."""
    if (found := _SHARD.search(path.name)) and int(found[2]) > 1:
        raise CheckpointError(
            f"{path} is file {found[1]} of {found[2]}; give the folder that holds all of them and"
            f" their index, a file whose name ends in {INDEX_END}"
        )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, empty where there is no such file.

    Raises CheckpointError for anything else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{path} cannot be read as JSON ({reason_of(error)}); download it again"
        ) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is no JSON object; download it again")
    return found
