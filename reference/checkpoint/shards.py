"""The weights of one model in several files, put together as their index says.

transformers writes large models so. Each file is opened like any other: its tensors stay
memory-mapped, so that as much of the weights is in memory as is being read.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ris.engines.errors import CheckpointError
from ris.engines.text import echoed, quoted
from ris.reference.checkpoint.entries import Entry
from ris.reference.checkpoint.files import WeightFile, open_plain
from ris.reference.checkpoint.folders import read_json
from ris.reference.checkpoint.unwrapping import unwrapped

_MOST_FILES = 1000


def open_shards(index: Path) -> WeightFile:
    """The weights that an index names, of files beside it.

    Raises:
        CheckpointError: For an index that is none, for a file that is missing, damaged or of
            another model, and for a tensor that is in two files.
    """
    if not index.is_file():
        raise CheckpointError(f"{index}: no such file")
    places = _read_index(index)
    files = sorted(set(places.values()))
    opened = [_open(index, name) for name in files]
    entries = _merged(index, opened, places)
    kinds = sorted({file.format for file in opened})
    return WeightFile(
        path=index,
        format=f"{' and '.join(kinds)} in {len(files)} files",
        # what stands before every name is seen only where all files are together
        entries=unwrapped(entries, index),
        config=next((file.config for file in opened if file.config is not None), None),
        beside=tuple(dict.fromkeys(name for file in opened for name in file.beside)),
    )


def _read_index(index: Path) -> dict[str, str]:
    """The file's name of every tensor."""
    places = read_json(index).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(
            f"{index} is no index of weights, as it has no weight_map; download it again"
        )
    odd = next((name for name in places.values() if not _is_plain(name)), None)
    if odd is not None:
        raise CheckpointError(
            f"{index} names {quoted(odd)}, which is no file beside it; download it again"
        )
    if (count := len(set(places.values()))) > _MOST_FILES:
        raise CheckpointError(f"{index} names {count} files, no model has more than {_MOST_FILES}")
    return places


def _is_plain(name: Any) -> bool:
    """Whether a name of an index is that of a file in the same folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def _open(index: Path, name: str) -> WeightFile:
    path = index.parent / name
    if not path.exists():
        raise CheckpointError(
            f"{path}, which {index.name} names, is missing; download it into the same folder"
        )
    return open_plain(path)


def _merged(index: Path, opened: list[WeightFile], places: Mapping[str, str]) -> dict[str, Entry]:
    """The tensors of all files, each from the file that the index names."""
    entries: dict[str, Entry] = {}
    for file in opened:
        for name, entry in file.entries.items():
            if places.get(name, file.path.name) != file.path.name:
                continue
            if name in entries:
                raise CheckpointError(
                    f"{echoed(name)} is in {entries[name].file} and in {file.path}, and"
                    f" {index.name} does not say which is meant; download the files again"
                )
            entries[name] = entry
    lacking = [name for name in places if name not in entries]
    if lacking:
        raise CheckpointError(
            f"{index.parent / places[lacking[0]]} lacks {echoed(lacking[0])}, which"
            f" {index.name} says it has ({len(lacking)} tensor{'s' * (len(lacking) > 1)} in all);"
            " the files are not of one model, download them again"
        )
    return entries
