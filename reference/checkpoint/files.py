"""Weight files, opened without reading their tensors and without running anything in them.

Formats are told by content, not by name: torch.save's zip and its older pickle, safetensors,
TorchScript archives. Tensors stay memory-mapped (the older pickle format cannot be); one that needs
converting is converted when it is read.
"""

from __future__ import annotations

import json
import re
import warnings
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from ris.engines.errors import CheckpointError
from ris.engines.text import echoed, one_line
from ris.reference.checkpoint.arrays import STAND_INS, as_tensors, has_arrays
from ris.reference.checkpoint.entries import Entry
from ris.reference.checkpoint.torchscript import read_torchscript
from ris.reference.checkpoint.unwrapping import find_state_dict, unwrapped

CONFIG = "ris_config"
"""The entry with which a checkpoint carries its own ModelConfig.

In a safetensors file it is a metadata key, as JSON.
"""

_SAFETENSORS_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class WeightFile:
    """An opened weight file."""

    path: Path
    """The file."""

    format: str
    """Its format in words."""

    entries: dict[str, Entry]
    """Its tensors by name."""

    config: dict[str, Any] | None = None
    """The model configuration that it carries, not yet checked; None where it carries none."""

    beside: tuple[str, ...] = ()
    """Names of what else is in it, an optimiser's state for example."""

    folder: Path | None = None
    """The folder whose weights it is, with what says more about them; None for a file alone."""


def open_weights(path: Path) -> WeightFile:
    """Opens a weight file of any of the formats above.

    Raises CheckpointError for what is missing, damaged, no weight file, or a pickle that asks for
    more than weights.
    """
    opened = open_plain(path)
    return replace(opened, entries=unwrapped(opened.entries, path))


def open_plain(path: Path) -> WeightFile:
    """`open_weights` with the tensors' names as they stand in the file."""
    head = _head(path)
    if head.startswith(b"PK\x03\x04"):
        opened = _open_zip(path)
    elif _is_safetensors(head, path):
        opened = _open_safetensors(path)
    elif head.startswith(b"\x80"):
        opened = _open_torch(path, zipped=False)
    else:
        page = head.lstrip().lower().startswith((b"<!doctype", b"<html"))
        raise CheckpointError(
            f"{path} is no weight file but {'a web page' if page else 'something else'}; expected"
            " torch.save's format, safetensors or TorchScript"
        )

    if not opened.entries:
        raise CheckpointError(f"{path} holds no tensors; give a checkpoint with a state dict")
    return opened


