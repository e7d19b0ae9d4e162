"""The tensors of a TorchScript archive (OpenAI's CLIP files), read without TorchScript.

No code of the archive is run. The archive's `data.pkl` is a pickle of the module's attributes. It
is read by an unpickler that knows a handful of names; every class of the archive itself becomes an
inert holder of attributes, and a tensor a place in the file.
"""

from __future__ import annotations

import io
import math
import pickle
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ris.engines.errors import CheckpointError
from ris.engines.text import echoed, reason_of

_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


class _Holder:
    """Stands in for every class of the archive: keeps what it is given and does nothing."""

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.__dict__.update(state if isinstance(state, dict) else {"state": state})


@dataclass(frozen=True)
class _Stored:
    """A tensor that was not read: its storage, and its place in there."""

    record: str
    """Name of the storage's record in the archive."""

    dtype: torch.dtype
    """Dtype of the storage and the tensor."""

    count: int
    """Elements of the storage."""

    offset: int
    """The tensor's first element in the storage."""

    shape: tuple[int, ...]
    """The tensor's shape."""

    strides: tuple[int, ...]
    """Its strides, in elements."""


def _tensor(
    storage: Any, offset: int, shape: tuple[int, ...], strides: tuple[int, ...], *rest: Any
) -> _Stored:
    """What the pickle calls to make a tensor; `rest` is about gradients and hooks."""
    record, dtype, count = storage
    return _Stored(record, dtype, count, offset, shape, strides)


def _first(*arguments: Any) -> Any:
    """Stands in for a function whose first argument says it all."""
    return arguments[0] if arguments else None


# functions of TorchScript's pickles that only name the type of a value
_TYPED = (
    "build_intlist",
    "build_doublelist",
    "build_boollist",
    "build_tensorlist",
    "restore_type_tag",
)
_KNOWN: dict[str, Any] = {
    "collections.OrderedDict": OrderedDict,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch.device": _first,
    **{f"torch.jit._pickle.{name}": _first for name in _TYPED},
    **{f"torch.{name}": dtype for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle._Unpickler):
    """Makes `_Stored` and `_Holder` objects, and refuses every name but those of `_KNOWN`.

    The one in C fills gigabytes where a pickle's memo has one large index.
    """

    def __init__(self, data: bytes, path: Path) -> None:
        super().__init__(io.BytesIO(data))
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        if module == "__torch__" or module.startswith("__torch__."):
            return _Holder
        try:
            return _KNOWN[f"{module}.{name}"]
        except KeyError:
            raise CheckpointError(
                f"{self._path} is a TorchScript archive that needs {echoed(f'{module}.{name}')},"
                " which is more than weights, so it was not loaded and nothing of it was run"
            ) from None

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype, int]:
        _kind, dtype, record, _device, count = pid
        if not isinstance(dtype, torch.dtype):
            raise ValueError("a storage of unknown type")
        return str(record), dtype, int(count)


def read_torchscript(path: Path) -> dict[str, Tensor]:
    """The module's parameters and buffers by name, memory-mapped, in the dtype of the file.

    Raises CheckpointError where the archive is damaged or its pickle asks for anything but weights.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            pickled = min((n for n in archive.namelist() if n.endswith("/data.pkl")), key=len)
            root = _Unpickler(archive.read(pickled), path).load()
            place = _places(path, archive, pickled.removesuffix(".pkl") + "/")
        return {name: place(stored) for name, stored in _walk(root)}
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(
            f"{path} is a damaged TorchScript archive ({type(error).__name__}: {reason_of(error)});"
            " download it again"
        ) from None


def _walk(root: Any) -> list[tuple[str, _Stored]]:
    """Every tensor below the module `root`, by its dotted name; a holder is entered once."""
    found: list[tuple[str, _Stored]] = []
    waiting: list[tuple[str, Any]] = [("", root)]
    seen: set[int] = set()
    while waiting:
        prefix, holder = waiting.pop()
        if not isinstance(holder, _Holder) or id(holder) in seen:
            continue
        seen.add(id(holder))
        for name, value in vars(holder).items():
            if isinstance(value, _Stored):
                found.append((prefix + name, value))
            elif isinstance(value, _Holder):
                waiting.append((f"{prefix}{name}.", value))
    return found


def _places(path: Path, archive: zipfile.ZipFile, folder: str) -> Callable[[_Stored], Tensor]:
    """A function that gives the tensor of a `_Stored`: a view of the mapped file."""
    whole = torch.UntypedStorage.from_file(str(path), False, path.stat().st_size)
    records = _find_records(path, archive, folder)

    def place(stored: _Stored) -> Tensor:
        start, size = records[folder + stored.record]
        if any(n < 0 for n in (stored.offset, *stored.shape, *stored.strides)):
            raise ValueError("a tensor with negative sizes")

        steps = zip(stored.shape, stored.strides, strict=True)
        last = stored.offset + sum((n - 1) * stride for n, stride in steps)
        needed = 0 if math.prod(stored.shape) == 0 else (last + 1) * stored.dtype.itemsize
        if needed > size or start + size > whole.nbytes():
            raise ValueError(f"record {stored.record} is shorter than its tensor")

        flat = torch.empty(0, dtype=stored.dtype)
        return flat.set_(whole[start : start + size], stored.offset, stored.shape, stored.strides)

    return place


def _find_records(path: Path, archive: zipfile.ZipFile, folder: str) -> dict[str, tuple[int, int]]:
    """(first byte in the file, size) of each uncompressed record below `folder`, by its name.

    Read from the records' own headers: the extra field there, with which torch aligns tensors, is
    not the one of the archive's directory.
    """
    found: dict[str, tuple[int, int]] = {}
    with path.open("rb") as file:
        for info in archive.infolist():
            if info.filename.startswith(folder) and info.compress_type == zipfile.ZIP_STORED:
                file.seek(info.header_offset + 26)
                name_length, extra_length = struct.unpack("<HH", file.read(4))
                start = info.header_offset + 30 + name_length + extra_length
                found[info.filename] = (start, info.file_size)
    return found