def _head(path: Path) -> bytes:
    """The first bytes of a file; refuses what is no file, empty, or only a pointer to one."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the weight file in it")
    try:
        with path.open("rb") as file:
            head = file.read(512)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from None
    if not head:
        raise CheckpointError(f"{path} is empty; download or copy it again")
    if head.startswith(b"version https://git-lfs"):
        raise CheckpointError(
            f"{path} is a git-lfs pointer, not the weights; fetch those with `git lfs pull`"
        )
    return head


# --- safetensors ---


def _is_safetensors(head: bytes, path: Path) -> bool:
    """By its name, or by its beginning: the header's length in 8 bytes, then the header's JSON."""
    begins_so = len(head) > 8 and head[8:9] == b"{" and head[6:8] == b"\0\0"
    return path.suffix == ".safetensors" or begins_so


def _open_safetensors(path: Path) -> WeightFile:
    try:
        file = safe_open(path, "pt")
        names = file.keys()  # `file` itself cannot be iterated
        entries = {name: _safetensors_entry(file, name, path) for name in names}
        config = (file.metadata() or {}).get(CONFIG)
    except CheckpointError:
        raise
    except Exception as error:
        size = path.stat().st_size
        raise CheckpointError(
            f"{path} is a truncated or damaged safetensors file of {size} bytes"
            f" ({_first_line(error)}); download or copy it again"
        ) from None

    try:
        parsed = json.loads(config) if config else None
    except (ValueError, RecursionError):
        raise CheckpointError(
            f"{path}: its metadata entry {CONFIG} is not JSON; write the checkpoint again"
        ) from None
    return WeightFile(path, "safetensors", entries, parsed)


def _safetensors_entry(file: Any, name: str, path: Path) -> Entry:
    part = file.get_slice(name)
    kind = part.get_dtype()
    if kind not in _SAFETENSORS_DTYPES:
        raise CheckpointError(
            f"{path}: {echoed(name)} is stored as {kind}; expected float32, float16 or bfloat16"
        )
    return Entry(
        shape=tuple(part.get_shape()),
        dtype=_SAFETENSORS_DTYPES[kind],
        file=path,
        pieces=(lambda: file.get_tensor(name),),
        mapped=True,
    )


# --- torch.save and TorchScript ---


def _open_zip(path: Path) -> WeightFile:
    try:
        with zipfile.ZipFile(path) as archive:
            contents = {info.filename.partition("/")[2]: info for info in archive.infolist()}
    except Exception:  # whatever zipfile raises for a damaged archive
        raise CheckpointError(
            f"{path} is truncated or damaged (its table of contents, at the end, is missing after "
            f"{path.stat().st_size} bytes); download or copy it again"
        ) from None

    if "data.pkl" not in contents:
        raise CheckpointError(
            f"{path} is a zip archive without weights; give the checkpoint that torch.save wrote"
        )
    # compressed tensors cannot be mapped, and a compressed pickle may be of any size
    read = [info for name, info in contents.items() if name.startswith(("data/", "data.pkl"))]
    if any(info.compress_type != zipfile.ZIP_STORED for info in read):
        raise CheckpointError(
            f"{path} was compressed after it was saved, so its tensors cannot be mapped; save it"
            " again with torch.save"
        )
    if "constants.pkl" in contents:
        return WeightFile(path, "TorchScript", _entries(read_torchscript(path), path, mapped=True))
    return _open_torch(path, zipped=True)


def _open_torch(path: Path, *, zipped: bool) -> WeightFile:
    try:
        with (
            warnings.catch_warnings(action="ignore"),  # about pickle protocols
            torch.serialization.safe_globals(STAND_INS),
        ):
            data = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
    except Exception as error:  # whatever a damaged or hostile pickle raises; nothing of it has run
        raise CheckpointError(_why_refused(path, error)) from None

    mapped = zipped
    if has_arrays(data):
        data, mapped = as_tensors(data), False
    state, config, beside = _unwrap(path, data)
    name = "torch.save" if zipped else "torch.save (the format before 1.6)"
    return WeightFile(path, name, _entries(state, path, mapped=mapped), config, beside)


def _entries(state: Mapping[str, Tensor], path: Path, *, mapped: bool) -> dict[str, Entry]:
    odd = [name for name, t in state.items() if t.layout != torch.strided or t.is_quantized]
    if odd:
        raise CheckpointError(
            f"{path}: {echoed(odd[0])} is sparse or quantised; expected plain float tensors,"
            " save those"
        )
    return {
        name: Entry(tuple(t.shape), t.dtype, path, (_constant(t),), mapped)
        for name, t in state.items()
    }


def _constant(tensor: Tensor) -> Callable[[], Tensor]:
    return lambda: tensor.detach()


def _unwrap(
    path: Path, data: Any
) -> tuple[dict[str, Tensor], dict[str, Any] | None, tuple[str, ...]]:
    """(state dict, configuration, names of what else is in the file) of a loaded object."""
    if not isinstance(data, Mapping):
        raise CheckpointError(
            f"{path} holds a {type(data).__name__}; expected a state dict, or a dict with one"
        )
    config = data.get(CONFIG)
    if config is not None and not isinstance(config, dict):
        raise CheckpointError(
            f"{path}: its entry {CONFIG} is a {type(config).__name__}; expected a dict"
        )

    state = find_state_dict(data, path)
    beside = tuple(str(n) for n in data if n != CONFIG) if state.place else ()
    beside = tuple(name for name in beside if name != state.place[0])
    return state.tensors, config, beside


def _why_refused(path: Path, error: Exception) -> str:
    """A sentence for what torch.load(weights_only=True) raised."""
    text = str(error)
    if found := re.search(r"GLOBAL ([\w.]+)", text):
        return (
            f"{path} is a pickle that needs {echoed(found[1])}, which is more than weights, so it"
            " was not loaded and nothing of it was run; if you trust its author, load it there"
            " yourself and save the state dict alone"
        )
    cut_short = isinstance(error, EOFError) or "EOF" in text or "truncated" in text
    if cut_short or "corrupt" in text.lower():
        return f"{path} is truncated or damaged ({_first_line(error)}); download or copy it again"
    return (
        f"{path} is not a state dict that torch.save wrote ({_first_line(error)}), so it was not"
        " loaded and nothing of it was run; save the state dict with torch.save or safetensors"
    )


def _first_line(error: Exception) -> str:
    line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return one_line(line.split(". ")[0], 120)
